"""One backend as routing sees it: its models, its limit, its requests in flight, its health."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from gatewayd.backend.interface import Backend

from .evidence import Evidence, Failure, Outcome, evidence_of, reason_of
from .health import Health
from .names import ModelNames

_log = Logger()


class Target:
    """
    :param models: the entries of :class:`.names.ModelNames`.
    :param limit: the most requests in flight at the backend; None is no limit.
    """

    def __init__(
        self,
        backend: Backend,
        clock: IReactorTime,
        models: Sequence[tuple[str, str | None]] = (),
        limit: int | None = None,
    ) -> None:
        self.backend = backend
        self.models = ModelNames(models)
        self.health = Health(clock, self._report)
        self.in_flight = 0
        self.turn = 0  # the number of the latest request that was routed here first
        self._clock = clock
        self._limit = limit

    def renew(
        self,
        backend: Backend,
        models: Sequence[tuple[str, str | None]],
        limit: int | None,
        forget_health: bool,
    ) -> None:
        """Use other settings for the same server. Its requests in flight stay counted."""
        self.backend, self.models, self._limit = backend, ModelNames(models), limit
        if forget_health:
            self.health = Health(self._clock, self._report)

    def _report(self, change: str) -> None:
        _log.warn("backend {name} {change}", name=self.backend.name, change=change)

    @property
    def full(self) -> bool:
        return self._limit is not None and self.in_flight >= self._limit

    @property
    def available(self) -> bool:
        """Whether the next request may be sent to this backend."""
        return not self.full and self.health.usable

    @property
    def available_as_last_resort(self) -> bool:
        """Whether a request that no available backend has taken may be sent to this one."""
        return not self.full and self.health.usable_as_last_resort

    # -- the life of one request at this backend -----------------------------------------------

    def begin(self) -> int:
        """Count a request that is sent to the backend; :meth:`settle` must follow exactly once.

        :returns: the number of the trial if this request is the trial, else 0.
        """
        self.in_flight += 1
        return self.health.begin()

    def reply_began(self) -> None:
        """The reply has begun without an error. This decides a trial before the reply has ended."""
        self.health.succeeded()

    def settle(
        self, trial: int, outcome: Outcome, caller: Hashable = None, body: bytes = b""
    ) -> None:
        """Count a request as ended, and learn from its outcome.

        :param trial: what :meth:`begin` returned for it; 0 once :meth:`reply_began` was called.
        :param caller: with ``body`` it distinguishes different failures from a repeated one.
        """
        self.in_flight -= 1
        evidence = evidence_of(outcome)
        if evidence is Evidence.GOOD:
            self.health.succeeded()
        elif evidence is Evidence.NONE:
            self.health.inconclusive(trial)
        else:
            failure = Failure(evidence, caller, hash(body), reason_of(outcome))
            self.health.failed(failure, trial)
