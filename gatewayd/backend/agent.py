"""The ``IAgent`` that treq drives: one backend's connections, newest idle one first.

Twisted's own agent accepts what a gateway must refuse and keeps what it must drop (see
``docs/architecture.rst``); this one is for relaying, and only that: no redirects, no cookies, no
content codings, bodies sent whole, every wait bounded or cancellable.

At most one execution: a request goes out on one connection. Only when that was an idle one which
dies without a byte within :data:`STALE_SECONDS` is the request sent again, once, on a fresh one:
the backend had closed it while the request was on its way.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import SplitResult

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.endpoints import wrapClientTLS
from twisted.internet.interfaces import IDelayedCall, IProtocol, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from gatewayd.http1.writing import request_head
from gatewayd.wire.errors import ConnectTimeout, GatewayError, Unreachable

from .connection import Connection, NoAnswer
from .endpoint import Endpoint
from .failures import why
from .tls import ClientTLS

STALE_SECONDS = 1.0

_OURS = frozenset({b"host", b"connection", b"accept-encoding", b"content-length", b"cookie"})


@implementer(IAgent)
class Agent:
    """
    :param base: scheme, host and port of the backend; requests to another are a mistake.
    :param tls: how to open TLS; None for plain HTTP.
    :param connect_timeout: seconds for name look-up, TCP and TLS together.
    :param max_head: the most bytes that a reply's head may take.
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
        self._authority = base.netloc.encode("ascii")
        self._prefix = f"{base.scheme}://{base.netloc}".encode("ascii")
        self._tls = tls
        port = base.port or (443 if tls is not None else 80)
        endpoint: IStreamClientEndpoint = Endpoint(reactor, base.hostname or "", port)
        self._endpoint = endpoint if tls is None else wrapClientTLS(tls, endpoint)
        self._connect_timeout = connect_timeout
        self._max_head = max_head
        self._idle: list[Connection] = []
        self._expires: dict[Connection, float] = {}
        self._sweep: IDelayedCall | None = None
        self._closed = False

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        """Send a request; the Deferred fires with the head of its reply.

        Cancelling it leaves at once: look-up, connect, TLS or the waiting request is abandoned.
        """
        if not uri.startswith(self._prefix + b"/"):
            return fail(ValueError(f"{uri!r} is not under {self._prefix!r}"))
        producer: Any = bodyProducer  # a BytesProducer: others could take their time
        body = b"" if producer is None else producer.body
        raw = self._encode(method, uri, headers or Headers(), body)
        connection = self._newest_idle()
        if connection is None:
            return self._connect().addCallback(_send, raw)
        return connection.send(raw).addErrback(self._send_again, raw, self._reactor.seconds())

    def _send_again(self, failure: Failure, raw: bytes, sent: float) -> Any:
        if not failure.check(NoAnswer) or self._reactor.seconds() - sent > STALE_SECONDS:
            return failure
        return self._connect().addCallback(_send, raw)

    def limit(self, connect_timeout: float, max_head: int) -> None:
        """Go by these limits from the next request on."""
        self._connect_timeout = connect_timeout
        self._max_head = max_head

    def close(self) -> None:
        """Close the idle connections; those in use are closed when their replies have ended."""
        self._closed = True
        for connection in list(self._idle):
            connection.abort()
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    def _encode(self, method: bytes, uri: bytes, headers: Headers, body: bytes) -> bytes:
        fields = [(b"Host", self._authority)]
        for name, values in headers.getAllRawHeaders():
            if name.lower() not in _OURS:
                fields += [(name, value) for value in values]
        if body or method != b"GET":
            fields.append((b"Content-Length", b"%d" % len(body)))
        return request_head(method, uri[len(self._prefix) :], fields) + body

    # -- the pool ----------------------------------------------------------------------------

    def _newest_idle(self) -> Connection | None:
        now = self._reactor.seconds()
        while self._idle:
            connection = self._idle.pop()
            if self._expires.pop(connection) > now and connection.is_silent():
                connection.max_head = self._max_head
                return connection
            connection.abort()
        return None

    def _is_idle(self, connection: Connection) -> None:
        if self._closed:
            connection.abort()
            return
        self._idle.append(connection)
        self._expires[connection] = self._reactor.seconds() + connection.idle_seconds
        if self._sweep is None:
            self._sweep = self._reactor.callLater(1.0, self._close_expired)

    def _is_closed(self, connection: Connection) -> None:
        if self._expires.pop(connection, None) is not None:
            self._idle.remove(connection)

    def _close_expired(self) -> None:
        """One timer for the pool: a timer for each connection would cost every request."""
        now = self._reactor.seconds()
        for connection in [c for c in self._idle if self._expires[c] <= now]:
            connection.abort()
        self._sweep = self._reactor.callLater(1.0, self._close_expired) if self._idle else None

    # -- connecting --------------------------------------------------------------------------

    def _connect(self) -> Deferred[Connection]:
        connection = Connection(
            self._reactor, self._tls, self._max_head, self._is_idle, self._is_closed
        )
        return _Attempt(self._reactor, connection, self._connect_timeout).begin(self._endpoint)


