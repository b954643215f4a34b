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

What is bound at the start (addresses, TLS or none, workers) stays until a restart; a reload that
would change it says so.

On SIGTERM twistd waits for the Deferred of ``stopService``. From then on the port is closed, idle
connections are closed a moment later, and what is in flight may take up to ``drain`` seconds; then
each exchange that is left is ended with an error that says so, and its backend is left. The
Deferred fires when the last connection is gone: fired earlier, the tail of the last answers would
be lost with the process. A second signal does not wait.

With ``workers`` above 1 this process serves nothing itself; see :mod:`gatewayd.supervisor`.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import attrs
from twisted.application.service import Service
from twisted.internet import tcp
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError, ConnectionDone
from twisted.internet.interfaces import IDelayedCall, IListeningPort, IReadDescriptor
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

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
from gatewayd.notify import Systemd, inherited_socket
from gatewayd.telemetry import errorlog
from gatewayd.telemetry.access import AccessLog
from gatewayd.telemetry.metrics import Metrics
from gatewayd.wire.errors import Drained

_log = Logger()

#: How long after a stop connections without a request are kept: one may be on its way, or here
#: and not read yet, and its client could not know that it was never begun.
GRACE_SECONDS = 0.1

#: How long connections may take to close after the last exchange has ended.
FLUSH_SECONDS = 1.0

#: The listening socket that a supervisor gives to its workers, by the number of its descriptor.
WORKER_SOCKET = "GATEWAYD_WORKER_SOCKET"

#: What is bound at the start.
_BOUND = {
    "gateway": ("listen", "port", "workers"),
    "metrics": ("listen",),
}


class CannotListen(SystemExit, Exception):
    """Ends the start with a sentence.

    Python prints a SystemExit without a traceback; and of an Exception, nothing else, the
    background process of twistd tells the one that waits for it at the terminal.
    """


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
        self._inherited = False
        self._stopped: Deferred[None] | None = None
        self._timers: list[IDelayedCall] = []
        self._watchdog: IDelayedCall | None = None
        self._stopping = False

    # -- start ---------------------------------------------------------------------------------

    def privilegedStartService(self) -> None:
        super().privilegedStartService()
        gateway = self.settings.gateway
        factory: Any = self.site
        if gateway.tls_certificate is not None and gateway.tls_key is not None:
            self._certificate = Certificate(gateway.tls_certificate, gateway.tls_key)
            factory = TLSMemoryBIOFactory(self._certificate, False, factory, self._reactor)
        inherited = _worker_socket() or inherited_socket()
        self._inherited = inherited is not None
        if inherited is None:
            self._ports = [listen(self._reactor, gateway.listen, gateway.port, factory)]
        else:
            os.set_blocking(inherited, False)  # several may accept from it
            with socket.socket(fileno=os.dup(inherited)) as listening:
                family = listening.family
            self._ports = [self._reactor.adoptStreamPort(inherited, family, factory)]
            os.close(inherited)
            self._listens_elsewhere()
        if self.settings.metrics.listen is not None and WORKER_SOCKET not in os.environ:
            page = MetricsPage(self.metrics.text)
            site = Site(page, self.settings, self._reactor, lambda _: None, lambda _: None)
            self._ports.append(listen(self._reactor, *self.settings.metrics.listen, site))

    def _listens_elsewhere(self) -> None:
        """Go by the address of the socket that was handed over, whatever the settings say.

        Who may see the metrics without a token depends on it.
        """
        host = getattr(self._ports[0].getHost(), "host", self.settings.gateway.listen)
        if host == self.settings.gateway.listen:
            return
        load = self._load
        self._load = lambda: _with(load(), "gateway", {"listen": host})
        self.settings = _with(self.settings, "gateway", {"listen": host})
        self.api = self.api.replaced(self.settings, self.api.router)
        self.site.replace(self.api.resource(), self.settings, self.api.admit)
        if not self.settings.tokens and not ip_address(host).is_loopback:
            said = "without a token whoever can reach it may use the backends"
            _log.warn("{host} is not a loopback address, and {said}", host=host, said=said)

    def startService(self) -> None:
        super().startService()
        self._access_log = AccessLog(self.settings.log.access, self.settings.log.format)
        self._use(self.settings)
        self._prober.start()
        self.metrics.start()
        self._feed_watchdog()
        if WORKER_SOCKET in os.environ:
            self._reactor.addReader(Lifeline(self._stop))
        _spare_the_collector()
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
        if self._access_log is not None:
            self._access_log.reopen()
        if self._stopped is not None:
            return  # it is too late for other settings
        self._systemd.reloading()
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
        certificate, key = settings.gateway.tls_certificate, settings.gateway.tls_key
        if self._certificate is not None and certificate is not None and key is not None:
            self._certificate.load(certificate, key)
        before, settings = self.settings, self._with_what_is_bound(settings)
        self.settings = settings
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
        self._use(settings)
        for warning in settings.warnings:
            _log.warn("{warning}", warning=warning)
        _log.info("reloaded: in front of {backends}", backends=self._backends())

    def _with_what_is_bound(self, settings: Settings) -> Settings:
        """These settings, but with the old ones of what a reload cannot change."""
        for section, keys in _BOUND.items():
            old, new = getattr(self.settings, section), getattr(settings, section)
            for key in keys:
                value = getattr(old, key)
                if value != getattr(new, key):
                    name = f"[{section}] {key}"
                    _log.warn("reload: {name} stays {old} until a restart", name=name, old=value)
                    settings = _with(settings, section, {key: value})
        before, after = self.settings.gateway, settings.gateway
        if (before.tls_certificate is None) != (after.tls_certificate is None):
            _log.warn("reload: TLS cannot be switched on or off without a restart")
            kept = {key: getattr(before, key) for key in ("tls_certificate", "tls_key")}
            settings = _with(settings, "gateway", kept)
        return settings

    # -- stop ----------------------------------------------------------------------------------

    def _handle_signals(self) -> None:
        """The first SIGTERM or SIGINT drains, and the exit status is 0; a second ends at once.

        The reactor's own handlers would make twistd end itself by the same signal at last, which
        to a supervisor is a failure. A worker may hear of one stop from several sides (a terminal
        and systemd tell each process, and so does the supervisor): only SIGQUIT ends it at once.
        """
        if WORKER_SOCKET in os.environ:
            signal.signal(signal.SIGQUIT, self._on_stop_signal)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop_signal)
        signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self.reload))

    def _on_stop_signal(self, number: int, frame: object) -> None:
        if not self._stopping:
            self._reactor.callFromThread(self._stop)
        elif number == signal.SIGQUIT or WORKER_SOCKET not in os.environ:
            self._reactor.callFromThread(self._abort)

    def _stop(self) -> None:
        if not self._stopping:
            self._stopping = True
            self._reactor.stop()

    def stopService(self) -> Deferred[None]:
        super().stopService()
        drain, running = self.settings.gateway.drain, len(self.site.active)
        said = f"stops: {running} requests in flight may take {drain:g} s"
        _log.info("gatewayd {said}", said=said)
        self._systemd.stopping(said)
        self._prober.stop()
        self.metrics.stop()
        self.site.draining = True
        for port in self._ports:
            if not self._inherited:  # else it waits there for who comes next
                self._reactor.callLater(0, _accept_pending, port)
            port.stopListening()
        self._stopped = Deferred()
        self._timers = [
            self._reactor.callLater(min(GRACE_SECONDS, drain), self._close_idle),
            self._reactor.callLater(drain, self._cut),
            self._reactor.callLater(drain + FLUSH_SECONDS, self._abort),
        ]
        self.site.when_empty(self._empty)
        return self._stopped

    def _close_idle(self) -> None:
        self.api.draining = True
        for channel in list(self.site.channels):
            channel.close_if_idle()

    def _cut(self) -> None:
        late = Drained("The gateway was shut down before the reply ended.")
        for exchange in list(self.site.active):
            if exchange.stop is not None:
                exchange.stop(late)
        for channel in list(self.site.channels):
            channel.stop_reading(late)

    def _abort(self) -> None:
        for channel in list(self.site.channels):
            channel.abort(End.DRAINED, "stopped")

    def _empty(self) -> None:
        for timer in (*self._timers, self._watchdog):
            if timer is not None and timer.active():
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
            self._watchdog = self._reactor.callLater(seconds, self._feed_watchdog)


