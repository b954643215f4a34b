"""The list of models over several backends, in memory and on a clock."""

from __future__ import annotations

import hashlib
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs

from gatewayd.routing.listing import FRESH_SECONDS, WAIT_SECONDS
from gatewayd.wire import errors
from tests.memory import Answer, FakeBackend, Gateway, settings


class ListingBackend(FakeBackend):
    """Records the requests for its list; with ``hangs`` it does not answer."""

    def __init__(self, name: str, *models: str) -> None:
        super().__init__(name)
        self.hangs = False
        self.requests: list[Deferred[dict[str, Any]]] = []
        self.lists(*models)

    def lists(self, *models: str) -> None:
        self.listed = {m: {"id": m, "object": "model", "owned_by": self.name} for m in models}

    def models(self, request_id: str) -> Deferred[dict[str, Any]]:
        self.requests.append(Deferred() if self.hangs else super().models(request_id))
        return self.requests[-1]


def serving(**models: str) -> dict[str, str]:
    """The ``models`` setting of backends, by their names."""
    found: dict[str, str] = {}
    for name, text in models.items():
        found |= {f"backend_{name}_url": "http://127.0.0.1:1", f"backend_{name}_models": text}
    return found


def ids(gateway: Gateway, **headers: str) -> list[str]:
    answer = Answer(gateway.request("GET", "/v1/models", headers=headers))
    assert answer.status == 200 and answer.json["object"] == "list"
    return [entry["id"] for entry in answer.json["data"]]


def owners(gateway: Gateway) -> dict[str, str]:
    listed = Answer(gateway.request("GET", "/v1/models")).json["data"]
    return {entry["id"]: entry["owned_by"] for entry in listed}


def test_lists_are_merged_in_the_order_of_the_settings_and_the_first_describes_a_model() -> None:
    gateway = Gateway(ListingBackend("a", "x", "both"), ListingBackend("b", "both", "y"))
    assert owners(gateway) == {"x": "a", "both": "a", "y": "b"}
    assert ids(gateway) == ["x", "both", "y"]


def test_only_models_that_can_be_requested_are_listed() -> None:
    a = ListingBackend("a", "real", "llama-3", "other")
    gateway = Gateway(a, settings=settings(**serving(a="named, llama-*, alias = real")))
    assert sorted(ids(gateway)) == ["alias", "llama-3", "named"]
    for name in ("alias", "llama-3", "named"):
        assert Answer(gateway.request("GET", f"/v1/models/{name}")).json["id"] == name
        gateway.chat(model=name)
    assert len(a.calls) == 3
    for name in ("real", "other"):
        assert Answer(gateway.request("GET", f"/v1/models/{name}")).code == "model_not_found"
        assert Answer(gateway.chat(model=name)).code == "model_not_found"


def test_a_model_that_is_not_listed_is_not_named_in_an_error_either() -> None:
    a = ListingBackend("a", "real", "llama-3")
    gateway = Gateway(a, settings=settings(**serving(a="llama-*, alias = real")))
    ids(gateway)
    message = Answer(gateway.chat(model="nothing")).json["error"]["message"]
    assert "alias" in message and "llama-3" in message and "real" not in message


def test_a_name_with_a_slash_is_found_plain_and_percent_encoded() -> None:
    gateway = Gateway(ListingBackend("a", "org/model"))
    for path in ("/v1/models/org/model", "/v1/models/org%2Fmodel"):
        assert Answer(gateway.request("GET", path)).json["id"] == "org/model"


def test_a_list_is_cached_and_an_old_one_is_renewed_after_the_answer() -> None:
    backend = ListingBackend("a", "x")
    gateway = Gateway(backend)
    for _ in range(5):
        assert ids(gateway) == ["x"]
    assert len(backend.requests) == 1
    backend.lists("y")
    gateway.clock.advance(FRESH_SECONDS + 0.1)
    assert ids(gateway) == ["x"] and len(backend.requests) == 2
    assert ids(gateway) == ["y"] and len(backend.requests) == 2


def test_a_backend_that_is_down_delays_no_answer_and_its_old_list_is_used() -> None:
    a, b = ListingBackend("a", "x"), ListingBackend("b", "y")
    gateway = Gateway(a, b)
    a.listed = errors.Unreachable("No.")
    assert ids(gateway) == ["y"]
    a.lists("x")
    assert ids(gateway) == ["x", "y"]  # up again: at once
    a.listed = errors.Unreachable("No.")
    gateway.clock.advance(FRESH_SECONDS + 0.1)
    assert ids(gateway) == ids(gateway) == ["x", "y"]


