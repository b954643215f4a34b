"""What signals do: stop, stop at once, reload.

SIGTERM and SIGINT stop, and the exit status is 0: the reactor's own handlers would make twistd end
itself by the same signal at last, which to a supervisor is a failure. A second one does not wait.
Once the reactor's loop has ended nothing is left to stop, but Python still takes a while to exit,
and on its way it gives signals their default meaning back: one that comes then would end a clean
stop with the status of a kill. So they are ignored from there on. (A signal by which twistd wants
to end itself still does: twistd undoes that.)
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

_STOPS = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """
    :param stop_at_once: what a second stop does.
    :param reload: what SIGHUP does.
    :param worker: whether a supervisor has started this process. It may hear of one stop from
        several sides then (a terminal and systemd tell each process, and so does the supervisor):
        only SIGQUIT ends it at once.
    """

    def __init__(
        self,
        stop_at_once: Callable[[], None],
        reload: Callable[[], None],
        reactor: Any,
        worker: bool = False,
    ) -> None:
        self._stop_at_once = stop_at_once
        self._reload = reload
        self._reactor = reactor
        self._stops = (*_STOPS, signal.SIGQUIT) if worker else _STOPS
        self._second = (signal.SIGQUIT,) if worker else _STOPS
        self._stopping = False

    def install(self) -> None:
        """Handle them as soon as the reactor runs, which is when its own handlers are there."""
        self._reactor.callWhenRunning(self._install)
        self._reactor.addSystemEventTrigger("after", "shutdown", self._ignore)

    def stop(self) -> None:
        """Stop, unless that has begun."""
        if not self._stopping:
            self._stopping = True
            self._reactor.stop()

    def _install(self) -> None:
        for number in self._stops:
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_reload)

    def _ignore(self) -> None:
        for number in (*self._stops, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)

    def _on_stop(self, number: int, frame: object) -> None:
        if not self._stopping:
            self._reactor.callFromThread(self.stop)
        elif number in self._second:
            self._reactor.callFromThread(self._stop_at_once)

    def _on_reload(self, number: int, frame: object) -> None:
        self._reactor.callFromThread(self._reload)
