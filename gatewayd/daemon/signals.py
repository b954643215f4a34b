"""What signals do: stop, stop at once, reload.

SIGTERM and SIGINT stop the daemon, and the exit status is 0. With the reactor's own handlers
twistd would finally end itself by the same signal, which a supervisor takes for a failure. A
second SIGTERM or SIGINT closes all connections at once.

The handlers can only be installed when the reactor runs, because the reactor installs its own just
before. The port is open earlier than that. So :func:`hold` blocks the signals when the start
begins, and the kernel keeps them until the handlers are installed. A worker is started with them
blocked.

After the end of the reactor's loop nothing is left to stop, but Python takes a while to exit and
restores the default action of signals meanwhile. A signal at that time would end a clean stop with
the status of a killed process. So the signals are ignored from the end of the loop on. (twistd
undoes that where it ends itself by a signal.)
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_STOPS = (signal.SIGTERM, signal.SIGINT)

#: Two different signals within so many seconds are one stop. Ctrl-C reaches every process of a
#: terminal, and a parent process often sends SIGTERM as well.
TOGETHER_SECONDS = 1.0


def hold() -> None:
    """Block the signals handled here until :class:`Signals` has installed its handlers.

    SIGQUIT is not blocked, so it can end a start that hangs.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, (*_STOPS, signal.SIGHUP))


@contextmanager
def held_for_workers() -> Iterator[None]:
    """Block all signals that a worker handles; a process started meanwhile inherits that."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*_STOPS, signal.SIGQUIT, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Signals:
    """
    :param stop_at_once: what a second stop does.
    :param reload: what SIGHUP does.
    :param worker: whether a supervisor has started this process. A worker may be sent signals for
        the same stop by several processes (the terminal or systemd, and the supervisor), so only
        SIGQUIT stops it at once.
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
        self._first: int | None = None
        self._first_at = 0.0

    def install(self) -> None:
        """Install the handlers as soon as the reactor runs and has installed its own."""
        self._reactor.callWhenRunning(self._install)
        self._reactor.addSystemEventTrigger("after", "shutdown", self._ignore)

    def stop(self) -> None:
        """Stop, unless a stop has begun."""
        if not self._stopping:
            self._stopping = True
            self._reactor.stop()

    def _install(self) -> None:
        for number in self._stops:
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_reload)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (*self._stops, signal.SIGHUP))

    def _ignore(self) -> None:
        for number in (*self._stops, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)

    def _on_stop(self, number: int, frame: object) -> None:
        if self._first is None and not self._stopping:
            self._first, self._first_at = number, self._reactor.seconds()
            self._reactor.callFromThread(self.stop)
        elif number in self._second and self._is_another(number):
            # In a later turn of the loop, because the first stop may be handled in this one.
            self._reactor.callFromThread(self._reactor.callLater, 0, self._stop_at_once)

    def _is_another(self, number: int) -> bool:
        """Whether this signal means a second stop, and not the first one again."""
        passed = self._reactor.seconds() - self._first_at
        return number in (self._first, signal.SIGQUIT) or passed > TOGETHER_SECONDS

    def _on_reload(self, number: int, frame: object) -> None:
        self._reactor.callFromThread(self._reload)
