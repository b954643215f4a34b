"""Settings become running services: start, reload, drain, stop.

Theory of operation
-------------------

twistd builds the service with :func:`gatewayd.tap.makeService`, which opens nothing; then, in
this order, it starts logging, forks, calls ``privilegedStartService`` (the port is bound here,
while root rights last), drops its rights and calls ``startService``. A port that cannot be bound
ends the start with one sentence: a daemon without a listener helps nobody.

SIGHUP reads all settings again. A mistake in them changes nothing and is logged. Else routes,
backends, tokens, limits and clocks are exchanged in one step: a request that has begun keeps what
it began with. Backends whose settings did not change keep their connections and their health.

On SIGTERM twistd waits for the Deferred of ``stopService``. From then on the port is closed, idle
connections are closed, and what is in flight may take up to ``drain`` seconds; then each exchange
that is left is ended with an error that says so, and its backend is left. The Deferred fires when
the last connection is gone: fired earlier, the tail of the last answers would be lost with the
process. A second signal does not wait.

With ``workers`` above 1 this process serves nothing itself; see :mod:`gatewayd.supervisor`.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IDelayedCall, IListeningPort
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.systemd import ListenFDs

from gatewayd import __version__
from gatewayd.api.app import API
from gatewayd.api.metrics import MetricsPage
from gatewayd.api.site import Site
from gatewayd.api.tls import Certificate
from gatewayd.backend.echo import EchoBackend
from gatewayd.backend.openai import OpenAIBackend
from gatewayd.backend.prober import Prober
from gatewayd.backend.routing import Router, Target
from gatewayd.config import ConfigError, Settings
from gatewayd.exchange import End, Exchange
from gatewayd.notify import Systemd
from gatewayd.telemetry import errorlog
from gatewayd.telemetry.access import AccessLog
from gatewayd.telemetry.metrics import Metrics
from gatewayd.wire.errors import Drained

_log = Logger()

#: How long connections may take to close after the last exchange has ended.
FLUSH_SECONDS = 1.0

#: The listening socket that a supervisor gives to its workers, by the number of its descriptor.
WORKER_SOCKET = "GATEWAYD_WORKER_SOCKET"


class GatewayService(Service):
    """The whole gateway as one service.

    :param load: reads the settings again.
    :param reactor: Twisted's; handed in so that tests can have their own.
    """

    name = "gatewayd"

    def __init__(self, settings: Settings, load: Callable[[], Settings], reactor: Any) -> None:
        self.settings = settings
        self._load = load
        self._reactor = reactor
        self.metrics = Metrics(reactor)
        self.api = API(settings, make_router(settings, reactor), reactor, self.metrics.text)
        self.site = Site(self.api.resource(), settings, reactor, self.api.admit, self._ended)
        self._prober = Prober(self.api.router, reactor)
        self._access_log: AccessLog | None = None
        self._certificate: Certificate | None = None
        self._systemd = Systemd()
        self._ports: list[IListeningPort] = []
        self._stopped: Deferred[None] | None = None
        self._timers: list[IDelayedCall] = []
        self._stopping = False

    # -- start ---------------------------------------------------------------------------------

    def privilegedStartService(self) -> None:
        super().privilegedStartService()
        gateway = self.settings.gateway
        factory: Any = self.site
        if gateway.tls_certificate is not None and gateway.tls_key is not None:
            self._certificate = Certificate(gateway.tls_certificate, gateway.tls_key)
            factory = TLSMemoryBIOFactory(self._certificate, False, factory, self._reactor)
        inherited = _inherited_socket()
        if inherited is None:
            self._ports = [listen(self._reactor, gateway.listen, gateway.port, factory)]
        else:
            os.set_blocking(inherited, False)  # several may accept from it
            with socket.socket(fileno=os.dup(inherited)) as listening:
                family = listening.family
            self._ports = [self._reactor.adoptStreamPort(inherited, family, factory)]
            os.close(inherited)
        if self.settings.metrics.listen is not None and WORKER_SOCKET not in os.environ:
            page = MetricsPage(self.metrics.text)
            site = Site(page, self.settings, self._reactor, lambda _: None, lambda _: None)
            self._ports.append(listen(self._reactor, *self.settings.metrics.listen, site))

    def startService(self) -> None:
        super().startService()
        self._access_log = AccessLog(self.settings.log.access, self.settings.log.format)
        self._use(self.settings)
        self._prober.start()
        self.metrics.start()
        self._feed_watchdog()
        # When it runs, the reactor has installed its own handlers.
        self._reactor.callWhenRunning(self._handle_signals)
        said = f"listens on {self.address}, in front of {self._backends()}"
        _log.info("gatewayd {version} {said}", version=__version__, said=said)
        self._reactor.callWhenRunning(self._systemd.ready, said)

    @property
    def address(self) -> str:
        """Where the first port listens."""
        host = self._ports[0].getHost()
        return f"{getattr(host, 'host', host)} port {getattr(host, 'port', '')}"

    def _backends(self) -> str:
        return ", ".join(target.backend.name for target in self.api.router.targets)

    def _use(self, settings: Settings) -> None:
        """Tell what is outside of a request's path which settings hold."""
        errorlog.set_level(settings.log.level)
        self.metrics.models = {n for target in self.api.router.targets for n in target.names}
        self.metrics.watch(
            lambda: (len(self.site.active), len(self.site.channels), self.api.router.states())
        )

    # -- reload --------------------------------------------------------------------------------

    def reload(self) -> None:
        """Read the settings again and use them, or say why not."""
        self._systemd.reloading()
        if self._access_log is not None:
            self._access_log.reopen()
        try:
            settings = self._load()
        except ConfigError as e:
            for problem in e.problems:
                _log.error("reload: {problem}", problem=problem)
            _log.error("reload: the settings stay as they were")
        else:
            self._swap(settings)
        self._systemd.ready(f"listens on {self.address}, in front of {self._backends()}")

    def _swap(self, settings: Settings) -> None:
        before, self.settings = self.settings, settings
        for section, key in (("gateway", "listen"), ("gateway", "port"), ("gateway", "workers")):
            old, new = (getattr(getattr(s, section), key) for s in (before, settings))
            if old != new:
                _log.warn("reload: {key} stays {old} until a restart", key=key, old=old)
        kept = dict(zip(before.backends, self.api.router.targets, strict=False))
        if before.limits != settings.limits:
            kept = {}  # agents and relays of these go by the limits that they began with
        router = make_router(settings, self._reactor, kept)
        replaced = set(self.api.router.targets) - set(router.targets)
        self.api = self.api.replaced(settings, router)
        self.site.replace(self.api.resource(), settings, self.api.admit)
        self._prober.stop()
        self._prober = Prober(router, self._reactor)
        self._prober.start()
        for target in replaced:
            target.backend.close()
        if self._access_log is not None:
            self._access_log.close()
        self._access_log = AccessLog(settings.log.access, settings.log.format)
        if self._certificate is not None and settings.gateway.tls_certificate is not None:
            self._certificate.load(settings.gateway.tls_certificate, settings.gateway.tls_key or "")
        self._use(settings)
        for warning in settings.warnings:
            _log.warn("{warning}", warning=warning)
        _log.info("reloaded: in front of {backends}", backends=self._backends())

    # -- stop ----------------------------------------------------------------------------------

    def _handle_signals(self) -> None:
        """The first SIGTERM or SIGINT drains, and the exit status is 0; a second ends at once.

        The reactor's own handlers would make twistd end itself by the same signal at last, which
        to a supervisor is a failure.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop_signal)
        signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self.reload))

    def _on_stop_signal(self, number: int, frame: object) -> None:
        self._reactor.callFromThread(self._abort if self._stopping else self._reactor.stop)
        self._stopping = True

    def stopService(self) -> Deferred[None]:
        super().stopService()
        drain, running = self.settings.gateway.drain, len(self.site.active)
        said = f"stops: {running} requests in flight may take {drain:g} s"
        _log.info("gatewayd {said}", said=said)
        self._systemd.stopping(said)
        self._prober.stop()
        self.metrics.stop()
        self.api.draining = self.site.draining = True
        for port in self._ports:
            port.stopListening()
        self._stopped = Deferred()
        for channel in list(self.site.channels):
            channel.close_if_idle()
        self._timers += [
            self._reactor.callLater(drain, self._cut),
            self._reactor.callLater(drain + FLUSH_SECONDS, self._abort),
        ]
        self.site.when_empty(self._empty)
        return self._stopped

    def _cut(self) -> None:
        for exchange in list(self.site.active):
            if exchange.stop is not None:
                exchange.stop(Drained("The gateway was shut down before the reply ended."))
        for channel in list(self.site.channels):
            channel.close_if_idle()

    def _abort(self) -> None:
        for channel in list(self.site.channels):
            channel.abort(End.DRAINED, "stopped")

    def _empty(self) -> None:
        for timer in self._timers:
            if timer.active():
                timer.cancel()
        for target in self.api.router.targets:
            target.backend.close()
        if self._access_log is not None:
            self._access_log.close()
        if self._stopped is not None and not self._stopped.called:
            self._stopped.callback(None)

    # -- while it runs -------------------------------------------------------------------------

    def _ended(self, exchange: Exchange) -> None:
        if self._access_log is not None:
            self._access_log(exchange)
        self.metrics(exchange)

    def _feed_watchdog(self) -> None:
        """Fed by the loop itself: a loop that hangs is killed and started anew."""
        seconds = self._systemd.watchdog_seconds
        if seconds:
            self._systemd.alive()
            self._timers = [self._reactor.callLater(seconds, self._feed_watchdog)]


def listen(reactor: Any, host: str, port: int, factory: Any) -> IListeningPort:
    """Bind a port, or end the start with a sentence."""
    try:
        bound: IListeningPort = reactor.listenTCP(port, factory, backlog=1024, interface=host)
    except CannotListenError as e:
        reason = getattr(e.socketError, "strerror", None) or e.socketError
        raise SystemExit(f"gatewayd: cannot listen on {host} port {port}: {reason}") from None
    return bound


def _inherited_socket() -> int | None:
    """The listening socket that systemd or the supervisor has opened, if there is one."""
    if WORKER_SOCKET in os.environ:
        return int(os.environ[WORKER_SOCKET])
    given = ListenFDs.fromEnvironment().inheritedDescriptors()
    return given[0] if given else None


def make_router(settings: Settings, reactor: Any, kept: Any = None) -> Router:
    """The configured backends in their order, or the echo when there is none.

    :param kept: targets that may serve on, by their settings.
    """
    if not settings.backends:
        return Router([Target(EchoBackend(reactor, settings.gateway.api_title), reactor)])
    return Router(
        [
            (kept or {}).get(b)
            or Target(OpenAIBackend(b, settings.limits, reactor), reactor, b.models, b.in_flight)
            for b in settings.backends
        ]
    )
