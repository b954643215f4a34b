"""``workers`` above 1: one process that serves nothing and starts those that do.

The supervisor binds the port (or takes sockets from systemd) and gives the listening sockets to
every worker, so that connections which wait there outlive any of them. A worker is ``twistd
gatewayd`` again in the foreground, with :data:`gatewayd.daemon.worker.WORKER_NUMBER` in its
environment.

The supervisor alone reads settings. A worker is handed what the supervisor has accepted, over its
standard input: when it starts, and after each reload. It notices by the same pipe that the
supervisor has died, and stops: else it would keep the port from the next one.

A worker that ends, that hangs (:mod:`gatewayd.daemon.workerprocess`) or that could not be started
is started again, later and later while its lives are short. A stop goes to all of them; the
supervisor ends when the last of them has. systemd is told READY when all of them serve by the
settings that were accepted last.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from gatewayd.api.metrics import CONNECTIONS, metrics_site
from gatewayd.api.site import Site
from gatewayd.settings.load import SettingsError
from gatewayd.settings.model import Settings
from gatewayd.telemetry import errorlog
from gatewayd.telemetry.multiprocess import FOLDER_VARIABLE, forget_worker, shared_text

from . import reloading
from .bound import keep_bound
from .listening import bind, listen, take
from .notify import Systemd, inherited_sockets
from .sharedfolder import SharedFolder
from .signals import Signals, held_for_workers
from .worker import FIRST_SOCKET, WORKER_NUMBER, Handover
from .workerprocess import LOOK_SECONDS, Notices, WorkerProcess
from .world import build, dangers

_log = Logger()

#: How long a second stop gives workers to end by themselves.
LAST_SECONDS = 2.0

#: How often a worker says that its loop turns, as systemd's variable has it: in microseconds, and
#: for twice the time between two of them.
_BEAT = str(int(2 * LOOK_SECONDS * 1e6))

_RUN = "from twisted.scripts.twistd import run; run()"
#: Where modules are found, whatever folder twistd works in later.
_PATH = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
#: What is meant for this process alone: what systemd says to it, and settings, which may hold keys.
_NOT_INHERITED = re.compile("(LISTEN_|WATCHDOG_|GATEWAYD_).*|PORT|BACKEND_URL").fullmatch


class Supervisor(Service):
    """
    Making one raises :class:`SettingsError` where the workers could not use the settings.

    :param load: reads the settings again.
    :param twistd_options: of the workers, besides those for the foreground.
    :param foreground: whether the workers' output goes where this process's own goes; else it
        goes to the log.
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
        build(settings, reactor, bytes)  # the workers would fail, again and again
        self.settings = settings
        self.reactor = reactor
        self._load = load
        self._command = [sys.executable, "-P", "-c", _RUN, "--nodaemon", "--pidfile="]
        self._command += [*twistd_options, "gatewayd"]
        self._foreground = foreground
        self._systemd = Systemd()
        self._workers = [
            WorkerProcess(n, reactor, self._heard, self._ended)
            for n in range(settings.gateway.workers)
        ]
        self._sockets: list[socket.socket] = []
        self._kept = False
        self._folder: SharedFolder | None = None
        self._metrics_port: Any = None
        self._metrics_site: Site | None = None
        self._timers: dict[object, IDelayedCall] = {}
        self._announced = False
        self._reloading = False
        #: Whether the last reload changed nothing.
        self._failed = False
        self._signals = Signals(self._stop_at_once, self._reload, reactor)
        self._stopped: Deferred[None] | None = None

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
        for said in dangers(self.settings):
            _log.warn("{said}", said=said)
        self._folder = SharedFolder()
        for worker in self._workers:
            self.reactor.listenUNIXDatagram(self._notify_address(worker), Notices(worker))
            self._start(worker)
        self._signals.install()
        self._every(LOOK_SECONDS, self._look)

    def _notify_address(self, worker: WorkerProcess) -> str:
        assert self._folder is not None
        return f"{self._folder.path}/notify-{worker.number}"

    def _start(self, worker: WorkerProcess) -> None:
        # What is dangerous in the settings has been said already, once.
        settings = attrs.evolve(self.settings, warnings=())
        try:
            worker.start(self._spawn, Handover(settings, len(self._sockets), self._kept))
        except OSError as e:  # no descriptor or no process is left
            self._start_again(worker, f"could not be started: {e.strerror}")

    def _spawn(self, worker: WorkerProcess) -> None:
        assert self._folder is not None
        output: dict[int, Any] = {1: 1, 2: 2} if self._foreground else {1: "r", 2: "r"}
        given = [*(s.fileno() for s in self._sockets), self._folder.lock]
        with held_for_workers():
            self.reactor.spawnProcess(
                worker,
                sys.executable,
                self._command,
                self._environment(worker),
                childFDs={0: "w", **output, **dict(enumerate(given, FIRST_SOCKET))},
            )

    def _environment(self, worker: WorkerProcess) -> Mapping[str, str]:
        assert self._folder is not None
        own = {name: value for name, value in os.environ.items() if not _NOT_INHERITED(name)}
        return own | {
            "PYTHONPATH": _PATH,
            FOLDER_VARIABLE: self._folder.path,
            "NOTIFY_SOCKET": self._notify_address(worker),
            "WATCHDOG_USEC": _BEAT,
            WORKER_NUMBER: str(worker.number),
        }

    def _start_again(self, worker: WorkerProcess, why: str) -> None:
        seconds, number = worker.next_start_in(), worker.number
        said = f"the next starts in {seconds} s"
        _log.error("worker {number} {why}; {said}", number=number, why=why, said=said)
        self._timers[worker] = self.reactor.callLater(seconds, self._start, worker)

    # -- while it runs -------------------------------------------------------------------------

    def _heard(self) -> None:
        """A worker serves by the settings that it was told last; see whether all do."""
        if self._stopped is not None or not all(worker.ready for worker in self._workers):
            return
        said = f"{len(self._workers)} workers serve"
        if not self._announced:
            self._announced = True
            _log.info("gatewayd: {said}", said=said)
            self._systemd.ready(said)
            if self._systemd.watchdog_seconds:
                self._every(self._systemd.watchdog_seconds, self._systemd.alive)
        if self._reloading:
            self._systemd.reloaded(said, self._failed)
        self._reloading = False

    def _ended(self, worker: WorkerProcess, reason: Failure) -> None:
        number, why = worker.number, reason.value
        if self._folder is not None:
            forget_worker(number, self._folder.path)
        if self._stopped is None:
            self._start_again(worker, f"ended: {why}")
            return
        if not reason.check(ProcessDone):
            _log.error("worker {number} ended while it stopped: {why}", number=number, why=why)
        self._stop_if_alone()

    def _look(self) -> None:
        for worker in self._workers:
            worker.look(self._stopped is not None)

    def _every(self, seconds: float, call: Callable[[], None]) -> None:
        """Call again and again, each time after so many seconds."""

        def now() -> None:
            call()
            self._every(seconds, call)

        self._timers[call] = self.reactor.callLater(seconds, now)

    def _metrics(self) -> bytes:
        assert self._folder is not None
        return shared_text(self._folder.path)

    # -- reload and stop -----------------------------------------------------------------------

    def _reload(self) -> None:
        """Read the settings again, and have the workers use them; or say why not."""
        if self._stopped is not None:
            self._tell_all(None)
            reloading.answer(failed=True)
            return
        self._systemd.reloading()
        self._reloading = self._failed = True
        try:
            settings, differences = keep_bound(self.settings, self._load())
            build(settings, self.reactor, bytes)
        except SettingsError as e:
            for problem in e.problems:
                _log.error("reload: {problem}", problem=problem)
            _log.error("reload: the settings stay as they were")
            self._tell_all(None)
        except Exception:
            _log.failure("reload: the settings stay as they were")
            self._tell_all(None)
        else:
            self._accept(settings, differences)
            self._failed = False
        self._heard()

    def _accept(self, settings: Settings, differences: Sequence[str]) -> None:
        self.settings = settings
        errorlog.set_level(settings.log.level)
        for said in (*(f"reload: {said}" for said in differences), *dangers(settings)):
            _log.warn("{said}", said=said)
        if self._metrics_site is not None:
            self._metrics_site.state.use(settings, CONNECTIONS)
        self._tell_all(attrs.evolve(settings, warnings=()))

    def _tell_all(self, settings: Settings | None) -> None:
        for worker in self._workers:
            worker.tell(settings)

    def _kill_all(self, number: int) -> None:
        for worker in self._workers:
            worker.kill(number)

    def _stop_at_once(self) -> None:
        self._kill_all(signal.SIGQUIT)
        self._timers["last"] = self.reactor.callLater(LAST_SECONDS, self._kill_all, signal.SIGKILL)

    def stopService(self) -> Deferred[None]:
        super().stopService()
        self._systemd.stopping("waits for the workers")
        self._stopped = Deferred()
        self._stopped.addBoth(self._finish)
        for worker in self._workers:
            if worker in self._timers and self._timers[worker].active():
                self._timers[worker].cancel()
        for given in self._sockets:
            given.close()
        if self._metrics_port is not None:
            self._metrics_port.stopListening()
        self._kill_all(signal.SIGTERM)
        self._stop_if_alone()
        return self._stopped

    def _stop_if_alone(self) -> None:
        assert self._stopped is not None
        if not any(worker.runs for worker in self._workers) and not self._stopped.called:
            self._stopped.callback(None)

    def _finish(self, result: Any) -> Any:
        for timer in self._timers.values():
            if timer.active():
                timer.cancel()
        if self._folder is not None:
            self._folder.remove()
        return result
