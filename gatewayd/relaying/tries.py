"""The backends that one request may try: which is next, and that each is settled once.

A target counts what is in flight and learns how it went. Whatever becomes of a request, each
target that was asked for it is told so exactly once, by :meth:`Tries.settle` or :meth:`Tries.left`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from gatewayd.routing.router import Choice, Target
from gatewayd.wire.errors import BackendFailed, GatewayError


class Tries:
    """
    :param choices: the targets to ask, best first.
    :param caller: who asks, and ``body`` what: whose failures these are.
    """

    def __init__(self, choices: Sequence[Choice], caller: Hashable, body: bytes) -> None:
        self._choices = list(choices)
        self._caller = caller
        self._body = body
        self.trial = 0  # not 0: its reply decides whether the target is well again
        #: The one that was asked and is not settled.
        self.target: Target | None = None
        #: What the client is told if no other one answers.
        self.told: GatewayError | None = None

    def next(self) -> Choice:
        return self._choices.pop(0)

    def another(self) -> bool:
        """Whether one is left. Those that were free when they were chosen may be no more."""
        self._choices = [choice for choice in self._choices if choice.open]
        return bool(self._choices)

    def ask(self, target: Target) -> None:
        """A request is sent there."""
        self.target, self.trial = target, target.asked()

    def has_head(self, sure: bool) -> None:
        """The head of a 200 has come.

        :param sure: whether it is sent when the reply is ready. Servers send that of a stream
            before they read the prompt: then their health path must say that they are well, too.
        """
        if self.trial and self.target is not None and (sure or self.target.health.looks_fine):
            self.answers()

    def answers(self) -> None:
        """It has its first event; those that wait for a trial need not wait for its end."""
        if self.trial and self.target is not None:
            self.target.answers()
            self.trial = 0

    def settle(self, problem: GatewayError | None) -> None:
        """It has ended; ``problem`` is what went wrong there."""
        target, self.target = self.target, None
        if target is not None:
            target.ended(problem, self.trial, self._caller, self._body)

    def left(self, waited: float) -> None:
        """The client gave it up.

        :param waited: seconds without a byte of the reply; 0 if there was one.
        """
        target, self.target = self.target, None
        if target is not None:
            target.left(self.trial, waited, self._caller, self._body)

    def passed_over(self, problem: GatewayError) -> GatewayError:
        """It has refused or was not reached; what the client is told if it was the last.

        One that answered has said more than one that was not reached.
        """
        self.settle(problem)
        if not isinstance(self.told, BackendFailed) or isinstance(problem, BackendFailed):
            self.told = problem
        return self.told
