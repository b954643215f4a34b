"""Settings become running services: start, drain, stop.

Theory of operation
-------------------

twistd builds the service with :func:`gatewayd.tap.makeService`, which opens nothing; then, in
this order, it starts logging, forks, calls ``privilegedStartService`` (the port is bound here,
while root rights last), drops its rights and calls ``startService``. A port that cannot be bound
ends the start with one sentence: a daemon without a listener helps nobody.

On SIGTERM twistd waits for the Deferred of ``stopService``. From then on the port is closed, idle
connections are closed, and what is in flight may take up to ``drain`` seconds; then each exchange
that is left is ended with an error that says so, and its backend is left. The Deferred fires when
the last connection is gone: fired earlier, the tail of the last answers would be lost with the
process.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IDelayedCall, IListeningPort
from twisted.logger import Logger

from gatewayd import __version__
from gatewayd.api.app import API
from gatewayd.api.site import Site
from gatewayd.backend.echo import EchoBackend
from gatewayd.backend.interface import Backend
from gatewayd.backend.openai import OpenAIBackend
from gatewayd.config import Settings
from gatewayd.telemetry.access import AccessLog
from gatewayd.wire.errors import Drained

_log = Logger()

#: How long connections may take to close after the last exchange has ended.
FLUSH_SECONDS = 1.0


class GatewayService(Service):
    """The whole gateway as one service.

    :param load: reads the settings again.
    :param reactor: Twisted's; handed in so that tests can have their own.
    """

    name = "gatewayd"

    def __init__(self, settings: Settings, load: Callable[[], Settings], reactor: Any) -> None:
        self.settings = settings
        self._reactor = reactor
        self.backends = make_backends(settings, reactor)
        self._access_log: AccessLog | None = None
        self.api = API(settings, self.backends, reactor)
        self.site = Site(self.api.resource(), settings, reactor, self.api.admit, self._ended)
        self.port: IListeningPort | None = None
        self._stopped: Deferred[None] | None = None
        self._timers: list[IDelayedCall] = []
        self._stopping = False

    def privilegedStartService(self) -> None:
        super().privilegedStartService()
        gateway = self.settings.gateway
        try:
            self.port = self._reactor.listenTCP(
                gateway.port, self.site, backlog=1024, interface=gateway.listen
            )
        except CannotListenError as e:
            reason = getattr(e.socketError, "strerror", None) or e.socketError
            raise SystemExit(
                f"gatewayd: cannot listen on {gateway.listen} port {gateway.port}: {reason}"
            ) from None

    def startService(self) -> None:
        super().startService()
        self._access_log = AccessLog(self.settings.log.access, self.settings.log.format)
        # When it runs, the reactor has installed its own handlers.
        self._reactor.callWhenRunning(self._handle_signals)
        address = self.port.getHost() if self.port is not None else None
        _log.info(
            "gatewayd {version} listens on {host} port {port}, in front of {backends}",
            version=__version__,
            host=getattr(address, "host", ""),
            port=getattr(address, "port", ""),
            backends=", ".join(backend.name for backend in self.backends),
        )

    def _handle_signals(self) -> None:
        """The first SIGTERM or SIGINT drains, and the exit status is 0; a second ends at once.

        The reactor's own handlers would make twistd end itself by the same signal at last, which
        to a supervisor is a failure.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:
        self._reactor.callFromThread(self._abort if self._stopping else self._reactor.stop)
        self._stopping = True

    def stopService(self) -> Deferred[None]:
        super().stopService()
        self.api.draining = self.site.draining = True
        if self.port is not None:
            self.port.stopListening()
        self._stopped = Deferred()
        for channel in list(self.site.channels):
            channel.close_if_idle()
        drain = self.settings.gateway.drain
        self._timers = [
            self._reactor.callLater(drain, self._cut),
            self._reactor.callLater(drain + FLUSH_SECONDS, self._abort),
        ]
        _log.info(
            "gatewayd stops: {n} requests in flight may take {drain} s",
            n=len(self.site.active),
            drain=drain,
        )
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
            channel.transport.abortConnection()

    def _empty(self) -> None:
        for timer in self._timers:
            if timer.active():
                timer.cancel()
        for backend in self.backends:
            backend.close()
        if self._access_log is not None:
            self._access_log.close()
        if self._stopped is not None and not self._stopped.called:
            self._stopped.callback(None)

    def _ended(self, exchange: Any) -> None:
        if self._access_log is not None:
            self._access_log(exchange)


def make_backends(settings: Settings, reactor: Any) -> list[Backend]:
    """The configured backends in their order, or the echo when there is none."""
    if not settings.backends:
        return [EchoBackend(reactor, settings.gateway.api_title)]
    return [OpenAIBackend(b, settings.limits, reactor) for b in settings.backends]
