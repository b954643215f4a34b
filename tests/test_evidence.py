"""What outcomes say about a backend, and what several failures say together."""

from __future__ import annotations

import pytest

from gatewayd.routing.evidence import (
    FAILURES,
    GAVE_UP_SECONDS,
    ClientLeft,
    Evidence,
    Failure,
    FailuresInARow,
    Outcome,
    TookLong,
    evidence_of,
    reason_of,
)
from gatewayd.wire import errors
from tests.outcomes import FAULTS, NO_FAULTS, named

LOST, ANSWERED = Evidence.LOST, Evidence.ANSWERED


@pytest.mark.parametrize(
    ("outcome", "evidence"),
    [
        (None, Evidence.GOOD),
        (errors.BackendFailed("x", status=404), Evidence.GOOD),
        (errors.BackendFailed("x", status=501), Evidence.GOOD),
        (errors.BackendFailed("x", status=500), Evidence.ANSWERED),
        (errors.BackendFailed("x", status=503), Evidence.ANSWERED),
        (errors.BadReply("x"), Evidence.ANSWERED),
        (errors.ConnectionReset("x"), Evidence.LOST),
        (errors.Truncated("x"), Evidence.LOST),
        (errors.UpstreamTimeout("x"), Evidence.LOST),
        (errors.Unreachable("x"), Evidence.NOT_REACHED),
        (errors.ConnectTimeout("x"), Evidence.NOT_REACHED),
        (errors.Drained(), Evidence.NONE),
        (errors.Internal("x"), Evidence.NONE),
        (ClientLeft(), Evidence.NONE),
        (ClientLeft(GAVE_UP_SECONDS - 0.1), Evidence.NONE),
        (ClientLeft(GAVE_UP_SECONDS), Evidence.GAVE_UP),
        (TookLong(GAVE_UP_SECONDS - 0.1), Evidence.NONE),
        (TookLong(GAVE_UP_SECONDS), Evidence.GAVE_UP),
    ],
    ids=repr,
)
def test_an_outcome_is_evidence(outcome: Outcome, evidence: Evidence) -> None:
    assert evidence_of(outcome) is evidence


@pytest.mark.parametrize("outcome", [*FAULTS, *NO_FAULTS], ids=named)
def test_faults_are_failures_and_the_others_are_none(outcome: errors.GatewayError | None) -> None:
    assert (evidence_of(outcome) in (Evidence.GOOD, Evidence.NONE)) is (outcome in NO_FAULTS)


def test_the_reason_has_the_message_and_the_detail_for_the_log() -> None:
    assert reason_of(errors.Unreachable("No.", detail="refused")) == "No. refused"
    assert reason_of(errors.Unreachable("No.")) == "No."
    assert reason_of(ClientLeft(6)) == "The caller gave up after 6.0 s without a byte."
    assert reason_of(TookLong(6)) == "Another backend was asked after 6.0 s without a byte."
    assert reason_of(None) == ""


def failures(*those: Failure) -> FailuresInARow:
    made = FailuresInARow()
    made.extend(those)
    return made


def test_only_the_latest_failures_are_kept() -> None:
    made = failures(Failure(LOST), *(Failure(ANSWERED) for _ in range(2 * FAILURES)))
    assert len(made) == 2 * FAILURES and made.all_answered


def test_some_failures_are_too_many() -> None:
    assert not failures(*[Failure(LOST)] * (FAILURES - 1)).too_many
    assert failures(*[Failure(LOST)] * FAILURES).too_many


def test_a_backend_has_answered_unless_one_failure_is_no_answer() -> None:
    assert failures().all_answered and failures(Failure(ANSWERED)).all_answered
    for evidence in (LOST, Evidence.GAVE_UP, Evidence.NOT_REACHED):
        assert not failures(Failure(ANSWERED), Failure(evidence)).all_answered


@pytest.mark.parametrize(
    ("those", "dead"),
    [
        ([Failure(LOST, n, n) for n in range(3)], True),
        ([Failure(LOST, n, n) for n in range(2)], False),
        ([Failure(LOST, 1, n) for n in range(3)], False),  # one caller alone
        ([Failure(LOST, n, 1) for n in range(3)], False),  # one body alone
        ([Failure(LOST, 1, 1), Failure(ANSWERED, 2, 2), Failure(LOST, 3, 3)], False),
    ],
)
def test_only_lost_requests_of_several_callers_prove_a_backend_dead(
    those: list[Failure], dead: bool
) -> None:
    assert failures(*those).prove_dead is dead
