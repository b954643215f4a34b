"""Looks at the backends' health paths, where they have one, besides what requests tell."""

from __future__ import annotations

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from .routing import Router, Target

#: Seconds between two looks at a backend, and how long one may take.
EVERY_SECONDS = 5.0
WAIT_SECONDS = 4.0


class Prober:
    """Looks from :meth:`start` until :meth:`stop`."""

    def __init__(self, router: Router, clock: IReactorTime) -> None:
        self._router = router
        self._clock = clock
        self._next: IDelayedCall | None = None

    def start(self) -> None:
        self._next = self._clock.callLater(EVERY_SECONDS, self.start)
        for target in self._router.targets:
            self._look(target)

    def stop(self) -> None:
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _look(self, target: Target) -> None:
        looking = target.backend.check()
        if looking is None:
            return
        looking.addTimeout(WAIT_SECONDS, self._clock)
        looking.addCallbacks(self._answered, self._failed, (target,), {}, (target,), {})

    @staticmethod
    def _answered(well: bool, target: Target) -> None:
        if well:
            target.health.looks_well()
        else:
            target.health.not_yet()

    @staticmethod
    def _failed(failure: Failure, target: Target) -> None:
        target.health.looks_broken()
