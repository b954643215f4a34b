"""A backend that has asked for a rest with ``Retry-After``, alone and among others."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from gatewayd.exchange import End
from gatewayd.routing.rest import LONGEST_REST, Rest
from gatewayd.routing.target import Target
from gatewayd.wire.errors import BackendFailed
from tests.memory import Answer, ClientTransport, FakeBackend, Gateway, backends, completion

Headers = tuple[tuple[bytes, bytes], ...]


def refusal(status: int, wait: str) -> BackendFailed:
    return BackendFailed("Busy.", status=status, headers=((b"retry-after", wait.encode()),))


def test_a_rest_ends_after_the_time_that_was_asked_for() -> None:
    clock = Clock()
    rest = Rest(clock)
    assert rest.remaining == rest.asked_for == 0
    rest.note(refusal(429, "7"))
    assert (rest.remaining, rest.asked_for, rest.status) == (7, 7, 429)
    clock.advance(5)
    assert (rest.remaining, rest.asked_for) == (2, 2)
    rest.note(refusal(503, "1"))  # the last word counts
    assert (rest.remaining, rest.status) == (1, 503)
    clock.advance(1)
    assert rest.remaining == rest.asked_for == 0


def test_a_rest_is_bounded() -> None:
    clock = Clock()
    rest = Rest(clock)
    rest.note(refusal(429, "3600"))
    assert (rest.remaining, rest.asked_for) == (LONGEST_REST, 3600)
    clock.advance(LONGEST_REST)
    assert rest.remaining == 0


@pytest.mark.parametrize("headers", [(), ((b"retry-after", b"soon"),)])
def test_a_refusal_without_a_time_asks_for_no_rest(headers: Headers) -> None:
    rest = Rest(Clock())
    rest.note(BackendFailed("Busy.", status=503, headers=headers))
    assert rest.remaining == 0


@pytest.mark.parametrize(("status", "rests"), [(429, True), (503, True), (500, False)])
def test_only_a_429_or_503_has_a_target_rest(status: int, rests: bool) -> None:
    target = Target(FakeBackend(), Clock())
    target.settle(target.begin(), refusal(status, "7"))
    assert target.available is target.available_as_last_resort is not rests


def test_a_refusal_without_a_model_says_nothing_about_models() -> None:
    target = Target(FakeBackend(), Clock())
    target.settle(target.begin(), refusal(429, "7"), used_model=False)
    assert target.available


# -- among others ----------------------------------------------------------------------------------


def refuse(backend: FakeBackend, wait: str, status: int = 429) -> None:
    call = backend.calls[-1]
    call.head(status, "application/json", ((b"retry-after", wait.encode()),))
    if call.left is None:
        call.send(b'{"error":{"message":"slow down","code":"busy"}}')
        call.end()


def resting(wait_a: str, wait_b: str = "", status: int = 429) -> tuple[Gateway, ClientTransport]:
    """Two backends of which the first has refused, and the second if it is to wait, too."""
    a, b = backends("a", "b")
    gateway = Gateway(a, b)
    client = gateway.chat(model="m")
    refuse(a, wait_a, status)
    if wait_b:
        refuse(b, wait_b, status)
    else:
        b.calls[0].whole(completion())
    return gateway, client


def names(gateway: Gateway) -> list[str]:
    """The backends that a request is sent to now, in order."""
    return [candidate.target.backend.name for candidate in gateway.api.router.route("m")]


def test_a_backend_that_rests_is_passed_over_until_its_time_is_over() -> None:
    gateway, client = resting("7")
    assert Answer(client).status == 200
    gateway.clock.advance(6.9)
    for _ in range(2):  # they would take turns
        assert gateway.api.router.route("m")[0].target.backend.name == "b"
    gateway.clock.advance(0.2)
    assert sorted(names(gateway)) == ["a", "b"] and gateway.targets[0].available


def test_a_backend_that_rests_may_be_asked_again_if_its_time_ends_meanwhile() -> None:
    gateway, _ = resting("7")
    client = gateway.chat(model="m")
    gateway.clock.advance(8)
    a, b = (target.backend for target in gateway.targets)
    assert isinstance(a, FakeBackend) and isinstance(b, FakeBackend)
    refuse(b, "30")
    a.calls[-1].whole(completion())
    assert Answer(client).status == 200 and gateway.ended[-1].backends == ["b", "a"]


@pytest.mark.parametrize("status", [429, 503])
def test_while_all_rest_the_client_is_told_the_shortest_time(status: int) -> None:
    gateway, first = resting("30", "7", status)
    assert (Answer(first).status, Answer(first).header("retry-after")) == (status, "7")
    gateway.clock.advance(2.5)
    client = gateway.chat(model="m")
    answer = Answer(client)
    assert (answer.status, answer.header("retry-after")) == (status, "5")
    assert answer.code == ("rate_limit_exceeded" if status == 429 else "overloaded")
    assert gateway.ended[-1].end is End.REFUSED and gateway.ended[-1].backends == []
    gateway.clock.advance(4.6)
    assert names(gateway)[0] == "b"


def test_the_last_refusal_carries_the_shortest_time_of_all() -> None:
    for waits, told in ((("7", "30"), "7"), (("30", "7"), "7"), (("9", "soon"), "9")):
        _, client = resting(*waits)
        answer = Answer(client)
        assert (answer.status, answer.header("retry-after")) == (429, told)
        assert answer.code == "busy"


def test_a_backend_that_rests_already_counts_for_the_shortest_time() -> None:
    gateway, _ = resting("20")
    client = gateway.chat(model="m")
    b = gateway.targets[1].backend
    assert isinstance(b, FakeBackend)
    refuse(b, "30")
    assert (Answer(client).status, Answer(client).header("retry-after")) == (429, "20")


def test_a_full_backend_may_have_room_at_any_time() -> None:
    gateway, _ = resting("30")
    gateway.targets[1]._limit = 0
    answer = Answer(gateway.chat(model="m"))
    assert (answer.status, answer.header("retry-after")) == (503, "1")


def test_the_only_backend_is_asked_in_any_case_and_its_own_error_crosses() -> None:
    backend = FakeBackend()
    gateway = Gateway(backend)
    for _ in range(3):
        client = gateway.chat(model="m")
        refuse(backend, "3600")
        answer = Answer(client)
        assert (answer.status, answer.header("retry-after")) == (429, "3600")
        assert answer.code == "busy"
    assert len(backend.calls) == 3
    client = gateway.chat(model="m")
    backend.calls[-1].whole(completion())
    assert Answer(client).status == 200


def test_a_rest_is_no_fault() -> None:
    gateway, _ = resting("30")
    assert gateway.targets[0].health.usable and gateway.api.router.answering()["a"]
