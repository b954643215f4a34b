"""A backend's list of models, read whole."""

from __future__ import annotations

import json

import pytest

from gatewayd.wire import errors
from tests.backendside import GatewayWorld, reply
from tests.memory import Answer


@pytest.mark.parametrize(
    ("status", "code"),
    [(401, "upstream_auth"), (403, "upstream_auth"), (500, "upstream_bad_response")],
)
def test_a_list_that_is_refused_says_why(status: int, code: str) -> None:
    for whole in (True, False):
        world = GatewayWorld()
        client = world.gateway.request("GET", "/v1/models")
        backend = world.accept()
        answer = reply(b'{"detail": "Invalid API key sk-1"}', status=status)
        backend.protocol.dataReceived(answer if whole else answer[:-5])
        assert (Answer(client).status, Answer(client).code) == (502, code)
        assert b"sk-1" not in Answer(client).body
        if not whole:
            backend.protocol.dataReceived(answer[-5:])
        world.gateway.request("GET", "/v1/models")
        assert not world.attempts  # the connection was kept


def test_entries_of_a_list_that_are_not_valid_are_dropped() -> None:
    world = GatewayWorld()
    client = world.gateway.request("GET", "/v1/models")
    listed = [{"id": "a"}, {"id": None}, "b", {"id": "c\u0007"}, {"name": "d"}, {"id": "e"}]
    world.accept().protocol.dataReceived(reply(json.dumps({"data": listed}).encode()))
    assert [entry["id"] for entry in Answer(client).json["data"]] == ["a", "e"]


def test_a_list_that_is_null_is_empty() -> None:
    world = GatewayWorld()
    client = world.gateway.request("GET", "/v1/models")
    world.accept().protocol.dataReceived(reply(b'{"object":"list","data":null}'))
    assert (Answer(client).status, Answer(client).json["data"]) == (200, [])


def test_a_list_that_is_too_long_is_refused() -> None:
    world = GatewayWorld()
    client = world.gateway.request("GET", "/v1/models")
    backend = world.accept()
    backend.protocol.dataReceived(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(70):
        if not backend.aborted:
            backend.protocol.dataReceived(b" " * 65536)
    assert backend.aborted and Answer(client).code == "upstream_bad_response"


# -- slots -----------------------------------------------------------------------------------------


def slots_of(body: bytes, status: int = 200) -> list[object]:
    """What a backend is understood to say about its slots: a number, None or a failure's class."""
    world = GatewayWorld()
    said: list[object] = []
    world.target.backend.slots("1").addCallbacks(said.append, lambda f: said.append(f.type))
    world.accept().protocol.dataReceived(reply(body, status=status))
    return said


@pytest.mark.parametrize(
    ("body", "slots"),
    [
        (b'{"total_slots": 4, "chat_template": "x"}', 4),
        (b'{"role": "router", "max_instances": 4}', None),
        (b'{"total_slots": 0}', None),
        (b'{"total_slots": -1}', None),
        (b'{"total_slots": "4"}', None),
        (b'{"total_slots": 1e400}', None),
        (b"[]", None),
        (b"<html>", None),
        (b"", None),
    ],
)
def test_slots_are_read_from_the_props_of_llama_cpp(body: bytes, slots: int | None) -> None:
    assert slots_of(body) == [slots]


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (404, None),
        (405, None),
        (501, None),
        (401, errors.AuthRefused),
        (403, errors.AuthRefused),
        (500, errors.BadReply),
        (503, errors.BadReply),
    ],
)
def test_a_server_without_props_has_no_slots_and_another_refusal_is_a_failure(
    status: int, said: object
) -> None:
    assert slots_of(b'{"error": {"message": "no"}}', status) == [said]
