"""What signals do: stop, stop at once, reload.

SIGTERM and SIGINT stop, and the exit status is 0: the reactor's own handlers would make twistd end
itself by the same signal at last, which to a supervisor is a failure. A second one does not wait.

The handlers can be installed only when the reactor runs, because the reactor installs its own just
before. The port is open earlier than that. So :func:`hold` blocks the signals when the start
begins: the kernel keeps them until the handlers are there. A worker is born with them blocked.

Once the reactor's loop has ended nothing is left to stop, but Python still takes a while to exit,
and on its way it gives signals their default meaning back: one that comes then would end a clean
stop with the status of a kill. So they are ignored from there on. (A signal by which twistd wants
to end itself still does: twistd undoes that.)
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_STOPS = (signal.SIGTERM, signal.SIGINT)

#: One stop is often told twice, by different signals: Ctrl-C reaches every process of a terminal,
#: and a parent that hears it passes SIGTERM on. Within this time that is no second stop.
TOGETHER_SECONDS = 1.0


def hold() -> None:
    """Let the signals handled here wait, until :class:`Signals` has installed its handlers.

    SIGQUIT does not wait: it ends a start that hangs.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, (*_STOPS, signal.SIGHUP))


@contextmanager
def held_for_workers() -> Iterator[None]:
    """A process that is started meanwhile has all signals blocked that a worker handles."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*_STOPS, signal.SIGQUIT, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
        self._first: int | None = None
        self._first_at = 0.0

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
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (*self._stops, signal.SIGHUP))

    def _ignore(self) -> None:
        for number in (*self._stops, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)

    def _on_stop(self, number: int, frame: object) -> None:
        if self._first is None and not self._stopping:
            self._first, self._first_at = number, self._reactor.seconds()
            self._reactor.callFromThread(self.stop)
        elif number in self._second and self._is_another(number):
            # Later than the stop, which may have been asked for in the same turn of the loop.
            self._reactor.callFromThread(self._reactor.callLater, 0, self._stop_at_once)

    def _is_another(self, number: int) -> bool:
        """Whether this asks for a second stop, or is one more sign of the first."""
        passed = self._reactor.seconds() - self._first_at
        return number in (self._first, signal.SIGQUIT) or passed > TOGETHER_SECONDS

    def _on_reload(self, number: int, frame: object) -> None:
        self._reactor.callFromThread(self._reload)
