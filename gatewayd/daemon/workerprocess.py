"""One worker as its supervisor sees it, through all of its lives.

A worker says over a socket of its own that it is ready, and then again and again that its loop
turns, in the way in which a service says so to systemd. One that is silent hangs: SIGKILL ends it,
which no process can miss, and the supervisor starts another.
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
#: For lines that a worker has logged: the worker has decided already which are important enough.
_lines = Logger(namespace=WORKERS)

#: How often the supervisor looks whether workers were heard.
LOOK_SECONDS = 1.0
#: How many looks in a row may find that a worker was not heard and has used no processor time: it
#: is stopped, or waits for what never comes. Looks are counted, not seconds: after a pause of the
#: supervisor itself there is only one.
IDLE_LOOKS = 10
#: The same for one that starts, and for one that is busy: a client may send bodies whose JSON takes
#: seconds to read, and must not be able to end the streams of others with them.
SILENT_LOOKS = 60

#: A worker that lived this long died of something new.
YOUNG_SECONDS = 10.0
LONGEST_BACKOFF = 30.0


def processor_time(pid: int) -> int | None:
    """What a process has used, in ticks of the kernel's clock; None where nobody knows."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            user, system = file.read().rpartition(")")[2].split()[11:13]
    except OSError:
        return None
    return int(user) + int(system)


class WorkerProcess(ProcessProtocol):
    """
    :param heard: called when it has become ready, or has reloaded.
    :param ended: called with the reason when its process is gone.
    """

    transport: Any

    def __init__(
        self,
        number: int,
        reactor: Any,
        heard: Callable[[], None],
        ended: Callable[[WorkerProcess, Failure], None],
    ) -> None:
        self.number = number
        self.runs = False
        self.served = False
        self._reactor = reactor
        self._heard = heard
        self._ended = ended
        self._awaited = 0  # how often it has still to say that it is ready
        self._silent_looks = 0
        self._idle_looks = 0
        self._used: int | None = None
        self._hangs = False
        self._backoff = 0.0
        self._began = 0.0
        self._partial: dict[int, bytes] = {}

    @property
    def ready(self) -> bool:
        """Whether it serves by the settings that it was told last."""
        return self.runs and not self._awaited

    def tell(self, settings: Settings | None) -> None:
        """Have it use other settings, or, with None, only open its log anew."""
        if self.runs:
            self._awaited += settings is not None
            self._write(message(settings))

    def kill(self, number: int) -> None:
        if self.runs:
            with suppress(ProcessExitedAlready):
                self.transport.signalProcess(number)

    def look(self, stopping: bool) -> None:
        """End it if it was not heard for too long."""
        if not self.runs:
            return
        used = processor_time(self.transport.pid)
        self._silent_looks += 1
        self._idle_looks = self._idle_looks + 1 if used == self._used else 0
        self._used = used
        waits = (self.served or stopping) and self._idle_looks >= IDLE_LOOKS
        if waits or self._silent_looks >= SILENT_LOOKS:
            if not self._hangs:
                seconds = self._silent_looks * LOOK_SECONDS
                said = f"worker {self.number} hangs: it has said nothing for {seconds:g} s"
                _log.error("{said} and is killed", said=said)
            self._hangs = True
            self.kill(signal.SIGKILL)

    def next_start_in(self) -> float:
        """Seconds until it may be started again: more and more while its lives are short."""
        lived = self._reactor.seconds() - self._began
        later = min(self._backoff * 2 + 0.5, LONGEST_BACKOFF)
        self._backoff = 0.0 if lived > YOUNG_SECONDS else later
        return self._backoff

    # -- its start -----------------------------------------------------------------------------

    def start(self, spawn: Callable[[WorkerProcess], None], handover: Handover) -> None:
        """Have ``spawn`` start a process, and hand over.

        :raises OSError: none could be started.
        """
        self._began = self._reactor.seconds()
        self._silent_looks = self._idle_looks = 0
        self._hangs = False
        spawn(self)
        self.runs, self.served, self._awaited = True, False, 1
        self._write(message(handover))

    def _write(self, data: bytes) -> None:
        with suppress(KeyError):  # how Twisted says that the pipe is closed: the process ends
            self.transport.writeToChild(0, data)

    # -- what comes from it --------------------------------------------------------------------

    def notified(self, lines: list[str]) -> None:
        """It has sent what a service would send to systemd."""
        self._silent_looks = self._idle_looks = 0
        if "READY=1" in lines and self._awaited:
            self._awaited -= 1
            self.served = True
            self._heard()

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        *lines, self._partial[childFD] = (self._partial.get(childFD, b"") + data).split(b"\n")
        for line in lines:
            _lines.info("{line}", line=line.decode("utf-8", "replace"))

    def processEnded(self, reason: Failure) -> None:
        for line in filter(None, self._partial.values()):
            _lines.info("{line}", line=line.decode("utf-8", "replace"))
        self._partial.clear()
        self.runs = False
        self._ended(self, reason)


class Notices(DatagramProtocol):
    """Hears what one worker says."""

    def __init__(self, worker: WorkerProcess) -> None:
        self._worker = worker

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self._worker.notified(datagram.decode("utf-8", "replace").split("\n"))
