"""A backend's list of models, read whole."""

from __future__ import annotations

import json

import pytest

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
