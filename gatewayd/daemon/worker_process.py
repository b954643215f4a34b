"""One worker as its supervisor sees it, through all of its processes.

A worker reports over a socket of its own that it is ready, and then at regular intervals that its
event loop runs, in the form in which services report to systemd. A worker that is silent for too
long hangs: it is killed with SIGKILL, which no process can block, and the supervisor starts
another.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import DatagramProtocol, ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from gatewayd.settings.model import Settings
from gatewayd.telemetry.errorlog import WORKERS

from .worker import Handover, message

_log = Logger()
#: For lines that a worker has logged. They have passed the log level of the worker already.
_lines = Logger(namespace=WORKERS)

#: Seconds between two checks whether the workers have reported.
CHECK_SECONDS = 1.0
#: After so many checks in a row without a report and without use of processor time, a worker that
#: has been ready hangs: it is stopped, or waits for something that never comes. Checks are counted,
#: not seconds, because a supervisor that was itself paused makes only one check for the pause.
IDLE_CHECKS = 10
#: The same for a worker that starts or is busy. A client may send bodies whose JSON takes seconds
#: to read, and must not be able to end the streams of other clients that way.
SILENT_CHECKS = 60

#: A process that lived at least so many seconds has not failed for the reason of the one before.
YOUNG_SECONDS = 10.0
LONGEST_BACKOFF = 30.0


def processor_time(pid: int) -> int | None:
    """The processor time that a process has used, in clock ticks; None if it cannot be read."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            user, system = file.read().rpartition(")")[2].split()[11:13]
    except OSError:
        return None
    return int(user) + int(system)


class WorkerProcess(ProcessProtocol):
    """
    :param on_ready: called when it has become ready, or has reloaded.
    :param on_end: called with the reason when its process has ended.
    """

    transport: Any

    def __init__(
        self,
        number: int,
        reactor: Any,
        on_ready: Callable[[], None],
        on_end: Callable[[WorkerProcess, Failure], None],
    ) -> None:
        self.number = number
        self.runs = False
        self._reactor = reactor
        self._on_ready = on_ready
        self._on_end = on_end
        self._was_ready = False
        self._awaited = 0  # how many reports of readiness are still to come
        self._silent_checks = 0
        self._idle_checks = 0
        self._processor_time: int | None = None
        self._hangs = False
        self._backoff = 0.0
        self._began = 0.0
        self._partial: dict[int, bytes] = {}

    @property
    def ready(self) -> bool:
        """Whether it serves by the settings that it was sent last."""
        return self.runs and not self._awaited

    def send(self, settings: Settings | None) -> None:
        """Have it use these settings, or, with None, only reopen its log."""
        if self.runs:
            self._awaited += settings is not None
            self._write(message(settings))

    def kill(self, number: int) -> None:
        """Send a signal."""
        if self.runs:
            with suppress(ProcessExitedAlready):
                self.transport.signalProcess(number)

    def check(self, stopping: bool) -> None:
        """Kill it if it has been silent for too long."""
        if not self.runs:
            return
        used = processor_time(self.transport.pid)
        self._silent_checks += 1
        self._idle_checks = self._idle_checks + 1 if used == self._processor_time else 0
        self._processor_time = used
        idle = (self._was_ready or stopping) and self._idle_checks >= IDLE_CHECKS
        if idle or self._silent_checks >= SILENT_CHECKS:
            if not self._hangs:
                _log.error(
                    "worker {number} hangs: it has said nothing for {seconds:g} s and is killed",
                    number=self.number,
                    seconds=self._silent_checks * CHECK_SECONDS,
                )
            self._hangs = True
            self.kill(signal.SIGKILL)

    def next_start_in(self) -> float:
        """Seconds until it may be started again; they grow while its processes live briefly."""
        lived = self._reactor.seconds() - self._began
        longer = min(self._backoff * 2 + 0.5, LONGEST_BACKOFF)
        self._backoff = 0.0 if lived > YOUNG_SECONDS else longer
        return self._backoff

    # -- its start -----------------------------------------------------------------------------

    def start(self, spawn: Callable[[WorkerProcess], None], handover: Handover) -> None:
        """Have ``spawn`` start a process, and send it the handover.

        :raises OSError: none could be started.
        """
        self._began = self._reactor.seconds()
        self._silent_checks = self._idle_checks = 0
        self._hangs = False
        spawn(self)
        self.runs, self._was_ready, self._awaited = True, False, 1
        self._write(message(handover))

    def _write(self, data: bytes) -> None:
        with suppress(KeyError):  # Twisted raises it if the pipe is closed: the process ends
            self.transport.writeToChild(0, data)

    # -- what comes from it --------------------------------------------------------------------

    def notified(self, lines: list[str]) -> None:
        """It has sent what a service would send to systemd."""
        self._silent_checks = self._idle_checks = 0
        if "READY=1" in lines and self._awaited:
            self._awaited -= 1
            self._was_ready = True
            self._on_ready()

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        *lines, self._partial[childFD] = (self._partial.get(childFD, b"") + data).split(b"\n")
        for line in lines:
            _lines.info("{line}", line=line.decode("utf-8", "replace"))

    def processEnded(self, reason: Failure) -> None:
        for line in filter(None, self._partial.values()):
            _lines.info("{line}", line=line.decode("utf-8", "replace"))
        self._partial.clear()
        self.runs = False
        self._on_end(self, reason)


class NotifySocket(DatagramProtocol):
    """Receives what one worker reports."""

    def __init__(self, worker: WorkerProcess) -> None:
        self._worker = worker

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self._worker.notified(datagram.decode("utf-8", "replace").split("\n"))
