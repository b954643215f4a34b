"""Asks backends what they serve: their lists of models, and how many slots they have.

A backend is asked only for what its settings leave to it (``models``, ``in_flight``): when the
gateway starts or reloads its settings, when the backend is healthy again, and regularly. If it
cannot be asked, what it said last stays in use.
"""

from __future__ import annotations

import random
import uuid
from abc import ABC, abstractmethod
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from gatewayd.wire.errors import GatewayError, UpstreamTimeout

from .health import State
from .router import Router
from .target import Target

_log = Logger()

#: Seconds between two questions. :data:`JITTER` changes each time by this share at most, so that
#: several gateways do not ask at the same time.
ASK_SECONDS = 30.0
#: Seconds after the first failure; each further one doubles them, up to :data:`ASK_SECONDS`. Also
#: the least time between two questions if a model was requested that no list has.
RETRY_SECONDS = 5.0
JITTER = 0.2
#: Seconds that a backend may take to answer.
ANSWER_SECONDS = 10.0
#: The most names that a log line lists.
_NAMES_SHOWN = 20
_NOTHING, _FAILURE = object(), object()


class Discovery:
    """:meth:`check` is to be called every second or so."""

    def __init__(self, router: Router, clock: IReactorTime) -> None:
        self._questions = [
            question(target, clock) for target in router.targets for question in (_Models, _Slots)
        ]

    def check(self) -> None:
        """Ask what is due."""
        for question in self._questions:
            question.check()

    def stop(self) -> None:
        """Cancel what is being asked."""
        for question in self._questions:
            question.stop()

    def known(self) -> dict[str, bool]:
        """Whether the latest answer is current, by the names of the backends that are asked."""
        found: dict[str, bool] = {}
        for question in self._questions:
            if question.wanted:
                name = question.target.backend.name
                found[name] = found.get(name, True) and question.answered
        return found


class _Question(ABC):
    """What one backend is asked again and again."""

    def __init__(self, target: Target, clock: IReactorTime) -> None:
        self.target = target
        #: Whether the latest attempt was answered.
        self.answered = False
        self._retry = RETRY_SECONDS
        self._clock = clock
        self._due = self._asked_at = clock.seconds()
        self._asking: Deferred[Any] | None = None
        self._was_healthy = True
        self._logged: object = _NOTHING  # the answer, or _FAILURE, that the log told last

    @property
    @abstractmethod
    def wanted(self) -> bool:
        """Whether the settings leave the answer to the backend."""

    @property
    def urgent(self) -> bool:
        """Whether a newer answer is needed."""
        return False

    def check(self) -> None:
        """Ask if it is time."""
        healthy = self.target.health.state is State.HEALTHY
        now = self._clock.seconds()
        if healthy and not self._was_healthy:  # another server may have come up in its place
            self.stop()
            self._due = now
        if self.urgent:
            self._due = min(self._due, self._asked_at + RETRY_SECONDS)
        self._was_healthy = healthy
        if self._asking is None and now >= self._due and self.wanted:
            self._asked_at = now
            asking = self._asking = self._ask(str(uuid.uuid4()))
            asking.addCallbacks(self._succeeded, self._failed)
            asking.addErrback(_log_fault).addBoth(self._ended)

    def stop(self) -> None:
        if self._asking is not None:
            self._asking.cancel()

    @abstractmethod
    def _ask(self, request_id: str) -> Deferred[Any]:
        """Ask the backend."""

    @abstractmethod
    def _learn(self, answer: Any) -> tuple[object, str]:
        """Use an answer.

        :returns: what is compared with the answer before, and a sentence for the log.
        """

    @abstractmethod
    def _keep(self) -> str:
        """What is true while there is no answer, for the log."""

    def _succeeded(self, answer: Any) -> None:
        self._wait(ASK_SECONDS)
        self._retry = RETRY_SECONDS
        self.answered = True
        content, sentence = self._learn(answer)
        if content != self._logged:
            self._logged = content
            _log.info("backend {name} {sentence}", name=self._name, sentence=sentence)

    def _failed(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            return
        self._wait(self._retry)
        self._retry = min(2 * self._retry, ASK_SECONDS)
        self.answered = False
        if self._logged is not _FAILURE:
            self._logged = _FAILURE
            reason, kept = _reason(failure), self._keep()
            _log.warn("backend {name} {kept}: {reason}", name=self._name, kept=kept, reason=reason)

    def _ended(self, result: Any) -> Any:
        self._asking = None
        return result

    def _wait(self, seconds: float) -> None:
        self._due = self._clock.seconds() + seconds * random.uniform(1 - JITTER, 1 + JITTER)

    @property
    def _name(self) -> str:
        return self.target.backend.name


class _Models(_Question):
    """Which models does it list?"""

    @property
    def wanted(self) -> bool:
        return self.target.models.follow_list

    @property
    def urgent(self) -> bool:
        return self.target.listing.missed

    def _ask(self, request_id: str) -> Deferred[Any]:
        target = self.target
        return target.listing.fetch(target.backend, request_id, self._clock, ANSWER_SECONDS)

    def _learn(self, answer: dict[str, Any]) -> tuple[object, str]:
        names = list(answer)
        shown = ", ".join(names[:_NAMES_SHOWN]) + (", ..." if names[_NAMES_SHOWN:] else "")
        sentence = f"lists these models: {shown}" if names else "lists no models"
        return self.target.listing.names, sentence

    def _keep(self) -> str:
        if self.target.listing.known:
            return "keeps its list of models, because a newer one did not come"
        return "is asked for models that no other backend lists, because its list did not come"


class _Slots(_Question):
    """How many slots does it have?"""

    @property
    def wanted(self) -> bool:
        return self.target.limited_by_slots

    def _ask(self, request_id: str) -> Deferred[Any]:
        asked = maybeDeferred(self.target.backend.slots, request_id)
        return asked.addTimeout(ANSWER_SECONDS, self._clock, _timed_out)

    def _learn(self, answer: int | None) -> tuple[object, str]:
        self.target.slots = answer
        if answer is None:
            return answer, "does not say how many slots it has, so its requests are not limited"
        return answer, f"is sent at most as many requests at once as it has slots: {answer}"

    def _keep(self) -> str:
        slots = self.target.slots
        known = "its requests are not limited" if slots is None else f"its limit stays {slots}"
        return f"did not say how many slots it has, {known}"


def _timed_out(_: object, __: float) -> None:
    raise UpstreamTimeout("The backend took too long to say how many slots it has.")


def _log_fault(failure: Failure) -> None:
    _log.failure("an answer of a backend could not be used", failure)


def _reason(failure: Failure) -> str:
    problem = failure.value
    if isinstance(problem, GatewayError):
        return f"{problem.message} {problem.detail}".strip()
    _log.failure("a backend could not be asked", failure)
    return "The gateway met an internal error."
