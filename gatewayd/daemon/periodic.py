"""Calls that are repeated while a service runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.application.internet import TimerService
from twisted.logger import Logger

_log = Logger()


def every(seconds: float, call: Callable[[], object], clock: Any) -> TimerService:
    """A service that calls ``call`` when it starts and then every ``seconds``.

    An exception of ``call`` is logged, and the next call comes as usual; Twisted's ``LoopingCall``
    alone would stop for ever.
    """

    def guarded() -> None:
        try:
            call()
        except Exception:
            _log.failure("a periodic call failed: {call}", call=call)

    timer = TimerService(seconds, guarded)
    timer.clock = clock
    return timer
