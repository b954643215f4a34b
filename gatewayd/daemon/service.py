"""Settings become running services: start, reload, stop.

Theory of operation
-------------------

twistd builds the service with :func:`gatewayd.tap.makeService`, which opens nothing; then, in
this order, it starts logging, forks, calls ``privilegedStartService`` (the port is bound here,
while root rights last), drops its rights and calls ``startService``. ``twist`` does the last of
these only.

SIGHUP reads all settings again, and all that serves by them is built beside what serves now
(:mod:`gatewayd.daemon.world`). A mistake in them changes nothing and is logged. Else routes,
backends, tokens, limits, clocks and the certificate are exchanged in one step that cannot fail. A
request that has begun keeps what it began with.

What is bound at the start (addresses, TLS or none, workers) stays until a restart; a reload that
would change it says so.

On SIGTERM (:mod:`gatewayd.daemon.signals`) twistd waits for the Deferred of ``stopService``, which
fires when :mod:`gatewayd.daemon.drain` has let what is in flight end.

With ``workers`` above 1 this process serves nothing itself; see :mod:`gatewayd.daemon.supervisor`.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from twisted.application.service import Service
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IListeningPort
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory

from gatewayd import __version__
from gatewayd.api.metrics import CONNECTIONS, metrics_site
from gatewayd.api.site import Site
from gatewayd.api.tls import Certificate
from gatewayd.exchange import Exchange
from gatewayd.routing.prober import Prober
from gatewayd.settings.load import SettingsError
from gatewayd.settings.model import Settings
from gatewayd.telemetry import errorlog
from gatewayd.telemetry.access import AccessLog
from gatewayd.telemetry.metrics import BackendState, PrometheusMetrics, Snapshot
from gatewayd.telemetry.multiprocess import share

from . import reloading
from .bound import evolved, keep_bound
from .descriptors import for_clients
from .drain import Drain
from .listening import adopt, listen
from .notify import Systemd, inherited_sockets
from .signals import Signals
from .worker import Lifeline, Supervised
from .world import World, build, dangers

_log = Logger()


class GatewayService(Service):
    """The whole gateway as one service.

    Making one raises :class:`SettingsError` where the settings cannot be used.

    :param load: reads the settings again.
    :param reactor: Twisted's; handed in so that tests can have their own.
    :param supervised: in a worker, what it knows from its supervisor.
    """

    name = "gatewayd"

    def __init__(
        self,
        settings: Settings,
        load: Callable[[], Settings],
        reactor: Any,
        supervised: Supervised | None = None,
    ) -> None:
        self.settings = settings
        self._load = load
        self._reactor = reactor
        self._supervised = supervised
        if supervised is not None:
            share(supervised.number)
        self.metrics = PrometheusMetrics(reactor)
        errorlog.on_lost(self.metrics.count_daemon_line_lost)
        self._world = world = build(settings, reactor, self.metrics.text)
        self.api = world.api
        self.site = Site(
            world.resource,
            settings,
            reactor,
            world.api.admit,
            self._ended,
            for_clients(settings),
        )
        self._metrics_site: Site | None = None
        self._prober = Prober(self.api.router, reactor)
        self._access_log: AccessLog | None = None
        self._certificate: Certificate | None = None
        self._systemd = Systemd()
        self._ports: list[IListeningPort] = []
        self._kept = False
        self._watchdog: IDelayedCall | None = None
        self._signals = Signals(self._abort, self.reload, reactor, worker=supervised is not None)
        self._drain: Drain | None = None

    # -- start ---------------------------------------------------------------------------------

    def privilegedStartService(self) -> None:
        super().privilegedStartService()
        gateway = self.settings.gateway
        factory: Any = self.site
        if self._world.certificate is not None:
            self._certificate = Certificate(self._world.certificate)
            factory = TLSMemoryBIOFactory(self._certificate, False, factory, self._reactor)
        given = self._given_sockets()
        if given:
            self._ports = [adopt(self._reactor, descriptor, factory) for descriptor in given]
            self._listens_elsewhere()
        else:
            self._ports = [listen(self._reactor, gateway.listen, gateway.port, factory)]
        if self.settings.metrics.listen is not None and self._supervised is None:
            site = metrics_site(self.metrics.text, self.settings, self._reactor)
            self._ports.append(listen(self._reactor, *self.settings.metrics.listen, site))
            self._metrics_site = site

    def _given_sockets(self) -> list[int]:
        """Listening sockets from the supervisor or from systemd, and whether systemd keeps them."""
        if self._supervised is not None:
            handover = self._supervised.handover
            self._kept = handover.kept
            return handover.descriptors
        given = inherited_sockets()
        self._kept = bool(given)
        return given

    def _listens_elsewhere(self) -> None:
        """Go by the address of the sockets that were handed over, whatever the settings say.

        Of several the one that others can reach counts: who may see the metrics without a token
        depends on it. A socket in the file system has no address.
        """
        addresses = [port.getHost() for port in self._ports]
        hosts = [address.host for address in addresses if hasattr(address, "host")]
        hosts.sort(key=lambda host: ip_address(host).is_loopback)
        host = next(iter(hosts), self.settings.gateway.listen)
        if host == self.settings.gateway.listen:
            return
        load = self._load
        self._load = lambda: evolved(load(), "gateway", {"listen": host})
        self._enter(self._build(evolved(self.settings, "gateway", {"listen": host})))

    def startService(self) -> None:
        if not self._ports:
            self.privilegedStartService()
        super().startService()
        self._access_log = self._open_access_log(self.settings)
        errorlog.set_level(self.settings.log.level)
        self.metrics.watch(self._snapshot)
        if self._supervised is None or self.settings is not self._supervised.handover.settings:
            self._warn()  # else the supervisor has said it
        self._prober.start()
        self.metrics.start()
        if self._supervised is not None:
            self._reactor.addReader(
                Lifeline(self._supervised, self.reload, self._reopen_log, self._signals.stop)
            )
        _spare_the_collector()
        self._signals.install()
        said = f"listens on {self.address}, in front of {self._backends()}"
        _log.info("gatewayd {version} {said}", version=__version__, said=said)
        self._reactor.callWhenRunning(self._systemd.ready, said)
        self._reactor.callWhenRunning(self._feed_watchdog)

    @property
    def address(self) -> str:
        """Where it listens."""
        return ", ".join(_shown(port.getHost()) for port in self._ports)

    def _backends(self) -> str:
        return ", ".join(target.backend.name for target in self.api.router.targets)

    def _warn(self) -> None:
        """Say what should be seen to in the settings that hold now."""
        for warning in dangers(self.settings):
            _log.warn("{warning}", warning=warning)

    def _open_access_log(self, settings: Settings) -> AccessLog:
        lost = self.metrics.count_access_line_lost
        return AccessLog(settings.log.access, settings.log.format, lost)

    def _snapshot(self) -> Snapshot:
        """What the metrics show as a state."""
        targets, usable = self.api.router.targets, self.api.router.answering()
        return Snapshot(
            in_flight=len(self.site.state.active),
            connections=len(self.site.state.connections),
            backends={
                t.backend.name: BackendState(usable[t.backend.name], t.in_flight) for t in targets
            },
            models=self.api.model_names(),
            globs=[glob for target in targets for glob in target.models.globs],
        )

    # -- reload --------------------------------------------------------------------------------

    def reload(self) -> None:
        """Read the settings again and use them, or say why not."""
        self._reopen_log()
        if self._drain is not None:
            reloading.answer(failed=True)  # it is too late for other settings
            return
        self._systemd.reloading()
        failed = True
        try:
            settings, differences = keep_bound(self.settings, self._load())
            world = self._build(settings)
        except SettingsError as e:
            for problem in e.problems:
                _log.error("reload: {problem}", problem=problem)
            _log.error("reload: the settings stay as they were")
        except Exception:
            _log.failure("reload: the settings stay as they were")
        else:
            for said in differences:
                _log.warn("reload: {said}", said=said)
            self._change_to(world)
            failed = False
        said = f"listens on {self.address}, in front of {self._backends()}"
        self._systemd.reloaded(said, failed)

    def _reopen_log(self) -> None:
        if self._access_log is not None:
            self._access_log.reopen()

    def _build(self, settings: Settings) -> World:
        return build(settings, self._reactor, self.metrics.text, self._world)

    def _enter(self, world: World) -> None:
        """Serve by these settings from now on. Nothing here can fail."""
        world.take_over()
        self._world, self.settings, self.api = world, world.settings, world.api
        self.site.replace(world.resource, world.api.admit)
        self.site.state.use(world.settings, for_clients(world.settings))
        if self._certificate is not None and world.certificate is not None:
            self._certificate.context = world.certificate
        if self._metrics_site is not None:
            self._metrics_site.state.use(world.settings, CONNECTIONS)

    def _change_to(self, world: World) -> None:
        """Serve by these settings, and bring the rest in line with them.

        A fault in the latter is logged; it does not undo the reload, which has happened by then.
        """
        before, targets = self.settings, self._world.targets
        self._enter(world)
        replaced = [target for target in targets if target not in world.targets]
        _do_all(
            lambda: errorlog.set_level(self.settings.log.level),
            lambda: self._change_access_log(before),
            self._change_prober,
            *(target.backend.close for target in replaced),
            lambda: self.metrics.watch(self._snapshot),
        )
        self._warn()
        _log.info("reloaded: in front of {backends}", backends=self._backends())

    def _change_access_log(self, before: Settings) -> None:
        if before.log == self.settings.log:
            return  # it was opened anew already
        old, self._access_log = self._access_log, self._open_access_log(self.settings)
        if old is not None:
            old.close()

    def _change_prober(self) -> None:
        self._prober.stop()
        self._prober = Prober(self.api.router, self._reactor)
        self._prober.start()

    # -- stop ----------------------------------------------------------------------------------

    def stopService(self) -> Deferred[None]:
        super().stopService()
        seconds, running = self.settings.gateway.drain, len(self.site.state.active)
        said = f"stops: {running} requests in flight may take {seconds:g} s"
        _log.info("gatewayd {said}", said=said)
        self._systemd.stopping(said)
        self._prober.stop()
        self.metrics.stop()
        self._drain = Drain(self.site.state, self.api, self._reactor)
        return self._drain.begin(self._ports, self._kept, seconds).addCallback(self._drained)

    def _abort(self) -> None:
        if self._drain is not None:
            self._drain.abort()

    def _drained(self, _: None) -> None:
        if self._watchdog is not None and self._watchdog.active():
            self._watchdog.cancel()
        for target in self.api.router.targets:
            target.backend.close()
        if self._access_log is not None:
            self._access_log.close()

    # -- while it runs -------------------------------------------------------------------------

    def _ended(self, exchange: Exchange) -> None:
        """Tell the log and the metrics. A fault of theirs must not reach the client's answer."""
        for observer in (self._access_log, self.metrics):
            try:
                if observer is not None:
                    observer(exchange)
            except Exception:
                _log.failure("recording the end of {id} failed", id=exchange.id)

    def _feed_watchdog(self) -> None:
        """Fed by the loop itself: a loop that hangs is killed and started anew."""
        seconds = self._systemd.watchdog_seconds
        if seconds:
            self._systemd.alive()
            self._watchdog = self._reactor.callLater(seconds, self._feed_watchdog)


def _spare_the_collector() -> None:
    """Have Python look for cycles among what requests leave behind, and not in all modules.

    Walking those again and again takes a part of every request's time. It looks as often as
    before: a cycle may hold a large reply.
    """
    gc.collect()
    gc.freeze()


def _shown(address: Any) -> str:
    if isinstance(address, UNIXAddress):
        return os.fsdecode(address.name or b"")
    return f"{address.host} port {address.port}"


def _do_all(*calls: Callable[[], object]) -> None:
    """Do each of these, whatever becomes of the others."""
    for call in calls:
        try:
            call()
        except Exception:
            _log.failure("after a reload: {what} failed", what=call)
