"""One backend as routing sees it: what is counted, and what an outcome does to its health."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from gatewayd.routing.evidence import FAILURES, ClientLeft
from gatewayd.routing.health import FIRST_BACKOFF, State
from gatewayd.routing.target import Target
from gatewayd.wire import errors
from tests.memory import FakeBackend
from tests.outcomes import FAULTS, NO_FAULTS, named


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize("problem", FAULTS, ids=named)
def test_failures_of_a_backend_count_against_it(clock: Clock, problem: errors.GatewayError) -> None:
    target = Target(FakeBackend(), clock)
    for _ in range(FAILURES):
        target.settle(target.begin(), problem)
    assert not target.health.usable and target.in_flight == 0


@pytest.mark.parametrize("problem", NO_FAULTS, ids=named)
def test_mistakes_of_a_client_do_not_count_against_a_backend(
    clock: Clock, problem: errors.GatewayError | None
) -> None:
    target = Target(FakeBackend(), clock)
    for _ in range(100):
        target.settle(target.begin(), problem)
        target.settle(target.begin(), ClientLeft())
    assert target.health.state is State.HEALTHY and target.in_flight == 0


def test_requests_in_flight_are_counted_up_to_the_limit(clock: Clock) -> None:
    target = Target(FakeBackend(), clock, limit=2)
    first, second = target.begin(), target.begin()
    assert target.in_flight == 2 and target.full
    assert not target.available and not target.available_as_last_resort
    target.settle(first, None)
    assert target.in_flight == 1 and target.available
    target.settle(second, ClientLeft(60.0))
    assert target.in_flight == 0


def test_a_reply_that_has_begun_decides_the_trial(clock: Clock) -> None:
    target = Target(FakeBackend(), clock)
    for _ in range(FAILURES):
        target.settle(target.begin(), errors.Unreachable("x"))
    assert not target.available and target.available_as_last_resort
    clock.advance(FIRST_BACKOFF)
    trial = target.begin()
    assert trial and not target.available
    target.reply_began()
    assert target.available


@pytest.mark.parametrize("forget_health", [False, True])
def test_new_settings_keep_the_count_and_keep_the_health_unless_told_to_forget_it(
    clock: Clock, forget_health: bool
) -> None:
    target, other = Target(FakeBackend("a"), clock, [("x", None)], limit=1), FakeBackend("a")
    target.begin()
    target.health.check_loading()
    target.renew(other, [("y", None)], None, True, 2.0, 3, forget_health)
    assert target.backend is other and target.models.names == ["y"]
    assert target.in_flight == 1 and not target.full
    assert (target.health.state is State.HEALTHY) is forget_health
    assert target.share == 2.0 and target.priority == 3
