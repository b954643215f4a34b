"""The backends that one request has left to try, and what the client is told if none answers."""

from __future__ import annotations

from collections.abc import Sequence

from gatewayd.routing.router import Candidate
from gatewayd.wire.errors import BackendFailed, GatewayError


class Candidates:
    """
    :param candidates: the targets to ask, best first.
    """

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self._remaining = list(candidates)
        #: Which error so far the client is sent if no other backend is asked.
        self.error: GatewayError | None = None

    def next(self) -> Candidate:
        return self._remaining.pop(0)

    def has_next(self) -> bool:
        """Whether a candidate is left that may still be asked: it may have become full."""
        self._remaining = [candidate for candidate in self._remaining if candidate.available]
        return bool(self._remaining)

    def passed_over(self, problem: GatewayError) -> GatewayError:
        """A backend has failed. Return the error for the client if no other backend is asked.

        The refusal of a backend that answered says more than the error of one that was not reached.
        """
        if not isinstance(self.error, BackendFailed) or isinstance(problem, BackendFailed):
            self.error = problem
        return self.error
