"""The ``IAgent`` that treq drives: one backend's connections, newest idle one first.

Twisted's own agent accepts what a gateway must refuse and keeps what it must drop (see
``docs/architecture.rst``); this one is for relaying, and only that: no redirects, no cookies, no
content codings, bodies sent whole, every wait bounded or cancellable.

At most one execution: a request goes out on one connection. Only when that was an idle one which
dies without a byte within :data:`STALE_SECONDS` is the request sent again, once, on a fresh one:
the backend had closed it while the request was on its way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import SplitResult

from twisted.internet import error
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    wrapClientTLS,
)
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHostnameResolver,
    IHostResolution,
    IOpenSSLClientConnectionCreator,
    IReactorPluggableNameResolver,
    IResolutionReceiver,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from gatewayd.wire.errors import ConnectTimeout, UnknownHost, Unreachable, UpstreamError

from .connection import Connection, NoAnswer

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
        tls: IOpenSSLClientConnectionCreator | None,
        connect_timeout: float,
        max_head: int,
    ) -> None:
        self._reactor = reactor
        self._authority = base.netloc.encode("ascii")
        self._prefix = f"{base.scheme}://{base.netloc}".encode("ascii")
        self._secure = tls is not None
        self._endpoint = _endpoint(reactor, base, tls)
        self._connect_timeout = connect_timeout
        self._max_head = max_head
        self._idle: list[Connection] = []
        self._expires: dict[Connection, float] = {}
        self._sweep: IDelayedCall | None = None

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
        """Close the idle connections."""
        for connection in list(self._idle):
            connection.abort()
        self._idle.clear()
        self._expires.clear()
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    def _encode(self, method: bytes, uri: bytes, headers: Headers, body: bytes) -> bytes:
        head = [method + b" " + uri[len(self._prefix) :] + b" HTTP/1.1\r\nHost: " + self._authority]
        for name, values in headers.getAllRawHeaders():
            if name.lower() not in _OURS:
                head += [name + b": " + value for value in values]
        if body or method != b"GET":
            head.append(b"Content-Length: %d" % len(body))
        return b"\r\n".join(head) + b"\r\n\r\n" + body

    # -- the pool ----------------------------------------------------------------------------

    def _newest_idle(self) -> Connection | None:
        now = self._reactor.seconds()
        while self._idle:
            connection = self._idle.pop()
            if self._expires.pop(connection) > now:
                return connection
            connection.abort()
        return None

    def _is_idle(self, connection: Connection) -> None:
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
            self._is_closed(connection)
            connection.abort()
        self._sweep = self._reactor.callLater(1.0, self._close_expired) if self._idle else None

    # -- connecting --------------------------------------------------------------------------

    def _connect(self) -> Deferred[Connection]:
        began = self._reactor.seconds()
        connection = Connection(
            self._reactor, self._secure, self._max_head, self._is_idle, self._is_closed
        )
        connecting: Deferred[Any] | None = None

        def give_up(_: object = None) -> None:
            connection.ready = None
            connection.abort()
            if connecting is not None:
                connecting.cancel()

        def timed_out() -> None:
            connection.fail_ready(ConnectTimeout("The backend could not be connected to in time."))
            give_up()

        def settled(result: Connection | Failure) -> Connection | Failure:
            if timer.active():
                timer.cancel()
            connection.connect_seconds = self._reactor.seconds() - began
            return result

        ready: Deferred[Connection] = Deferred(give_up)
        connection.ready = ready
        timer = self._reactor.callLater(self._connect_timeout, timed_out)
        ready.addBoth(settled)
        factory = Factory.forProtocol(lambda: connection)
        factory.noisy = False
        connecting = self._endpoint.connect(factory)
        assert connecting is not None
        connecting.addErrback(lambda reason: connection.fail_ready(_unreachable(reason)))
        return ready


def _unreachable(reason: Failure) -> UpstreamError:
    detail = f"{type(reason.value).__name__}: {reason.getErrorMessage()}"
    if reason.check(error.DNSLookupError):
        return UnknownHost("The backend's host name could not be resolved.", detail=detail)
    if reason.check(error.TimeoutError):
        return ConnectTimeout("The backend could not be connected to in time.", detail=detail)
    return Unreachable("The backend could not be reached.", detail=detail)


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


# -- names -----------------------------------------------------------------------------------


def _endpoint(
    reactor: Any, base: SplitResult, tls: IOpenSSLClientConnectionCreator | None
) -> IStreamClientEndpoint:
    host = base.hostname or ""
    port = base.port or (443 if tls is not None else 80)
    endpoint: IStreamClientEndpoint
    if ":" in host:
        endpoint = TCP6ClientEndpoint(reactor, host, port)
    elif host.replace(".", "").isdigit():
        endpoint = TCP4ClientEndpoint(reactor, host, port)
    else:
        endpoint = HostnameEndpoint(_SharedLookup(reactor), host, port)
    return endpoint if tls is None else wrapClientTLS(tls, endpoint)


@implementer(IReactorPluggableNameResolver, IHostnameResolver, IResolutionReceiver, IHostResolution)
class _SharedLookup:
    """The reactor, but with one name look-up at a time for all who wait.

    A look-up holds a thread of the reactor's small pool until the system's resolver gives up.
    Shared, one that hangs holds one thread for its backend instead of one for each request, and
    the other backends' names still resolve.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self.nameResolver = self
        self._waiting: list[IResolutionReceiver] = []
        self._found: list[IAddress] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._reactor, name)

    def installNameResolver(self, resolver: IHostnameResolver) -> IHostnameResolver:
        installed: IHostnameResolver = self._reactor.installNameResolver(resolver)
        return installed

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type[IAddress]] | None = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        self._waiting.append(resolutionReceiver)
        resolutionReceiver.resolutionBegan(self)
        if len(self._waiting) == 1:
            self._found = []
            self._reactor.nameResolver.resolveHostName(self, hostName, portNumber)
        return self

    def cancel(self) -> None:
        """Who stopped waiting does not mind being told the result."""

    def resolutionBegan(self, resolution: IHostResolution) -> None:
        self.name = resolution.name

    def addressResolved(self, address: IAddress) -> None:
        self._found.append(address)

    def resolutionComplete(self) -> None:
        waiting, self._waiting = self._waiting, []
        for receiver in waiting:
            for address in self._found:
                receiver.addressResolved(address)
            receiver.resolutionComplete()
