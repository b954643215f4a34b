"""One backend as routing sees it: models, limit, share, requests in flight, health, rest."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Final, Literal

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from gatewayd.backend.interface import Backend
from gatewayd.wire.errors import BackendFailed

from .evidence import GOOD, NONE, Failure, Outcome, evidence_of, reason_of
from .health import Health
from .listing import Listing
from .made import Made
from .names import ModelNames
from .rendezvous import seed_of
from .rest import Rest

_log = Logger()

#: The limit of a backend whose number of slots is its limit.
AUTO: Final = "auto"
Limit = int | Literal["auto"] | None


class Target:
    """
    :param models: the entries of :class:`.names.ModelNames`.
    :param limit: the most requests in flight at the backend: a number, :data:`AUTO` for as many as
        it has slots, or None for no limit.
    :param alone: whether there is no other backend.
    :param weight: its part of the load, relative to that of other backends with this priority.
    :param priority: the lower, the earlier it is asked.
    """

    def __init__(
        self,
        backend: Backend,
        clock: IReactorTime,
        models: Sequence[tuple[str, str | None]] = (),
        limit: Limit = None,
        alone: bool = True,
        weight: float = 1.0,
        priority: int = 0,
    ) -> None:
        self.backend = backend
        self.listing = Listing()
        self.models = ModelNames(models, self.listing, alone)
        self.health = Health(clock, self._report)
        self.rest = Rest(clock)
        self.in_flight = 0
        self.made = Made()
        self.turn = 0.0  # the latest one (:class:`.order.Turns`)
        self.priority = priority
        self.seed = seed_of(backend.name)
        self._clock = clock
        #: How many slots the backend has; None if that is not known.
        self.slots: int | None = None
        self._limit = limit
        self._weight = weight

    def renew(
        self,
        backend: Backend,
        models: Sequence[tuple[str, str | None]],
        limit: Limit,
        alone: bool,
        weight: float,
        priority: int,
        forget_health: bool,
    ) -> None:
        """Use other settings for the same server.

        Its requests in flight stay counted, and what it lists and has made stays known.
        """
        self.backend, self.models = backend, ModelNames(models, self.listing, alone)
        self._limit, self._weight, self.priority = limit, weight, priority
        if forget_health:
            self.health = Health(self._clock, self._report)

    def _report(self, change: str) -> None:
        _log.warn("backend {name} {change}", name=self.backend.name, change=change)

    @property
    def limited_by_slots(self) -> bool:
        """Whether the backend's slots limit its requests in flight, so that they must be known."""
        return self._limit == AUTO

    @property
    def full(self) -> bool:
        limit = self.slots if self._limit == AUTO else self._limit
        return limit is not None and self.in_flight >= limit

    @property
    def available(self) -> bool:
        """Whether the next request may be sent to this backend."""
        return not self.full and self.health.usable and not self.rest.remaining

    @property
    def available_as_last_resort(self) -> bool:
        """Whether a request that no available backend has taken may be sent to this one."""
        if self.full or self.rest.remaining:
            return False
        return self.health.usable_as_last_resort

    @property
    def share(self) -> float:
        """Its weight, and less than that for some seconds after it has recovered."""
        health = self.health
        return self._weight if health.recovered_at is None else self._weight * health.ramp

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
        self,
        trial: int,
        outcome: Outcome,
        caller: Hashable = None,
        body: bytes = b"",
        used_model: bool = True,
    ) -> None:
        """Count a request as ended, and learn from its outcome.

        :param trial: what :meth:`begin` returned for it; 0 once :meth:`reply_began` was called.
        :param caller: with ``body`` it distinguishes different failures from a repeated one.
        :param used_model: whether the backend had to use a model to reply.
        """
        self.in_flight -= 1
        if used_model and isinstance(outcome, BackendFailed) and outcome.retryable:
            self.rest.note(outcome)
        evidence = evidence_of(outcome, used_model)
        if evidence is GOOD:
            self.health.succeeded()
        elif evidence is NONE:
            self.health.inconclusive(trial)
        else:
            failure = Failure(evidence, caller, hash(body), reason_of(outcome))
            self.health.failed(failure, trial)
