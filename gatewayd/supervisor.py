"""``workers`` above 1: one process that serves nothing and starts those that do.

The supervisor binds the port (or takes it from systemd) and gives the listening socket to every
worker, so that connections which wait there outlive any of them. A worker is the same command
line again in the foreground, with :data:`gatewayd.worker.WORKER_SOCKET` in its environment.

A worker that dies is started again, at once the first time and later and later if it dies young.
SIGHUP goes to all of them (to one that is starting, as soon as it can hear it), and so does a stop:
the supervisor ends when the last of them has. Should it die before them, they notice by their
standard input, which it holds, and stop: else they would keep the port from the next one.
Workers say that they are ready the way a service tells systemd; the supervisor hears it and tells
systemd when all of them are.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import DatagramProtocol, ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from gatewayd.api.metrics import MetricsPage
from gatewayd.api.site import Site
from gatewayd.config import Settings
from gatewayd.listening import bind, listen
from gatewayd.notify import Systemd, inherited_socket
from gatewayd.signals import Signals, held_for_workers
from gatewayd.telemetry.metrics import SHARED, forget_worker, shared_text
from gatewayd.worker import WORKER_NUMBER, WORKER_SOCKET

_log = Logger()

#: A worker that lived this long died of something new.
YOUNG_SECONDS = 10.0
LONGEST_BACKOFF = 30.0

_RUN = "from twisted.scripts.twistd import run; run()"
#: What systemd says to this process alone.
_NOT_INHERITED = ("LISTEN_FDNAMES", "WATCHDOG_PID", "WATCHDOG_USEC")


class Worker(ProcessProtocol):
    """One worker, through all of its lives."""

    def __init__(self, supervisor: Supervisor, number: int) -> None:
        self.supervisor = supervisor
        self.number = number
        self.ready = False
        self.reload_when_ready = False
        self.pid: int | None = None
        self._backoff = 0.0
        self._began = 0.0

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.pid = self.transport.pid
        self._began = self.supervisor.reactor.seconds()

    def outReceived(self, data: bytes) -> None:
        _log.info("{lines}", lines=data.decode("utf-8", "replace").rstrip("\n"))

    errReceived = outReceived

    def processEnded(self, reason: Failure) -> None:
        lived = self.supervisor.reactor.seconds() - self._began
        later = min(self._backoff * 2 + 0.5, LONGEST_BACKOFF)
        self._backoff = 0.0 if lived > YOUNG_SECONDS else later
        if self.pid is not None:
            forget_worker(self.number, self.supervisor.folder)
        served, self.ready, self.reload_when_ready, self.pid = self.ready, False, False, None
        self.supervisor.ended(self, reason, served, self._backoff)

    def kill(self, number: int) -> None:
        if self.pid is not None:
            os.kill(self.pid, number)

    def reload(self) -> None:
        """Have it read its settings again. While it starts, SIGHUP would end it."""
        if self.ready:
            self.kill(signal.SIGHUP)
        else:
            self.reload_when_ready = True

    def is_ready(self) -> None:
        self.ready = True
        if self.reload_when_ready:
            self.reload_when_ready = False
            self.reload()


class Supervisor(Service):
    """
    :param arguments: the command line after ``gatewayd``.
    :param foreground: whether the workers' output goes where this process's own goes; else it
        goes to the log.
    """

    name = "gatewayd"

    def __init__(
        self, settings: Settings, arguments: Sequence[str], foreground: bool, reactor: Any
    ) -> None:
        self.settings = settings
        self.reactor = reactor
        self.folder = ""
        self._arguments = list(arguments)
        self._foreground = foreground
        self._systemd = Systemd()
        self._workers = [Worker(self, n) for n in range(settings.gateway.workers)]
        self._socket: socket.socket | None = None
        self._metrics_port: Any = None
        self._waiting: dict[Worker, IDelayedCall] = {}
        self._watchdog: IDelayedCall | None = None
        self._announced = False
        self._signals = Signals(
            lambda: self._tell_all(signal.SIGQUIT), self._reload_all, self.reactor
        )
        self._stopped: Deferred[None] | None = None

    # -- start ---------------------------------------------------------------------------------

    def privilegedStartService(self) -> None:
        super().privilegedStartService()
        gateway, inherited = self.settings.gateway, inherited_socket()
        if inherited is None:
            self._socket = bind(gateway.listen, gateway.port)
        else:
            self._socket = socket.socket(fileno=inherited)
        if self.settings.metrics.listen is not None:
            page = MetricsPage(self._metrics)
            site = Site(page, self.settings, self.reactor, lambda _: None, lambda _: None)
            self._metrics_port = listen(self.reactor, *self.settings.metrics.listen, site)

    def startService(self) -> None:
        if self._socket is None:
            self.privilegedStartService()
        super().startService()
        self.folder = tempfile.mkdtemp(prefix="gatewayd-")
        self.reactor.listenUNIXDatagram(f"{self.folder}/notify", _Notices(self))
        for worker in self._workers:
            self._start(worker)
        self._signals.install()

    def _start(self, worker: Worker) -> None:
        assert self._socket is not None
        self._waiting.pop(worker, None)
        environment = {k: v for k, v in os.environ.items() if k not in _NOT_INHERITED}
        environment.update(
            {
                WORKER_SOCKET: "3",
                SHARED: self.folder,
                "NOTIFY_SOCKET": f"{self.folder}/notify",
                WORKER_NUMBER: str(worker.number),
            }
        )
        output: dict[int, Any] = {1: 1, 2: 2} if self._foreground else {1: "r", 2: "r"}
        command = [sys.executable, "-c", _RUN, "--nodaemon", "--pidfile=", "gatewayd"]
        with held_for_workers():
            self.reactor.spawnProcess(
                worker,
                sys.executable,
                [*command, *self._arguments],
                environment,
                childFDs={0: "w", **output, 3: self._socket.fileno()},
            )

    # -- while it runs -------------------------------------------------------------------------

    def heard(self, pid: int, lines: Sequence[str]) -> None:
        """A worker says something, as a service does to systemd."""
        for worker in self._workers:
            if worker.pid == pid and "READY=1" in lines:
                worker.is_ready()
        if self._announced or self._stopped is not None:
            return
        if all(worker.ready for worker in self._workers):
            self._announced = True
            said = f"{len(self._workers)} workers serve"
            _log.info("gatewayd: {said}", said=said)
            self._systemd.ready(said)
            self._feed_watchdog()

    def ended(self, worker: Worker, reason: Failure, served: bool, backoff: float) -> None:
        number, why = worker.number, reason.value
        if self._stopped is None:
            said = f"the next starts in {backoff} s"
            _log.error("worker {number} ended: {why}; {said}", number=number, why=why, said=said)
            self._waiting[worker] = self.reactor.callLater(backoff, self._start, worker)
            return
        if served and not reason.check(ProcessDone):
            _log.error("worker {number} ended while it stopped: {why}", number=number, why=why)
        if not any(worker.pid for worker in self._workers) and not self._stopped.called:
            self._stopped.callback(None)

    def _metrics(self) -> bytes:
        return shared_text(self.folder)

    def _feed_watchdog(self) -> None:
        if self._systemd.watchdog_seconds:
            self._systemd.alive()
            seconds = self._systemd.watchdog_seconds
            self._watchdog = self.reactor.callLater(seconds, self._feed_watchdog)

    # -- reload and stop -----------------------------------------------------------------------

    def _reload_all(self) -> None:
        if self._stopped is not None:
            return
        self._systemd.reloading()
        for worker in self._workers:
            worker.reload()
        self._systemd.ready(f"{len(self._workers)} workers were told to reload")

    def _tell_all(self, number: int) -> None:
        for worker in self._workers:
            worker.kill(number)

    def stopService(self) -> Deferred[None]:
        super().stopService()
        self._systemd.stopping("waits for the workers")
        self._stopped = Deferred()
        self._stopped.addBoth(lambda _: shutil.rmtree(self.folder, ignore_errors=True))
        for call in [*self._waiting.values(), *filter(None, [self._watchdog])]:
            if call.active():
                call.cancel()
        if self._socket is not None:
            self._socket.close()
        if self._metrics_port is not None:
            self._metrics_port.stopListening()
        self._tell_all(signal.SIGTERM)
        if not any(worker.pid for worker in self._workers):
            self._stopped.callback(None)
        return self._stopped


class _Notices(DatagramProtocol):
    """Hears what the workers say. A line ``PID=`` says who speaks."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        lines = datagram.decode("utf-8", "replace").split("\n")
        pid = next((line[4:] for line in lines if line.startswith("PID=")), "")
        if pid.isdigit():
            self._supervisor.heard(int(pid), lines)
