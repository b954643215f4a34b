"""The backends that one request has left to try, and what the client is told if none answers."""

from __future__ import annotations

from collections.abc import Sequence

from gatewayd.routing.router import Candidate
from gatewayd.wire.errors import BackendFailed, GatewayError


class Candidates:
    """
    :param candidates: the targets to ask, best first.
    :param attempts: how many of them may execute the request, one after the other.
    """

    def __init__(self, candidates: Sequence[Candidate], attempts: int = 1) -> None:
        self._remaining = list(candidates)
        self._slow: list[Candidate] = []  # left because they took long; the last ones to ask again
        self._attempts = attempts
        self._executions = 0  # that may have begun, the current attempt left out
        #: Which error so far the client is sent if no other backend is asked.
        self.error: GatewayError | None = None

    def next(self) -> Candidate:
        return (self._remaining or self._slow).pop(0)

    def has_next(self) -> bool:
        """Whether a candidate is left that may still be asked: it may have become full."""
        if self._executions >= self._attempts:
            return False
        self._remaining = [candidate for candidate in self._remaining if candidate.available]
        self._slow = [candidate for candidate in self._slow if candidate.available]
        return bool(self._remaining or self._slow)

    def has_unasked(self) -> bool:
        """Whether a candidate is left that was not asked and may be."""
        return any(candidate.available for candidate in self._remaining)

    @property
    def executed(self) -> bool:
        """Whether a backend that was left may have executed the request."""
        return self._executions > 0

    @property
    def may_execute_again(self) -> bool:
        """Whether another backend may execute the request, if the current one may have done so."""
        return self._executions + 1 < self._attempts

    def left(self, slow: Candidate) -> None:
        """A backend was left because it took long. It is asked again if no other one answers."""
        self._executions += 1
        self._slow.append(slow)

    def passed_over(self, problem: GatewayError) -> GatewayError:
        """A backend has failed. Return the error for the client if no other backend is asked.

        The error of a backend that answered says more than that of one that did not, and this says
        more than the error of one that was not reached.
        """
        if problem.executed:
            self._executions += 1
        if self.error is None or _rank(problem) >= _rank(self.error):
            self.error = problem
        return self.error


def _rank(problem: GatewayError) -> int:
    return 2 if isinstance(problem, BackendFailed) else int(problem.executed)
