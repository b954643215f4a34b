"""Looks at the backends' health paths, where they have one, besides what requests tell."""

from __future__ import annotations

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from gatewayd.wire.errors import GatewayError

from .router import Router, Target

#: Seconds between two looks at a backend that is well, and at one that is not: requests wait for
#: the latter. How long one look may take.
EVERY_SECONDS = 5.0
SOON_SECONDS = 1.0
WAIT_SECONDS = 4.0


class Prober:
    """Looks from :meth:`start` until :meth:`stop`."""

    def __init__(self, router: Router, clock: IReactorTime) -> None:
        self._router = router
        self._clock = clock
        self._timer: IDelayedCall | None = None
        self._looked: dict[Target, float] = {}  # when each look was begun
        self._looking: set[Target] = set()

    def start(self) -> None:
        """Look at those whose time has come, and again a second later."""
        self._timer = self._clock.callLater(SOON_SECONDS, self.start)
        now = self._clock.seconds()
        for target in self._router.targets:
            every = EVERY_SECONDS if target.health.state == "well" else SOON_SECONDS
            due = self._looked.get(target, now - every) + every
            if target not in self._looking and now >= due:
                self._looked[target] = now
                self._look(target)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, target: Target) -> None:
        looking = target.backend.check()
        if looking is None:
            return
        self._looking.add(target)
        looking.addTimeout(WAIT_SECONDS, self._clock)
        looking.addCallbacks(self._answered, self._failed, (target,), {}, (target,), {})

    def _answered(self, well: bool, target: Target) -> None:
        self._looking.discard(target)
        if well:
            target.health.looks_well()
        else:
            target.health.not_yet()

    def _failed(self, failure: Failure, target: Target) -> None:
        self._looking.discard(target)
        problem = failure.value
        said = problem.message if isinstance(problem, GatewayError) else "no answer in time"
        target.health.looks_broken(f"Its health path: {said}")
