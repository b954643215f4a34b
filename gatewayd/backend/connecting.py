"""Opens a connection to a backend: TCP, then TLS where it is used, within one clock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IHandshakeListener, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from gatewayd.wire.errors import ConnectTimeout, GatewayError, Unreachable

from .connection import Connection
from .failures import describe, tls_failed

if TYPE_CHECKING:
    from .tls import ClientTLS


@implementer(IHandshakeListener)
class Connecting(Protocol):
    """One attempt. It is the transport's protocol until the connection is open.

    :param connection: takes over the transport then.
    :param tls: opens TLS and checks the backend's certificate; None for plain TCP.
    :param seconds: for name lookup, TCP and TLS together.
    """

    transport: Any = None

    def __init__(
        self, reactor: Any, connection: Connection, tls: ClientTLS | None, seconds: float
    ) -> None:
        self._reactor = reactor
        self._connection = connection
        self._tls = tls
        self._seconds = seconds
        self._began = reactor.seconds()
        self._timer = reactor.callLater(seconds, self._time_is_up)
        self._tcp: Deferred[Any] | None = None
        self._result: Deferred[Connection] | None = Deferred(self._cancelled)  # None: it is over

    def begin(self, endpoint: IStreamClientEndpoint) -> Deferred[Connection]:
        """Connect. Cancelling the Deferred abandons the attempt in any step.

        :raises GatewayError: the connection could not be opened.
        """
        result = self._result
        assert result is not None
        factory = Factory.forProtocol(lambda: self)
        factory.noisy = False
        wrapped = factory if self._tls is None else self._tls.wrap(factory)
        self._tcp = maybeDeferred(endpoint.connect, wrapped)
        self._tcp.addErrback(self._tcp_failed)
        return result

    # -- the steps -------------------------------------------------------------------------------

    def _tcp_failed(self, reason: Failure) -> None:
        problem = reason.value
        if not isinstance(problem, GatewayError):
            problem = Unreachable("The backend could not be reached.", detail=describe(reason))
        self._fail(problem)

    def connectionMade(self) -> None:
        if self._result is None:
            self._abandon()
            return
        self.transport.setTcpNoDelay(True)
        if self._tls is None:
            self._succeed()

    def handshakeCompleted(self) -> None:
        assert self._tls is not None
        mismatch = self._tls.mismatch(self.transport.getHandle())
        if mismatch is None:
            self._succeed()
        else:
            self._fail(tls_failed(mismatch))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        transport, self.transport = self.transport, None
        if self._result is None:
            return
        if self._tls is None:
            detail = describe(reason)
            self._fail(Unreachable("The backend closed the connection.", detail=detail))
        else:
            self._fail(tls_failed(self._tls.handshake_problem(reason, transport.getHandle())))

    # -- the clock -------------------------------------------------------------------------------

    def _time_is_up(self) -> None:
        """Look at the sockets once more, then give up.

        A reactor that was held up calls what is due before it looks at its sockets, and the kernel
        may have connected long ago. The time by which this call is late is given back, too.
        """
        late = self._reactor.seconds() - self._began - self._seconds
        grace = min(max(late, 0.0), self._seconds)
        self._timer = self._reactor.callLater(grace, self._timed_out)

    def _timed_out(self) -> None:
        self._fail(ConnectTimeout("The backend could not be connected to in time."))

    # -- the result ------------------------------------------------------------------------------

    def _succeed(self) -> None:
        """Hand over the transport."""
        result = self._finish()
        if result is None:
            return
        # Replaces the endpoint's wrapper too, which would add a call for each segment.
        if self._tls is None:
            self.transport.protocol = self._connection
        else:
            self.transport.wrappedProtocol = self._connection
        self._tcp = self.factory = None  # break the reference cycles
        self._connection.connect_seconds = self._reactor.seconds() - self._began
        self._connection.makeConnection(self.transport)
        result.callback(self._connection)

    def _fail(self, problem: GatewayError) -> None:
        result = self._finish()
        self._abandon()
        if result is not None:
            result.errback(problem)

    def _cancelled(self, _: Deferred[Connection]) -> None:
        self._finish()
        self._abandon()

    def _finish(self) -> Deferred[Connection] | None:
        """Stop the clock. Returns the Deferred to fire; None if the attempt was over."""
        result, self._result = self._result, None
        if self._timer.active():
            self._timer.cancel()
        return result

    def _abandon(self) -> None:
        if self.transport is not None:
            self.transport.abortConnection()
        if self._tcp is not None:
            self._tcp.cancel()
