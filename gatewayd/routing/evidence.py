"""What the end of a request says about its backend, and what several failures say together.

One failure proves little: servers answer 500 to a client's mistake as readily as for a fault of
their own. ``docs/routing.rst`` lists the failures that were observed, and gives the reasons.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Hashable

import attrs

from gatewayd.wire.errors import (
    BackendFailed,
    ConnectionReset,
    GatewayError,
    Truncated,
    UpstreamError,
    UpstreamTimeout,
)

#: Failures in a row after which a backend is ejected.
FAILURES = 3

#: Seconds without a byte after which a client that leaves counts against the backend.
GAVE_UP_SECONDS = 5.0


class Evidence(enum.Enum):
    """What a request that has ended says about the backend."""

    #: The backend answered well, or refused with a reason (4xx, 501).
    GOOD = enum.auto()
    #: Nothing: the client left early, or the gateway stopped the request.
    NONE = enum.auto()
    #: The backend answered with an error of its own, or with something that is no valid answer.
    ANSWERED = enum.auto()
    #: The client, or ``patience``, waited for some seconds without a byte and left.
    GAVE_UP = enum.auto()
    #: The backend was silent for too long, or the connection broke. The request may be to blame.
    LOST = enum.auto()
    #: No connection was made, so the request cannot be to blame.
    NOT_REACHED = enum.auto()


# Names of the module: an attribute of an enumeration takes a thousand instructions to read.
GOOD, NONE, ANSWERED, GAVE_UP, LOST, NOT_REACHED = Evidence


@attrs.frozen
class ClientLeft:
    """The client gave up the request.

    :param waited: seconds without a byte of the reply; 0 if a byte had come.
    """

    waited: float = 0.0


@attrs.frozen
class TookLong:
    """The backend was left after its ``patience``, to ask another one.

    :param waited: seconds without a byte of the reply.
    """

    waited: float


#: How a request ended at a backend: well (None), with an error, or because it was given up.
Outcome = GatewayError | ClientLeft | TookLong | None


@attrs.frozen
class Failure:
    """
    :param caller: the caller that sent the request.
    :param body: a digest of its body.
    :param reason: what went wrong, for the log.
    """

    evidence: Evidence
    caller: Hashable = None
    body: Hashable = None
    reason: str = ""


def evidence_of(outcome: Outcome, used_model: bool = True) -> Evidence:
    """What this outcome of a request says about its backend.

    :param used_model: whether the backend had to use a model to reply. If not, the reply proves
        neither that it can nor that it cannot.
    """
    evidence = _evidence_of(outcome)
    return evidence if used_model or evidence is NOT_REACHED else NONE


def _evidence_of(outcome: Outcome) -> Evidence:
    if outcome is None:
        return GOOD
    if isinstance(outcome, (ClientLeft, TookLong)):
        return GAVE_UP if outcome.waited >= GAVE_UP_SECONDS else NONE
    if not isinstance(outcome, UpstreamError):
        return NONE
    if outcome.status < 500 or outcome.status == 501:  # the client's fault, or no such endpoint
        return GOOD
    if not outcome.executed and not isinstance(outcome, BackendFailed):
        return NOT_REACHED
    if isinstance(outcome, (ConnectionReset, Truncated, UpstreamTimeout)):
        return LOST
    return ANSWERED


def reason_of(outcome: Outcome) -> str:
    """The outcome in words, for the log."""
    if isinstance(outcome, ClientLeft):
        return f"The caller gave up after {outcome.waited:.1f} s without a byte."
    if isinstance(outcome, TookLong):
        return f"Another backend was asked after {outcome.waited:.1f} s without a byte."
    return "" if outcome is None else f"{outcome.message} {outcome.detail}".strip()


class FailuresInARow(deque[Failure]):
    """The latest failures since the last good answer, at most twice :data:`FAILURES`."""

    def __init__(self) -> None:
        super().__init__(maxlen=2 * FAILURES)

    @property
    def too_many(self) -> bool:
        """Whether these are enough to eject the backend."""
        return len(self) >= FAILURES

    @property
    def all_answered(self) -> bool:
        """Whether the backend answered each time, so that it is known to run."""
        return all(failure.evidence is ANSWERED for failure in self)

    @property
    def prove_dead(self) -> bool:
        """Whether requests of several callers with several bodies were lost.

        One caller alone, or one body that crashes the server, proves nothing.
        """
        lost = [failure for failure in self if failure.evidence is LOST]
        return (
            len(lost) >= FAILURES
            and len({failure.caller for failure in lost}) > 1
            and len({failure.body for failure in lost}) > 1
        )
