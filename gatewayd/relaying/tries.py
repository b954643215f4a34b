"""The backends that one request may try: which is next, and that each is settled once.

A target counts what is in flight and learns how it went. Whatever becomes of a request, each
target that was asked for it is told so exactly once, by :meth:`Tries.settle` or :meth:`Tries.left`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from gatewayd.routing.evidence import ClientLeft, Outcome
from gatewayd.routing.router import Candidate
from gatewayd.routing.target import Target
from gatewayd.wire.errors import BackendFailed, GatewayError


class Tries:
    """
    :param candidates: the targets to ask, best first.
    :param caller: who asks, and ``body`` what: whose failures these are.
    """

    def __init__(self, candidates: Sequence[Candidate], caller: Hashable, body: bytes) -> None:
        self._candidates = list(candidates)
        self._caller = caller
        self._body = body
        self.trial = 0  # not 0: its reply decides whether the target is well again
        #: The one that was asked and is not settled.
        self.target: Target | None = None
        #: What the client is told if no other one answers.
        self.told: GatewayError | None = None

    def next(self) -> Candidate:
        return self._candidates.pop(0)

    def another(self) -> bool:
        """Whether one is left. Those that were free when they were chosen may be no more."""
        self._candidates = [each for each in self._candidates if each.available]
        return bool(self._candidates)

    def ask(self, target: Target) -> None:
        """A request is sent there."""
        self.target, self.trial = target, target.begin()

    def has_head(self, sure: bool) -> None:
        """The head of a 200 has come.

        :param sure: whether it is sent when the reply is ready. Servers send that of a stream
            before they read the prompt: then their health path must say that they are well, too.
        """
        if self.trial and self.target is not None and (sure or self.target.health.check_passes):
            self.answers()

    def answers(self) -> None:
        """It has its first event; those that wait for a trial need not wait for its end."""
        if self.trial and self.target is not None:
            self.target.reply_began()
            self.trial = 0

    def settle(self, outcome: Outcome) -> None:
        """The request has ended there."""
        target, self.target = self.target, None
        if target is not None:
            target.settle(self.trial, outcome, self._caller, self._body)

    def left(self, waited: float) -> None:
        """The client gave it up.

        :param waited: seconds without a byte of the reply; 0 if there was one.
        """
        self.settle(ClientLeft(waited))

    def passed_over(self, problem: GatewayError) -> GatewayError:
        """It has refused or was not reached; what the client is told if it was the last.

        One that answered has said more than one that was not reached.
        """
        self.settle(problem)
        if not isinstance(self.told, BackendFailed) or isinstance(problem, BackendFailed):
            self.told = problem
        return self.told
