"""Calls that are repeated while a service runs.

Twisted's ``TimerService`` would do, but its module imports Automat and much else that nothing here
uses, which takes a twentieth of the time of a start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

_log = Logger()


class Periodic(Service):
    """A service that calls ``call`` when it starts and then every ``seconds``.

    An exception of ``call`` is logged, and the next call comes as usual; Twisted's ``LoopingCall``
    alone would stop for ever.
    """

    def __init__(self, seconds: float, call: Callable[[], object], clock: Any) -> None:
        self._seconds = seconds
        self._call = call
        self._loop = LoopingCall(self._guarded)
        self._loop.clock = clock

    def startService(self) -> None:
        super().startService()
        self._loop.start(self._seconds)

    def stopService(self) -> None:
        super().stopService()
        if self._loop.running:
            self._loop.stop()

    def _guarded(self) -> None:
        try:
            self._call()
        except Exception:
            _log.failure("a periodic call failed: {call}", call=self._call)
