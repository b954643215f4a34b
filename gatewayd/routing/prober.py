"""Checks the health paths of backends that have one, in addition to the evidence of requests."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from gatewayd.wire.errors import GatewayError

from .health import State
from .router import Router
from .target import Target

#: Seconds between two checks of a healthy backend.
CHECK_SECONDS = 5.0
#: Seconds between two checks of any other backend, because requests wait for its return.
RECHECK_SECONDS = 1.0
#: Seconds that one check may take.
CHECK_TIMEOUT = 4.0


class Prober:
    """:meth:`check` is to be called every :data:`RECHECK_SECONDS`."""

    def __init__(self, router: Router, clock: IReactorTime) -> None:
        self._router = router
        self._clock = clock
        self._began: dict[Target, float] = {}  # when the latest check of each was begun
        self._under_way: set[Target] = set()

    def check(self) -> None:
        """Begin the checks that are due."""
        now = self._clock.seconds()
        for target in self._router.targets:
            healthy = target.health.state is State.HEALTHY
            every = CHECK_SECONDS if healthy else RECHECK_SECONDS
            due = self._began.get(target, now - every) + every
            if target not in self._under_way and now >= due:
                self._began[target] = now
                self._check(target)

    def _check(self, target: Target) -> None:
        check = target.backend.check()
        if check is None:
            return
        self._under_way.add(target)
        check.addTimeout(CHECK_TIMEOUT, self._clock)
        check.addCallbacks(self._answered, self._failed, (target,), {}, (target,), {})

    def _answered(self, healthy: bool, target: Target) -> None:
        self._under_way.discard(target)
        if healthy:
            target.health.check_passed()
        else:
            target.health.check_loading()

    def _failed(self, failure: Failure, target: Target) -> None:
        self._under_way.discard(target)
        problem = failure.value
        reason = problem.message if isinstance(problem, GatewayError) else "no answer in time"
        target.health.check_failed(f"Its health path: {reason}")
