"""The backends that a request has left to try."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from gatewayd.relaying.candidates import Candidates
from gatewayd.routing.router import Candidate
from gatewayd.routing.target import Target
from gatewayd.wire.errors import (
    BackendFailed,
    ConnectionReset,
    GatewayError,
    Unreachable,
    UpstreamTimeout,
)
from tests.memory import FakeBackend

REFUSED, BUSY = BackendFailed("Refused.", status=503), BackendFailed("Busy.", status=429)
GONE, LOST = Unreachable("Gone."), Unreachable("Lost.")
RESET, SILENT = ConnectionReset("Reset."), UpstreamTimeout("Silent.")


def test_candidates_are_asked_in_their_order() -> None:
    targets = [Target(FakeBackend(name), Clock()) for name in "ab"]
    candidates = Candidates([Candidate(target) for target in targets])
    assert candidates.has_next()
    assert [candidates.next().target for _ in targets] == targets
    assert not candidates.has_next()


def test_a_candidate_that_has_become_full_is_skipped() -> None:
    a, b, c = (Target(FakeBackend(name), Clock(), limit=1) for name in "abc")
    candidates = Candidates([Candidate(a), Candidate(b), Candidate(c)])
    assert candidates.next().target is a
    b.begin()
    assert candidates.has_next() and candidates.next().target is c
    assert not candidates.has_next()
    b.settle(0, None)
    assert candidates.has_next() and candidates.next().target is b


def test_the_best_candidate_may_be_the_only_one_and_is_asked_in_any_case() -> None:
    target = Target(FakeBackend(), Clock())
    target.health.check_loading()
    assert Candidates([Candidate(target)]).next().target is target


@pytest.mark.parametrize(
    ("problems", "told"),
    [
        ([GONE], GONE),
        ([GONE, LOST], LOST),
        ([GONE, REFUSED], REFUSED),
        ([REFUSED, GONE], REFUSED),
        ([REFUSED, BUSY], BUSY),
        ([RESET, GONE], RESET),
        ([RESET, SILENT], SILENT),
        ([RESET, BUSY], BUSY),
        ([BUSY, RESET], BUSY),
    ],
)
def test_an_answer_says_more_than_a_failure_and_this_more_than_a_backend_not_reached(
    problems: list[GatewayError], told: GatewayError
) -> None:
    candidates = Candidates([])
    assert candidates.error is None
    for problem in problems:
        error = candidates.passed_over(problem)
    assert error is candidates.error is told


def some(count: int, attempts: int) -> Candidates:
    targets = [Target(FakeBackend(f"b{n}"), Clock()) for n in range(count)]
    return Candidates([Candidate(target) for target in targets], attempts)


@pytest.mark.parametrize("attempts", [1, 2, 3])
def test_only_failures_after_which_the_backend_may_have_run_count_as_attempts(
    attempts: int,
) -> None:
    candidates = some(5, attempts)
    candidates.passed_over(GONE)
    candidates.passed_over(REFUSED)
    assert not candidates.executed
    for n in range(1, attempts + 1):
        assert candidates.may_execute_again is (n < attempts) and candidates.has_next()
        candidates.passed_over(RESET)
    assert candidates.executed and not candidates.has_next()


def test_a_backend_that_was_slow_is_the_last_one_to_be_asked_again() -> None:
    candidates = some(2, 3)
    slow = candidates.next()
    assert candidates.has_unasked()
    candidates.left(slow)
    assert candidates.executed and candidates.next() is not slow
    assert candidates.has_next() and not candidates.has_unasked()
    assert candidates.next() is slow and not candidates.has_next()


def test_an_error_is_that_of_the_candidate_that_was_passed_over_with_it() -> None:
    candidates = some(2, 1)
    first = candidates.next()
    error = candidates.passed_over(REFUSED)
    candidates.next()
    assert candidates.passed_over(GONE) is error
    assert candidates.source_of(error) is first and candidates.source_of(GONE) is None