@implementer(IReadDescriptor)
class Lifeline:
    """A worker's standard input: its other end closes when the supervisor dies.

    A worker that went on alone would keep the port from the next supervisor.

    :param lost: called when that has happened, and when the reactor lets go of all descriptors.
    """

    def __init__(self, lost: Callable[[], None]) -> None:
        self._lost = lost

    def fileno(self) -> int:
        return 0

    def logPrefix(self) -> str:
        return "lifeline"

    def doRead(self) -> Any:
        return None if os.read(0, 1024) else ConnectionDone()

    def connectionLost(self, reason: Failure) -> None:
        self._lost()


def _spare_the_collector() -> None:
    """Have Python look for cycles among what requests leave behind, and not in all modules.

    Walking those again and again takes a part of every request's time. It looks as often as
    before: a cycle may hold a large reply.
    """
    gc.collect()
    gc.freeze()


def _accept_pending(port: Any) -> None:
    """Accept who is connected already: the port closes in this turn, and that resets the others."""
    if isinstance(port, tcp.Port):
        port.numberAccepts = 4096
        port.doRead()


def listen(reactor: Any, host: str, port: int, factory: Any) -> IListeningPort:
    """Bind a port, or end the start with a sentence."""
    try:
        bound: IListeningPort = reactor.listenTCP(port, factory, backlog=1024, interface=host)
    except CannotListenError as e:
        reason = getattr(e.socketError, "strerror", None) or e.socketError
        raise CannotListen(f"gatewayd: cannot listen on {host} port {port}: {reason}") from None
    return bound


def _worker_socket() -> int | None:
    number = os.environ.get(WORKER_SOCKET)
    return None if number is None else int(number)


def _with(settings: Settings, section: str, values: dict[str, Any]) -> Settings:
    changed: Any = {section: attrs.evolve(getattr(settings, section), **values)}
    return attrs.evolve(settings, **changed)


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
