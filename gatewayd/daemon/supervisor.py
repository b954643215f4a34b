"""``workers`` above 1: the process that starts the workers and relays no request itself.

The supervisor binds the port (or takes sockets from systemd) and gives the listening sockets to
every worker. So connections that wait to be accepted survive the end of any worker.

The supervisor alone reads settings. It sends each worker the settings that it has accepted over
the worker's standard input: when the worker starts, and after each reload. If the supervisor dies,
its workers notice that by the same pipe and stop; otherwise they would keep the port from the next
supervisor.

A worker that ends, that hangs (:mod:`.worker_process`) or that could not be started is started
again, after a delay that grows while its processes live briefly. A stop is sent to all workers,
and the supervisor ends when the last of them has ended. systemd is told READY when all workers use
the settings that were accepted last.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone
from twisted.internet.interfaces import IDelayedCall, IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from gatewayd.api.metrics import CONNECTIONS, metrics_site
from gatewayd.api.site import Site
from gatewayd.settings.model import Settings
from gatewayd.telemetry import errorlog
from gatewayd.telemetry.multiprocess import forget_worker, shared_text

from . import reload_command, spawning
from .generation import Generation, build, warnings
from .listening import bind, listen, take
from .notify import Systemd, inherited_sockets
from .periodic import Periodic
from .reload import prepare
from .shared_folder import SharedFolder
from .signals import Signals, held_for_workers
from .worker import Handover
from .worker_process import CHECK_SECONDS, NotifySocket, WorkerProcess

_log = Logger()

#: Seconds that workers get to end by themselves after a second stop.
LAST_SECONDS = 2.0


class Supervisor(MultiService):
    """
    :param load: reads the settings again.
    :param twistd_options: of the workers, besides those for the foreground.
    :param foreground: whether the workers' output goes where this process's output goes; otherwise
        it goes to the log.
    :raises SettingsError: the workers could not use the settings.
    """

    name = "gatewayd"

    def __init__(
        self,
        settings: Settings,
        load: Callable[[], Settings],
        reactor: Any,
        twistd_options: Sequence[str],
        foreground: bool,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.reactor = reactor
        self._build(settings)  # otherwise each worker would fail, again and again
        self._load = load
        self._command = spawning.command(twistd_options)
        self._foreground = foreground
        self._systemd = Systemd()
        self._workers = [
            WorkerProcess(number, reactor, self._worker_ready, self._worker_ended)
            for number in range(settings.gateway.workers)
        ]
        self._sockets: list[socket.socket] = []
        self._kept = False
        self._folder: SharedFolder | None = None
        self._metrics_port: IListeningPort | None = None
        self._metrics_site: Site | None = None
        self._restarts: dict[WorkerProcess, IDelayedCall] = {}
        self._last_kill: IDelayedCall | None = None
        self._announced = False
        self._reloading = False
        #: Whether the last reload failed and changed nothing.
        self._failed = False
        self._signals = Signals(self._stop_at_once, self.reload, reactor)
        self._stopped: Deferred[None] | None = None
        Periodic(CHECK_SECONDS, self._check_workers, reactor).setServiceParent(self)

    def _build(self, settings: Settings) -> Generation:
        """Build what the workers will build; raises what they would raise."""
        return build(settings, self.reactor, bytes)

    # -- start ---------------------------------------------------------------------------------

    def privilegedStartService(self) -> None:
        super().privilegedStartService()
        gateway = self.settings.gateway
        self._sockets = [take(descriptor) for descriptor in inherited_sockets()]
        self._kept = bool(self._sockets)
        if not self._sockets:
            self._sockets = [bind(gateway.listen, gateway.port)]
        if self.settings.metrics.listen is not None:
            site = metrics_site(self._metrics, self.settings, self.reactor)
            self._metrics_site = site
            self._metrics_port = listen(self.reactor, *self.settings.metrics.listen, site)

    def startService(self) -> None:
        if not self._sockets:
            self.privilegedStartService()
        super().startService()
        for warning in warnings(self.settings):
            _log.warn("{warning}", warning=warning)
        self._folder = SharedFolder()
        for worker in self._workers:
            address = self._notify_address(worker)
            self.reactor.listenUNIXDatagram(address, NotifySocket(worker))
            self._start(worker)
        self._signals.install()

    def _notify_address(self, worker: WorkerProcess) -> str:
        assert self._folder is not None
        return f"{self._folder.path}/notify-{worker.number}"

    def _start(self, worker: WorkerProcess) -> None:
        # The warnings about the settings are logged already, once.
        settings = attrs.evolve(self.settings, warnings=())
        try:
            worker.start(self._spawn, Handover(settings, len(self._sockets), self._kept))
        except OSError as e:  # no descriptor or no process is left
            self._start_again(worker, f"could not be started: {e.strerror}")

    def _spawn(self, worker: WorkerProcess) -> None:
        folder = self._folder
        assert folder is not None
        address = self._notify_address(worker)
        sockets = [each.fileno() for each in self._sockets]
        with held_for_workers():
            self.reactor.spawnProcess(
                worker,
                sys.executable,
                self._command,
                spawning.environment(os.environ, worker.number, folder.path, address),
                childFDs=spawning.descriptors(self._foreground, sockets, folder.lock),
            )

    def _start_again(self, worker: WorkerProcess, why: str) -> None:
        seconds = worker.next_start_in()
        _log.error(
            "worker {number} {why}; the next starts in {seconds} s",
            number=worker.number,
            why=why,
            seconds=seconds,
        )
        self._restarts[worker] = self.reactor.callLater(seconds, self._start, worker)

    # -- while it runs -------------------------------------------------------------------------

    def _worker_ready(self) -> None:
        """A worker uses the settings that it was sent last. Tell systemd when all of them do."""
        if self._stopped is not None or not all(worker.ready for worker in self._workers):
            return
        status = f"{len(self._workers)} workers serve"
        if not self._announced:
            self._announced = True
            _log.info("gatewayd: {status}", status=status)
            self._systemd.ready(status)
            if seconds := self._systemd.watchdog_seconds:
                Periodic(seconds, self._systemd.alive, self.reactor).setServiceParent(self)
        if self._reloading:
            self._systemd.reloaded(status, self._failed)
        self._reloading = False

    def _worker_ended(self, worker: WorkerProcess, reason: Failure) -> None:
        number, why = worker.number, reason.value
        if self._folder is not None:
            forget_worker(number, self._folder.path)
        if self._stopped is None:
            self._start_again(worker, f"ended: {why}")
            return
        if not reason.check(ProcessDone):
            _log.error("worker {number} ended while it stopped: {why}", number=number, why=why)
        self._stop_if_alone()

    def _check_workers(self) -> None:
        for worker in self._workers:
            worker.check(self._stopped is not None)

    def _metrics(self) -> bytes:
        assert self._folder is not None
        return shared_text(self._folder.path)

    # -- reload --------------------------------------------------------------------------------

    def reload(self) -> None:
        """Read the settings again and have the workers use them, or log why not."""
        if self._stopped is not None:
            self._send_all(None)
            reload_command.answer(failed=True)
            return
        self._systemd.reloading()
        self._reloading = True
        generation = prepare(self.settings, self._load, self._build)
        self._failed = generation is None
        if generation is None:
            self._send_all(None)
        else:
            self._accept(generation.settings)
        self._worker_ready()

    def _accept(self, settings: Settings) -> None:
        self.settings = settings
        errorlog.set_level(settings.log.level)
        for warning in warnings(settings):
            _log.warn("{warning}", warning=warning)
        if self._metrics_site is not None:
            self._metrics_site.state.use(settings, CONNECTIONS)
        self._send_all(attrs.evolve(settings, warnings=()))

    def _send_all(self, settings: Settings | None) -> None:
        for worker in self._workers:
            worker.send(settings)

    # -- stop ----------------------------------------------------------------------------------

    def stopService(self) -> Deferred[None]:
        self._systemd.stopping("waits for the workers")
        self._stopped = Deferred()
        for restart in self._restarts.values():
            if restart.active():
                restart.cancel()
        for given in self._sockets:
            given.close()
        if self._metrics_port is not None:
            self._metrics_port.stopListening()
        self._kill_all(signal.SIGTERM)
        stopped = self._stopped.addCallback(self._finish)
        self._stop_if_alone()
        return stopped

    def _kill_all(self, number: int) -> None:
        for worker in self._workers:
            worker.kill(number)

    def _stop_at_once(self) -> None:
        self._kill_all(signal.SIGQUIT)
        self._last_kill = self.reactor.callLater(LAST_SECONDS, self._kill_all, signal.SIGKILL)

    def _stop_if_alone(self) -> None:
        assert self._stopped is not None
        if not any(worker.runs for worker in self._workers) and not self._stopped.called:
            self._stopped.callback(None)

    def _finish(self, _: None) -> Any:
        if self._last_kill is not None and self._last_kill.active():
            self._last_kill.cancel()
        if self._folder is not None:
            self._folder.remove()
        return super().stopService()
