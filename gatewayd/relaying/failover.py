"""Decides whether another backend is asked when one has failed, is silent, or cannot take a prompt.

The rules are those of ``docs/protocol.rst``: the column *Another try* of the table of failures,
*Asking another backend*, and *Another model for a long prompt*. Nothing is done here:
:class:`.relay.Relay` carries out the decisions.

=============== ================================== =========================================
decision        when                               what the relay does
=============== ================================== =========================================
``END``         the backend may have executed the  The client is sent the error.
                request, and ``reask`` does not
                permit another one
``ASK_NEXT``    the backend cannot have executed   It leaves the backend, whose connection
                the request                        may be kept, and asks the next one.
``ASK_LATER``   it may have executed the request,  It leaves the backend, and asks the next
                and ``reask`` permits another one  one when the connection is closed. Two
                                                   executions are never alive at one time.
=============== ================================== =========================================

If no other backend can be asked then, the client is sent the error that says most
(:meth:`.candidates.Candidates.passed_over`).
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from gatewayd.wire.errors import BackendFailed, GatewayError, UpstreamError
from gatewayd.wire.overlong import says_prompt_too_long

from .candidates import Candidates


class Phase(enum.Enum):
    """What the client has been sent."""

    UNSENT = enum.auto()  # nothing
    PINGED = enum.auto()  # the status line of a stream and comments, and no part of the reply
    STREAMING = enum.auto()  # a part of the reply
    ENDED = enum.auto()  # all of it


class Decision(enum.Enum):
    END = enum.auto()
    ASK_NEXT = enum.auto()
    ASK_LATER = enum.auto()


# Names of the module: an attribute of an enumeration takes a thousand instructions to read.
UNSENT, PINGED, STREAMING, ENDED = Phase
END, ASK_NEXT, ASK_LATER = Decision


class Situation(NamedTuple):
    """What a decision depends on, beside the failure.

    :param reask: whether the setting of the backend that was asked permits another one after it.
    :param draining: whether the gateway is shutting down.
    :param candidates: the backends that are left to ask.
    """

    phase: Phase
    reask: bool
    draining: bool
    candidates: Candidates

    def after(self, problem: GatewayError, began: bool) -> Decision:
        """What follows a failure.

        :param began: whether the backend has begun a good reply, or took too long for a reply. Then
            it may have executed the request, even if the error is one with which others refuse.
        """
        if problem.retryable and not began:
            return ASK_NEXT
        upstream = isinstance(problem, UpstreamError) and problem.executed
        return ASK_LATER if upstream and self._may_execute_again() else END

    def leaves_at_head(self, error: BackendFailed) -> bool:
        """Whether another backend is asked as soon as the head of an error reply has come.

        :param error: what the head says.
        """
        return self.after(error, began=False) is not END and self.has_another()

    def leaves_when_slow(self) -> bool:
        """Whether another backend is asked when ``patience`` has run out.

        If not, the backend may take as long as its other clocks allow: patience does not turn a
        slow reply into an error.
        """
        return self._may_execute_again() and self.candidates.has_unasked()

    def may_fall_back(self, problem: GatewayError) -> bool:
        """Whether another model may be asked, because this one cannot take the prompt."""
        return (
            self.phase is UNSENT
            and isinstance(problem, BackendFailed)
            and says_prompt_too_long(problem)
            and not self.draining
        )

    def has_another(self) -> bool:
        """Whether a backend is left to ask, and what the client has been sent permits to ask it.

        After a ping only ``reask`` permits it.
        """
        if self.phase is STREAMING:
            return False
        return (self.reask or self.phase is not PINGED) and self.candidates.has_next()

    def _may_execute_again(self) -> bool:
        """Whether another backend may execute the request although this one may have done so."""
        return (
            self.reask
            and self.phase is not STREAMING
            and self.candidates.may_execute_again
            and not self.draining
        )
