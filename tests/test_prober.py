"""Checks of health paths, on a clock."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.python import failure

from gatewayd.daemon.periodic import Periodic
from gatewayd.routing.evidence import FAILURES
from gatewayd.routing.health import LONGEST_BACKOFF, State
from gatewayd.routing.prober import CHECK_SECONDS, CHECK_TIMEOUT, RECHECK_SECONDS, Prober
from gatewayd.routing.router import Router
from gatewayd.routing.target import Target
from gatewayd.wire import errors
from tests.memory import FakeBackend
from tests.outcomes import state_of


def probed(*backends: FakeBackend) -> tuple[Clock, list[Target]]:
    clock = Clock()
    targets = [Target(backend, clock) for backend in backends]
    Periodic(RECHECK_SECONDS, Prober(Router(targets), clock).check, clock).startService()
    return clock, targets


def test_the_health_path_is_checked_at_once_and_then_regularly() -> None:
    backend = FakeBackend()
    clock, (target,) = probed(backend)
    assert len(backend.checks) == 1
    backend.checks[0].callback(False)
    assert target.health.state is State.LOADING
    clock.advance(RECHECK_SECONDS)  # it may be ready any moment
    backend.checks[1].callback(True)
    assert state_of(target.health) is State.HEALTHY
    clock.pump([RECHECK_SECONDS] * 4)
    assert len(backend.checks) == 2
    clock.advance(CHECK_SECONDS - 4 * RECHECK_SECONDS)
    assert len(backend.checks) == 3


def test_a_check_that_hangs_is_given_up_and_delays_no_other() -> None:
    hanging, answering = FakeBackend("a"), FakeBackend("b")
    clock, targets = probed(hanging, answering)
    for n in range(FAILURES):
        assert len(hanging.checks) == len(answering.checks) == n + 1
        answering.checks[n].callback(True)
        clock.pump([RECHECK_SECONDS] * int(CHECK_TIMEOUT))
        assert hanging.checks[n].called  # cancelled
        clock.pump([RECHECK_SECONDS] * int(CHECK_SECONDS - CHECK_TIMEOUT))
    assert [target.health.usable for target in targets] == [False, True]


def test_checks_that_fail_eject_and_the_first_that_passes_leads_to_a_trial() -> None:
    backend = FakeBackend()
    clock, (target,) = probed(backend)
    for _ in range(20):
        if not backend.checks[-1].called:
            backend.checks[-1].errback(failure.Failure(errors.Unreachable("No.")))
        clock.advance(RECHECK_SECONDS)
    assert not target.health.usable and not target.health.usable_as_last_resort
    backend.checks[-1].callback(True)
    clock.advance(LONGEST_BACKOFF)
    assert target.health.state is State.TRIAL_DUE and target.health.usable
