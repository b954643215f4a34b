"""Accepts connections, and knows which of them and which exchanges there are."""

from __future__ import annotations

import time
from collections.abc import Callable

from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.web import server
from twisted.web.http import datetimeToString
from twisted.web.resource import IResource

from gatewayd.daemon.descriptors import SURPLUS_AT_ONCE, for_clients
from gatewayd.exchange import Exchange
from gatewayd.settings.model import Settings

from .channel import Channel
from .request import Request


class Site(server.Site):
    """
    :param resource: renders each request.
    :param admit: called with each request whose head is good, before its body is read; raises a
        :class:`gatewayd.wire.errors.GatewayError` to refuse it.
    :param on_end: told of each exchange that has ended.
    :param most: how many connections it may have; None for as many as clients may hold.
    """

    def __init__(
        self,
        resource: IResource,
        settings: Settings,
        reactor: IReactorTime,
        admit: Callable[[Request], None],
        on_end: Callable[[Exchange], None],
        most: int | None = None,
    ) -> None:
        super().__init__(resource, reactor=reactor, parsePOSTFormSubmission=False)
        self.admit = admit
        self.draining = False
        self.active: set[Exchange] = set()
        self.channels: set[Channel] = set()
        #: Bytes of request bodies that are not whole yet, of all connections.
        self.gathered = 0
        self._surplus: set[Channel] = set()  # of the channels, those that were too many
        self._on_end = on_end
        self._fixed = most
        self._when_empty: Callable[[], None] | None = None
        self._common: tuple[int, tuple[tuple[bytes, bytes], ...]] = (0, ())
        self._use(settings)

    def _use(self, settings: Settings) -> None:
        self.settings = settings
        self._most = self._fixed or for_clients(settings)
        name = settings.gateway.request_id_header.encode("ascii")
        self.id_header = name.title() if name.islower() else name
        self._common = (0, ())

    def common_headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """What every answer carries; made anew each second, for its date."""
        now = int(time.time())  # the reactor's clock does not know the date
        if now != self._common[0] or not self._common[1]:
            self._common = now, (
                (b"Server", self.settings.gateway.api_title.encode("ascii")),
                (b"Date", datetimeToString(now)),
                (b"X-Content-Type-Options", b"nosniff"),
            )
        return self._common[1]

    def replace(
        self, resource: IResource, settings: Settings, admit: Callable[[Request], None]
    ) -> None:
        """Answer new requests with these. What has begun goes on with what it began with."""
        self.resource, self.admit = resource, admit
        self._use(settings)

    # -- Twisted Web's hooks -------------------------------------------------------------------

    def buildProtocol(self, addr: IAddress | None) -> Channel:  # type: ignore[override]
        return Channel(self)

    def acceptableProtocols(self) -> list[bytes]:
        """What TLS may agree on (ALPN). A client whose offer has none of them is not let in."""
        return [b"http/1.1", b"http/1.0"]

    def startFactory(self) -> None:
        """No log file, and no clock for its dates: see :mod:`gatewayd.telemetry.access`."""

    def stopFactory(self) -> None:
        """Nothing was started."""

    def log(self, request: object) -> None:
        """An exchange's end is logged, not a request's."""

    # -- what is under way ---------------------------------------------------------------------

    def begin(self, id: str, client: str) -> Exchange:
        """A request's head has been read."""
        exchange = Exchange(
            id=id, started=self.reactor.seconds(), client=client, on_end=self._ended
        )
        self.active.add(exchange)
        return exchange

    def _ended(self, exchange: Exchange) -> None:
        self.active.discard(exchange)
        self._on_end(exchange)

    def connected(self, channel: Channel) -> bool:
        """Count a connection in. False: it is one too many."""
        self.channels.add(channel)
        if len(self.channels) - len(self._surplus) <= self._most:
            return True
        self._surplus.add(channel)
        return False

    @property
    def surplus_may_linger(self) -> bool:
        return len(self._surplus) <= SURPLUS_AT_ONCE

    @property
    def gathers_too_much(self) -> bool:
        """Whether more bytes of bodies are on their way than ``in_flight`` requests may have."""
        limits = self.settings.limits
        return self.gathered > limits.in_flight * limits.request_body

    def disconnected(self, channel: Channel) -> None:
        self.channels.discard(channel)
        self._surplus.discard(channel)
        if not self.channels and self._when_empty is not None:
            self._when_empty()

    def when_empty(self, call: Callable[[], None]) -> None:
        """Call when the last connection is gone; at once if there is none."""
        self._when_empty = call
        if not self.channels:
            call()
