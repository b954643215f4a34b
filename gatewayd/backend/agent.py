"""The ``IAgent`` that treq drives: sends requests over the connections to one backend.

It is made for relaying only, see ``docs/architecture.rst``: no redirects, no cookies, no content
codings, whole request bodies. Every wait is bounded or can be cancelled.

At most one execution: a request is sent on one connection. It is sent again, once, on a new
connection, only if the first was an idle one that was lost within :data:`STALE_SECONDS` and without
any byte of a reply: the backend had closed it while the request was on its way.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult

from twisted.internet.defer import Deferred, fail
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from gatewayd.http1.writing import request_head

from .connecting import Connecting
from .connection import Connection
from .endpoint import Endpoint
from .headers import RequestHeaders
from .pool import Pool
from .upgrade import UpgradeConnection

if TYPE_CHECKING:
    from .tls import ClientTLS

STALE_SECONDS = 1.0

_WITHOUT_BODY = frozenset({b"GET", b"DELETE"})


@implementer(IAgent)
class Agent:
    """
    :param base: scheme, host and port of the backend. A request to another server is an error.
    :param tls: opens TLS; None for plain HTTP.
    :param connect_timeout: seconds for name lookup, TCP and TLS together.
    :param max_head: the largest head of a reply, in bytes.
    """

    def __init__(
        self,
        reactor: Any,
        base: SplitResult,
        tls: ClientTLS | None,
        connect_timeout: float,
        max_head: int,
    ) -> None:
        self._reactor = reactor
        self._host = b"Host: %b\r\n" % base.netloc.encode("ascii")
        self._root = f"{base.scheme}://{base.netloc}/".encode("ascii")
        self._target_begins = len(self._root) - 1  # in the URIs of requests
        self._tls = tls
        port = base.port or (443 if tls is not None else 80)
        self._endpoint = Endpoint(reactor, base.hostname or "", port)
        self._connect_timeout = connect_timeout
        self._max_head = max_head
        self._pool = Pool(reactor)

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        """Send a request. The Deferred fires with the head of its reply.

        Cancelling it has an immediate effect in every phase: lookup, connecting, TLS, waiting.

        :param headers: without ``Host`` and ``Content-Length``.
        :param bodyProducer: a :class:`.treqclient.BytesProducer`; None for no body.
        :raises GatewayError: there is no reply, or its head is not valid.
        """
        if not uri.startswith(self._root):
            return fail(ValueError(f"{uri!r} is not under {self._root!r}"))
        producer: Any = bodyProducer
        body = b"" if producer is None else producer.body
        if not isinstance(headers, RequestHeaders):
            headers = RequestHeaders.of(headers)
        lines = self._host + headers.lines
        if body or method not in _WITHOUT_BODY:
            lines += b"Content-Length: %d\r\n" % len(body)
        raw = request_head(method, uri[self._target_begins :], lines) + body
        # A deletion is never sent again, so it takes no connection that may be dead already.
        connection = None if method == b"DELETE" else self._pool.take()
        if connection is None:
            return self._send_on_new(raw, headers.key)
        connection.max_head = self._max_head
        again = partial(self._send_again, raw, headers.key, self._reactor.seconds())
        return connection.send(raw, headers.key, again)

    def _send_again(self, raw: bytes, key: str, sent: float) -> Deferred[IResponse] | None:
        """An idle connection was lost without a reply. None if too much time has passed."""
        if self._reactor.seconds() - sent > STALE_SECONDS:
            return None
        return self._send_on_new(raw, key)

    def upgrade(
        self, uri: bytes, headers: RequestHeaders
    ) -> Deferred[tuple[IResponse, UpgradeConnection]]:
        """Ask for a WebSocket, on a new connection.

        The Deferred fires with the head of the reply, and the connection. Cancelling it has an
        immediate effect in every phase.

        :raises GatewayError: there is no reply, or its head is not valid.
        """
        raw = request_head(b"GET", uri[self._target_begins :], self._host + headers.lines)
        connection = UpgradeConnection(self._reactor, self._max_head)
        connecting = Connecting(self._reactor, connection, self._tls, self._connect_timeout)
        opened: Deferred[Any] = connecting.begin(self._endpoint).addCallback(
            Connection.send, raw, headers.key
        )
        return opened.addCallback(lambda response: (response, connection))

    def set_limits(self, connect_timeout: float, max_head: int) -> None:
        """Use these limits from the next request on."""
        self._connect_timeout = connect_timeout
        self._max_head = max_head

    def close(self) -> None:
        """Close the idle connections. Those in use are closed when their replies have ended."""
        self._pool.close()

    def _send_on_new(self, raw: bytes, key: str) -> Deferred[IResponse]:
        """Open a connection and send a request on it."""
        connection = Connection(self._reactor, self._max_head, self._pool.put, self._pool.remove)
        connecting = Connecting(self._reactor, connection, self._tls, self._connect_timeout)
        return connecting.begin(self._endpoint).addCallback(Connection.send, raw, key)
