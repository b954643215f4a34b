"""The decisions after a failure, without a relay."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from gatewayd.relaying.candidates import Candidates
from gatewayd.relaying.failover import (
    ASK_LATER,
    ASK_NEXT,
    END,
    ENDED,
    PINGED,
    STREAMING,
    UNSENT,
    Decision,
    Phase,
    Situation,
)
from gatewayd.routing.router import Candidate
from gatewayd.routing.target import Target
from gatewayd.wire import errors
from tests.memory import FakeBackend

UNREACHED = errors.Unreachable("Gone.")
NO_DESCRIPTOR = errors.Exhausted("None left.")
RESET = errors.ConnectionReset("Reset.")
SILENT = errors.UpstreamTimeout("Silent.")
BAD = errors.BadReply("Bad.")
AUTH = errors.AuthRefused("No.")
INTERNAL = errors.Internal("A bug.")
TOO_LONG = b'{"error":{"message":"too long","code":"context_length_exceeded"}}'


def failed(status: int) -> errors.BackendFailed:
    return errors.BackendFailed("Failed.", status=status)


def situation(
    phase: Phase = UNSENT,
    reask: bool = True,
    draining: bool = False,
    left: int = 1,
    attempts: int = 2,
) -> Situation:
    """One backend was asked, and ``left`` others can be asked."""
    targets = [Target(FakeBackend(f"b{n}"), Clock()) for n in range(left + 1)]
    candidates = Candidates([Candidate(target) for target in targets], attempts)
    candidates.next()
    return Situation(phase, reask, draining, candidates)


@pytest.mark.parametrize(
    ("problem", "without", "with_reask"),
    [
        (UNREACHED, ASK_NEXT, ASK_NEXT),
        (NO_DESCRIPTOR, ASK_NEXT, ASK_NEXT),
        (failed(429), ASK_NEXT, ASK_NEXT),
        (failed(503), ASK_NEXT, ASK_NEXT),
        (RESET, END, ASK_LATER),
        (SILENT, END, ASK_LATER),
        (BAD, END, ASK_LATER),
        (AUTH, END, ASK_LATER),
        (failed(500), END, ASK_LATER),
        (failed(502), END, ASK_LATER),
        (failed(400), END, END),
        (failed(404), END, END),
        (INTERNAL, END, END),
    ],
)
def test_what_follows_a_failure(
    problem: errors.GatewayError, without: Decision, with_reask: Decision
) -> None:
    assert situation(reask=False).after(problem, began=False) is without
    assert situation(reask=True).after(problem, began=False) is with_reask


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("reask", [False, True])
def test_a_refusal_within_a_reply_that_has_begun_is_the_answer(status: int, reask: bool) -> None:
    assert situation(reask=reask).after(failed(status), began=True) is END


@pytest.mark.parametrize("began", [False, True])
def test_nothing_may_execute_again_that_is_not_permitted(began: bool) -> None:
    assert situation().after(RESET, began) is ASK_LATER
    assert situation(PINGED).after(RESET, began) is ASK_LATER
    for forbidden in (
        situation(reask=False),
        situation(STREAMING),
        situation(draining=True),
        situation(attempts=1),
    ):
        assert forbidden.after(RESET, began) is END
        assert not forbidden.leaves_when_slow()


@pytest.mark.parametrize(
    ("phase", "reask", "left", "expected"),
    [
        (UNSENT, False, 1, True),
        (UNSENT, True, 1, True),
        (UNSENT, True, 0, False),
        (PINGED, False, 1, False),
        (PINGED, True, 1, True),
        (PINGED, True, 0, False),
        (STREAMING, True, 1, False),
    ],
)
def test_whether_another_backend_can_be_asked(
    phase: Phase, reask: bool, left: int, expected: bool
) -> None:
    assert situation(phase, reask, left=left).has_another() is expected


def test_the_body_of_an_error_is_waited_for_if_the_error_is_the_answer() -> None:
    assert situation(reask=False).leaves_at_head(failed(503))
    assert situation(reask=True).leaves_at_head(failed(500))
    assert not situation(reask=False).leaves_at_head(failed(500))
    assert not situation().leaves_at_head(failed(404))
    assert not situation(left=0).leaves_at_head(failed(503))


def test_a_slow_backend_is_left_only_for_one_that_was_not_asked() -> None:
    assert situation(attempts=3).leaves_when_slow()
    assert not situation(attempts=3, left=0).leaves_when_slow()
    again = situation(attempts=3, left=1)
    first = again.candidates.next()
    again.candidates.left(first)
    assert again.has_another() and not again.leaves_when_slow()


@pytest.mark.parametrize("phase", [PINGED, STREAMING, ENDED])
def test_another_model_is_asked_only_before_anything_was_sent(phase: Phase) -> None:
    problem = errors.BackendFailed("Too long.", TOO_LONG, status=400)
    assert situation(reask=False).may_fall_back(problem)
    assert not situation(phase).may_fall_back(problem)
    assert not situation(draining=True).may_fall_back(problem)
    for other in (failed(400), RESET, INTERNAL):
        assert not situation().may_fall_back(other)


PROBLEMS = [UNREACHED, RESET, SILENT, BAD, AUTH, INTERNAL, *map(failed, (400, 429, 500, 503))]


@given(
    st.sampled_from(PROBLEMS),
    st.sampled_from(list(Phase)),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2),
    st.integers(1, 3),
    st.booleans(),
)
def test_promise_6_only_a_backend_that_cannot_have_run_is_followed_at_once(
    problem: errors.GatewayError,
    phase: Phase,
    reask: bool,
    draining: bool,
    left: int,
    attempts: int,
    began: bool,
) -> None:
    found = situation(phase, reask, draining, left, attempts)
    decision = found.after(problem, began)
    if decision is ASK_NEXT:
        assert not problem.executed and not began
    elif decision is ASK_LATER:
        assert problem.executed and reask and attempts > 1 and not draining
        assert phase is not STREAMING
    if phase is STREAMING:
        assert not found.has_another()