def test_a_backend_that_hangs_delays_only_the_first_answer() -> None:
    a, b = ListingBackend("a", "x"), ListingBackend("b", "y")
    a.hangs = True
    gateway = Gateway(a, b)
    client = gateway.request("GET", "/v1/models")
    gateway.clock.advance(WAIT_SECONDS - 0.01)
    assert not client.value() and not a.requests[0].called
    gateway.clock.advance(0.01)
    assert [entry["id"] for entry in Answer(client).json["data"]] == ["y"]
    assert a.requests[0].called  # cancelled
    for _ in range(5):
        assert ids(gateway) == ["y"]
    assert len(a.requests) == 1
    gateway.clock.advance(FRESH_SECONDS + 0.1)
    assert ids(gateway) == ["y"] and len(a.requests) == 2  # asked after the answer was given
    gateway.clock.advance(WAIT_SECONDS)
    a.hangs = False
    gateway.clock.advance(FRESH_SECONDS + 0.1)
    assert ids(gateway) == ["y"] and ids(gateway) == ["x", "y"]


def test_a_backend_that_begins_to_hang_delays_nothing_and_keeps_its_list() -> None:
    a = ListingBackend("a", "x")
    gateway = Gateway(a)
    assert ids(gateway) == ["x"]
    a.hangs = True
    for _ in range(3):
        gateway.clock.advance(FRESH_SECONDS + 0.1)
        assert ids(gateway) == ["x"]
    assert len(a.requests) == 4


def test_names_in_the_settings_are_listed_even_if_no_backend_answers() -> None:
    a, b = ListingBackend("a"), ListingBackend("b")
    a.listed = b.listed = errors.Unreachable("No.")
    gateway = Gateway(a, b, settings=settings(**serving(a="x, glob-*", b="y = z")))
    assert ids(gateway) == ["x", "y"]


def test_if_no_backend_returns_its_list_the_answer_is_an_error() -> None:
    a, b = ListingBackend("a"), ListingBackend("b")
    a.listed = b.listed = errors.Unreachable("No.", detail="10.0.0.7")
    gateway = Gateway(a, b)
    answer = Answer(gateway.request("GET", "/v1/models"))
    assert (answer.status, answer.code) == (502, "upstream_unreachable")
    assert b"10.0.0.7" not in answer.body
    a.lists()
    b.lists()
    assert ids(gateway) == []  # to have none is no error


def test_if_the_only_backend_hangs_the_answer_is_an_error_within_seconds() -> None:
    a = ListingBackend("a", "x")
    a.hangs = True
    gateway = Gateway(a)
    client = gateway.request("GET", "/v1/models")
    gateway.clock.advance(WAIT_SECONDS)
    assert (Answer(client).status, Answer(client).code) == (504, "upstream_timeout")
    a.hangs = False
    gateway.clock.advance(FRESH_SECONDS + 0.1)
    gateway.request("GET", "/v1/models")
    assert ids(gateway) == ["x"]


def test_a_caller_sees_its_own_models_in_the_list_and_in_errors() -> None:
    digest = hashlib.sha256(b"gw-a").hexdigest()
    values = {"token_a_sha256": digest, "token_a_models": "mine, shared-*"}
    gateway = Gateway(
        ListingBackend("a", "mine", "shared-1", "theirs"), settings=settings(**values)
    )
    assert ids(gateway, Authorization="Bearer gw-a") == ["mine", "shared-1"]
    answer = Answer(
        gateway.request("GET", "/v1/models/theirs", headers={"Authorization": "Bearer gw-a"})
    )
    assert answer.code == "model_not_found"


def test_many_clients_share_one_request_for_a_list() -> None:
    a = ListingBackend("a", "x")
    a.hangs = True
    gateway = Gateway(a)
    clients = [gateway.request("GET", "/v1/models") for _ in range(20)]
    assert len(a.requests) == 1
    clients.pop().leave()
    a.requests[0].callback({"x": {"id": "x"}})
    assert [Answer(client).json["data"][0]["id"] for client in clients] == ["x"] * 19


def test_a_list_is_cancelled_when_all_its_clients_have_left_and_no_failure_is_logged() -> None:
    a = ListingBackend("a", "x")
    a.hangs = True
    gateway = Gateway(a)
    with capturedLogs() as events:
        for _ in range(2):
            clients = [gateway.request("GET", "/v1/models") for _ in range(2)]
            for client in clients:
                client.leave()
            assert a.requests[-1].called
    assert len(a.requests) == 2 and not [event for event in events if "log_failure" in event]
    a.hangs = False
    assert ids(gateway) == ["x"]
