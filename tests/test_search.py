"""The search for a stored response; tests/test_responses.py has its results for clients."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from gatewayd.exchange import Exchange
from gatewayd.relaying.search import SEARCH_SECONDS, find
from gatewayd.routing.target import Target
from gatewayd.wire.endpoints import retrieval_of
from gatewayd.wire.errors import Overloaded, ResponseNotFound, Unreachable
from tests.memory import FakeBackend, backends


def searched(*several: FakeBackend, clock: Clock) -> tuple[Deferred[Target], Exchange]:
    call = retrieval_of("resp_1")
    exchange = Exchange("req-1", 0.0, "127.0.0.1", lambda _: None)
    targets = [Target(backend, clock) for backend in several]
    return Deferred.fromCoroutine(find(call, targets, exchange, clock)), exchange


def test_a_backend_that_cannot_be_reached_does_not_end_the_search() -> None:
    a, b = backends("a", "b")
    a.failing.append(Unreachable("It refused."))
    found, exchange = searched(a, b, clock=Clock())
    b.calls[0].whole(b'{"id":"resp_1"}')
    target: Target = found.result  # type: ignore[assignment]
    assert target.backend is b and not exchange.backends


@pytest.mark.parametrize(
    ("first", "error"), [(404, ResponseNotFound), (503, Overloaded), (401, Overloaded)]
)
def test_what_the_backends_said_decides_the_error(first: int, error: type[Exception]) -> None:
    a, b = backends("a", "b")
    found, _ = searched(a, b, clock=Clock())
    a.calls[0].whole(b"", first)
    b.calls[0].whole(b"", 404)
    failed: list[object] = []
    found.addErrback(lambda failure: failed.append(type(failure.value)))
    assert failed == [error]


def test_a_backend_that_is_known_not_to_answer_is_not_waited_for() -> None:
    a, b = backends("a", "b")
    clock = Clock()
    call = retrieval_of("resp_1")
    targets = [Target(backend, clock) for backend in (a, b)]
    targets[0].health.check_loading()
    exchange = Exchange("req-1", 0.0, "127.0.0.1", lambda _: None)
    found = Deferred.fromCoroutine(find(call, targets, exchange, clock))
    b.calls[0].whole(b"", 404)
    failed: list[object] = []
    found.addErrback(lambda failure: failed.append(type(failure.value)))
    assert failed == [Overloaded] and not a.calls


def test_a_silent_backend_is_waited_for_some_seconds() -> None:
    a, b = backends("a", "b")
    clock = Clock()
    found, _ = searched(a, b, clock=clock)
    clock.advance(SEARCH_SECONDS - 1)
    assert not b.calls
    clock.advance(1)
    b.calls[0].whole(b"{}")
    assert found.called and not clock.getDelayedCalls()
