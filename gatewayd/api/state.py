"""What all connections of one site share: settings, clock, what is under way, common headers.

It knows neither requests nor handlers. :class:`gatewayd.api.site.Site` makes one, its connections
read and update it, and a shutdown ends the connections and exchanges that it lists.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.web.http import datetimeToString

from gatewayd.exchange import End, Exchange
from gatewayd.http1.writing import response_head, response_start, whole_head
from gatewayd.settings.model import Settings
from gatewayd.wire.errors import GatewayError

from .known import KnownHeads

#: How many refused connections may wait at one time for their clients to close them. Any more are
#: closed at once, because each one holds a file descriptor.
SURPLUS_CONNECTIONS = 64


_COMMON_NAMES = (b"Server", b"Date", b"X-Content-Type-Options")
_COMMON = frozenset(_COMMON_NAMES)


class Connection(Protocol):
    """A client's connection as a shutdown sees it: :class:`gatewayd.api.channel.Channel`."""

    transport: Any

    def close_if_idle(self) -> None: ...
    def stop_reading(self, error: GatewayError) -> None: ...
    def abort(self, end: End, detail: str) -> None: ...


class ServerState:
    """
    :param on_end: called with each exchange that has ended.
    :param max_connections: connections that are served; further ones are refused.
    """

    def __init__(
        self,
        settings: Settings,
        reactor: IReactorTime,
        on_end: Callable[[Exchange], None],
        max_connections: int,
    ) -> None:
        self.reactor = reactor
        #: Whether the gateway is shutting down: each answer closes its connection.
        self.draining = False
        #: The exchanges that have not ended.
        self.active: set[Exchange] = set()
        self.connections: set[Connection] = set()
        #: Bytes of request bodies that are not complete yet, of all connections.
        self.bytes_gathered = 0
        self.known_heads = KnownHeads()
        self._on_end = on_end
        self._surplus: set[Connection] = set()  # those of the connections that were refused
        self._when_empty: Callable[[], None] | None = None
        self.use(settings, max_connections)

    def use(self, settings: Settings, max_connections: int) -> None:
        """Use other settings. Requests that are being handled keep the settings they began with."""
        self.settings = settings
        self.known_heads.forget()
        name = settings.gateway.request_id_header.encode("ascii")
        self.id_header = name.title() if name.islower() else name
        self.id_field = name.lower()
        self._max_connections = max_connections
        self._heads_at = 0  # the second in which _head_starts were made
        self._head_starts: dict[int, bytes] = {}  # by status

    # -- exchanges -----------------------------------------------------------------------------

    def begin_exchange(self, id: str, client: str) -> Exchange:
        """Make the exchange of a request whose head was read.

        :param client: the address of the client.
        """
        exchange = Exchange(
            id=id, started=self.reactor.seconds(), client=client, on_end=self._ended
        )
        self.active.add(exchange)
        return exchange

    def _ended(self, exchange: Exchange) -> None:
        self.active.discard(exchange)
        self._on_end(exchange)

    def response_head(self, status: int, headers: dict[bytes, bytes]) -> bytes:
        """The head of an answer: the headers that every answer has, and these.

        The common ones are written once a second, which is how long their date is right.

        :param headers: by name as it is sent. One with the name of a common one replaces it.
        """
        now = int(time.time())  # the reactor's clock is monotonic and has no date
        if now != self._heads_at:
            self._heads_at, self._head_starts = now, {}
        if not _COMMON.isdisjoint(headers):
            return response_head(status, {**self._common_headers(now), **headers}.items())
        start = self._head_starts.get(status)
        if start is None:
            start = response_start(status, self._common_headers(now).items())
            self._head_starts[status] = start
        return whole_head(start, headers.items())

    def _common_headers(self, now: int) -> dict[bytes, bytes]:
        server = self.settings.gateway.api_title.encode("ascii")
        return dict(zip(_COMMON_NAMES, (server, datetimeToString(now), b"nosniff"), strict=True))

    @property
    def gathers_too_much(self) -> bool:
        """Whether incomplete bodies hold more bytes than those of ``in_flight`` requests may."""
        limits = self.settings.limits
        return self.bytes_gathered > limits.in_flight * limits.request_body

    # -- connections ---------------------------------------------------------------------------

    def connected(self, connection: Connection) -> bool:
        """Count a new connection. Return False if there are too many, so that it is refused."""
        self.connections.add(connection)
        if len(self.connections) - len(self._surplus) <= self._max_connections:
            return True
        self._surplus.add(connection)
        return False

    @property
    def surplus_may_linger(self) -> bool:
        return len(self._surplus) <= SURPLUS_CONNECTIONS

    def disconnected(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self._surplus.discard(connection)
        if not self.connections and self._when_empty is not None:
            self._when_empty()

    def when_empty(self, call: Callable[[], None]) -> None:
        """Call when the last connection is gone; at once if there is none."""
        self._when_empty = call
        if not self.connections:
            call()