class _Attempt:
    """A connection on its way, and its clock."""

    def __init__(self, reactor: Any, connection: Connection, seconds: float) -> None:
        self._reactor = reactor
        self._connection = connection
        self._seconds = seconds
        self._began = reactor.seconds()
        self._timer: IDelayedCall = reactor.callLater(seconds, self._due)
        self._connecting: Deferred[IProtocol] | None = None

    def begin(self, endpoint: IStreamClientEndpoint) -> Deferred[Connection]:
        """Connect. Cancelling the Deferred abandons the attempt in whichever step it is."""
        ready: Deferred[Connection] = Deferred(self._give_up)
        self._connection.ready = ready
        ready.addBoth(self._settled)
        factory = Factory.forProtocol(lambda: self._connection)
        factory.noisy = False
        self._connecting = maybeDeferred(endpoint.connect, factory)
        self._connecting.addErrback(self._failed)
        return ready

    def _due(self) -> None:
        """The time is over, unless the loop was late: what it has lost is given back.

        In any case the sockets are looked at once more before the attempt is given up. A loop that
        was held up calls what is due before it looks, and the kernel may have connected long ago.
        """
        late = self._reactor.seconds() - self._began - self._seconds
        grace = min(max(late, 0.0), self._seconds)
        self._timer = self._reactor.callLater(grace, self._timed_out)

    def _timed_out(self) -> None:
        problem = ConnectTimeout("The backend could not be connected to in time.")
        self._connection.fail_ready(problem)
        self._give_up()

    def _failed(self, reason: Failure) -> None:
        problem = reason.value
        if not isinstance(problem, GatewayError):
            problem = Unreachable("The backend could not be reached.", detail=why(reason))
        self._connection.fail_ready(problem)

    def _give_up(self, _: object = None) -> None:
        self._connection.ready = None
        self._connection.abort()
        if self._connecting is not None:
            self._connecting.cancel()

    def _settled(self, result: Connection | Failure) -> Connection | Failure:
        if self._timer.active():
            self._timer.cancel()
        self._connection.connect_seconds = self._reactor.seconds() - self._began
        return result


def _send(connection: Connection, raw: bytes) -> Deferred[IResponse]:
    return connection.send(raw)


@implementer(IBodyProducer)
class BytesProducer:
    """A request body in hand. treq's default one goes through the cooperator for each request."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.length = len(body)

    def startProducing(self, consumer: Any) -> Deferred[None]:
        consumer.write(self.body)
        return succeed(None)

    def pauseProducing(self) -> None: ...
    def resumeProducing(self) -> None: ...
    def stopProducing(self) -> None: ...
