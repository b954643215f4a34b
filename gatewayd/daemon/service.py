"""The gateway as one service of twistd: start, reload, stop.

Theory of operation
-------------------

twistd builds the service with :func:`gatewayd.tap.makeService`, which opens nothing. Then, in this
order, twistd starts logging, forks, calls ``privilegedStartService`` (the ports are opened here,
because root rights may be needed), drops its rights and calls ``startService``. ``twist`` only
calls the last.

On SIGHUP all settings are read again and a :mod:`.generation` is built from them beside the one
that serves (:mod:`.reload`). If the settings have a mistake, nothing changes and the log says why.
Otherwise routes, backends, tokens, limits, clocks and the certificate are exchanged in one step
that cannot fail. A request that has begun keeps what it began with.

On SIGTERM (:mod:`.signals`) twistd calls ``stopService`` and waits for its Deferred. The ports
close and :mod:`.drain` lets what is in flight end. Only then do the child services stop that
running requests need: the access log, the settling of the metrics, and the watchdog, which tells
systemd that the loop runs.

With ``workers`` above 1 this process serves nothing itself; see :mod:`.supervisor`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from gatewayd import __version__
from gatewayd.routing.prober import RECHECK_SECONDS
from gatewayd.settings.model import Settings
from gatewayd.telemetry import errorlog
from gatewayd.telemetry.metrics import LAG_SECONDS, PrometheusMetrics
from gatewayd.telemetry.multiprocess import share

from . import reload_command
from .drain import Drain
from .generation import Generation, build, warnings
from .notify import Systemd
from .periodic import Periodic
from .ports import Ports
from .recorder import Recorder
from .reload import evolved, prepare
from .serving import Serving
from .signals import Signals
from .worker import Lifeline, Supervised

_log = Logger()


class GatewayService(MultiService):
    """The whole gateway as one service.

    :param load: reads the settings again.
    :param reactor: Twisted's; handed in so that tests can have their own.
    :param supervised: in a worker, what its supervisor has told it.
    :raises SettingsError: the settings cannot be used.
    """

    name = "gatewayd"

    def __init__(
        self,
        settings: Settings,
        load: Callable[[], Settings],
        reactor: Any,
        supervised: Supervised | None = None,
    ) -> None:
        super().__init__()
        self._load = load
        self._reactor = reactor
        self._supervised = supervised
        self._systemd = Systemd()
        self._drain: Drain | None = None
        self._signals = Signals(self._abort, self.reload, reactor, worker=supervised is not None)
        if supervised is not None:
            share(supervised.number)
        self.metrics = PrometheusMetrics(reactor)
        errorlog.on_lost(self.metrics.count_daemon_line_lost)
        generation = build(settings, reactor, self.metrics.text)
        self.recorder = Recorder(settings.log, self.metrics)
        own_port = settings.metrics.listen is not None and supervised is None
        page = self.metrics.text if own_port else None
        self.serving = Serving(generation, self.recorder.record, page, reactor)
        handover = None if supervised is None else supervised.handover
        self._ports = Ports(self.serving, handover, reactor)
        self._health_checks = Periodic(RECHECK_SECONDS, self._check_backends, reactor)
        self._metrics_loop = Periodic(LAG_SECONDS, self.metrics.tick, reactor)
        for part in (self._ports, self.recorder, self._health_checks, self._metrics_loop):
            part.setServiceParent(self)
        if supervised is not None:
            lifeline = Lifeline(
                supervised, self.reload, self.recorder.reopen, self._signals.stop, reactor
            )
            lifeline.setServiceParent(self)

    # -- start ---------------------------------------------------------------------------------

    def privilegedStartService(self) -> None:
        super().privilegedStartService()
        host, settings, load = self._ports.host, self.serving.settings, self._load
        if host != settings.gateway.listen:  # sockets with another address were handed over
            self._load = lambda: evolved(load(), "gateway", {"listen": host})
            self.serving.use(self._build(evolved(settings, "gateway", {"listen": host})))

    def startService(self) -> None:
        if not self._ports.opened:
            self.privilegedStartService()
        settings = self.serving.settings
        errorlog.set_level(settings.log.level)
        self.metrics.watch(self.serving.snapshot)
        super().startService()
        if self._supervised is None or settings is not self._supervised.handover.settings:
            self._warn()  # otherwise the supervisor has logged the warnings
        limit_collector()
        self._signals.install()
        status = self._status
        _log.info("gatewayd {version} {status}", version=__version__, status=status)
        self._reactor.callWhenRunning(self._loop_runs, status)

    def _loop_runs(self, status: str) -> None:
        self._systemd.ready(status)
        seconds = self._systemd.watchdog_seconds
        if seconds:
            # The loop itself calls it: if the loop hangs, systemd kills and restarts the process.
            Periodic(seconds, self._systemd.alive, self._reactor).setServiceParent(self)

    @property
    def _status(self) -> str:
        return f"listens on {self._ports.address}, in front of {self.serving.backends}"

    def _warn(self) -> None:
        for warning in warnings(self.serving.settings):
            _log.warn("{warning}", warning=warning)

    def _check_backends(self) -> None:
        generation = self.serving.generation
        generation.prober.check()
        generation.discovery.check()

    # -- reload --------------------------------------------------------------------------------

    def reload(self) -> None:
        """Read the settings again and use them, or log why not."""
        self.recorder.reopen()
        if self._drain is not None:
            reload_command.answer(failed=True)  # it is too late for other settings
            return
        self._systemd.reloading()
        generation = prepare(self.serving.settings, self._load, self._build)
        if generation is not None:
            self._change_to(generation)
        self._systemd.reloaded(self._status, failed=generation is None)

    def _build(self, settings: Settings) -> Generation:
        return build(settings, self._reactor, self.metrics.text, self.serving.generation)

    def _change_to(self, generation: Generation) -> None:
        """Serve by this generation, and have the other parts follow its settings.

        The exchange of the generations is the reload. If a part then fails to follow, that is
        logged, and the others follow nevertheless.
        """
        before = self.serving.generation
        self.serving.use(generation)
        replaced = [target for target in before.targets if target not in generation.targets]
        log = generation.settings.log
        follow: list[Callable[[], object]] = [
            partial(errorlog.set_level, log.level),
            partial(self.recorder.use, log),
            before.discovery.stop,
            self._check_backends,
            *(target.backend.close for target in replaced),
            partial(self.metrics.watch, self.serving.snapshot),
        ]
        for call in follow:
            try:
                call()
            except Exception:
                _log.failure("after a reload: {call} failed", call=call)
        self._warn()
        _log.info("reloaded: in front of {backends}", backends=self.serving.backends)

    # -- stop ----------------------------------------------------------------------------------

    def stopService(self) -> Deferred[None]:
        seconds, running = self.serving.settings.gateway.drain, len(self.serving.site.state.active)
        status = f"stops: {running} requests in flight may take {seconds:g} s"
        _log.info("gatewayd {status}", status=status)
        self._systemd.stopping(status)
        self._health_checks.disownServiceParent()
        self.serving.generation.discovery.stop()
        self._drain = Drain(self._ports, self.serving, self._reactor)
        return self._drain.begin(seconds).addCallback(self._drained)

    def _abort(self) -> None:
        if self._drain is not None:
            self._drain.abort()

    def _drained(self, _: None) -> Any:
        for target in self.serving.generation.targets:
            target.backend.close()
        self.metrics.settle()  # workers show what this one has counted, also after its end
        return super().stopService()


#: Objects made and not freed since the last search for reference cycles that start the next one.
#: With Python's own value, 700, a search comes with every few requests and finds nothing: requests
#: leave no cycles behind. The search goes on all the same, because a cycle may hold a large reply.
COLLECTOR_THRESHOLD = 10_000


def limit_collector() -> None:
    """Have Python search for reference cycles less often, and not among the objects of the start.

    Searching the modules and settings again and again would take a part of every request's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECTOR_THRESHOLD)
