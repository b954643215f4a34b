"""The backends that a request has left to try."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from gatewayd.relaying.candidates import Candidates
from gatewayd.routing.router import Candidate
from gatewayd.routing.target import Target
from gatewayd.wire.errors import BackendFailed, GatewayError, Unreachable
from tests.memory import FakeBackend

REFUSED, BUSY = BackendFailed("Refused.", status=503), BackendFailed("Busy.", status=429)
GONE, LOST = Unreachable("Gone."), Unreachable("Lost.")


def test_candidates_are_asked_in_their_order() -> None:
    targets = [Target(FakeBackend(name), Clock()) for name in "ab"]
    candidates = Candidates([Candidate(target) for target in targets])
    assert candidates.has_next()
    assert [candidates.next().target for _ in targets] == targets
    assert not candidates.has_next()


def test_a_candidate_that_has_become_full_is_skipped() -> None:
    a, b = (Target(FakeBackend(name), Clock(), limit=1) for name in "ab")
    candidates = Candidates([Candidate(a), Candidate(b)])
    a.begin()
    assert candidates.has_next() and candidates.next().target is b


@pytest.mark.parametrize(
    ("problems", "told"),
    [
        ([GONE], GONE),
        ([GONE, LOST], LOST),
        ([GONE, REFUSED], REFUSED),
        ([REFUSED, GONE], REFUSED),
        ([REFUSED, BUSY], BUSY),
    ],
)
def test_a_refusal_says_more_than_a_backend_that_was_not_reached(
    problems: list[GatewayError], told: GatewayError
) -> None:
    candidates = Candidates([])
    assert candidates.error is None
    for problem in problems:
        error = candidates.passed_over(problem)
    assert error is candidates.error is told
