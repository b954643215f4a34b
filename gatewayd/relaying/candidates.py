"""The backends that one request has left to try, and what the client is told if none answers."""

from __future__ import annotations

import time
from collections.abc import Sequence

from gatewayd.routing.router import Candidate
from gatewayd.wire.errors import BackendFailed, GatewayError
from gatewayd.wire.retryafter import seconds_to_wait, whole_seconds, with_wait


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
        self._asked: list[Candidate] = []
        #: Which error so far the client is sent if no other backend is asked.
        self.error: GatewayError | None = None
        self._error_from: Candidate | None = None

    def next(self) -> Candidate:
        """The best candidate; after that the next one that is available.

        The best one may be the only one that serves the model. Then it is asked in any case.
        :meth:`has_next` says whether there is a further one.
        """
        candidates, place = self._remaining, 0
        if self._asked:
            candidates = self._remaining if self.has_unasked() else self._slow
            place = [candidate.available for candidate in candidates].index(True)
        candidate = candidates.pop(place)
        self._asked.append(candidate)
        return candidate

    def instead(self, candidates: Sequence[Candidate]) -> Candidates:
        """Other candidates for the same request, of which none was asked yet."""
        others = Candidates(candidates, self._attempts)
        others._executions = self._executions
        return others

    def has_next(self) -> bool:
        """Whether a candidate is left that may still be asked: it may have become full."""
        if self._executions >= self._attempts:
            return False
        return self.has_unasked() or any(candidate.available for candidate in self._slow)

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

    def source_of(self, problem: GatewayError) -> Candidate | None:
        """Whose error that is; None if :meth:`passed_over` has not returned it."""
        return self._error_from if problem is self.error else None

    def left(self, slow: Candidate) -> None:
        """A backend was left because it took long. It is asked again if no other one answers."""
        self._executions += 1
        self._slow.append(slow)

    def passed_over(self, problem: GatewayError) -> GatewayError:
        """A backend has failed. Return the error for the client if no other backend is asked.

        A refusal (429, 503) says the shortest of the times for which backends want to rest.

        The error of a backend that answered says more than that of one that did not, and this says
        more than the error of one that was not reached.
        """
        if problem.executed:
            self._executions += 1
        if self.error is None or _rank(problem) >= _rank(self.error):
            self.error, self._error_from = problem, self._asked[-1] if self._asked else None
        error = self.error
        if isinstance(error, BackendFailed) and error.retryable:
            rests = [each.target.rest.asked_for for each in (*self._asked, *self._remaining)]
            waits = [wait for wait in rests if wait]
            own = seconds_to_wait(error.headers, time.time())
            if waits and (own is None or whole_seconds(min(waits)) < own):
                error.headers = with_wait(error.headers, min(waits))
        return error


def _rank(problem: GatewayError) -> int:
    return 2 if isinstance(problem, BackendFailed) else int(problem.executed)
