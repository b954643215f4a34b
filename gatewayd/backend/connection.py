"""One HTTP/1.1 connection to a backend, for one request at a time.

Idle -> ``send`` -> head -> body -> idle again, or closed. Whatever goes wrong closes it, and an
abort closes the socket in every state. What is read is judged in :mod:`.replying`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import error
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IDelayedCall,
    IHandshakeListener,
    IProtocol,
    IReactorTime,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import IResponse
from zope.interface import implementer

from gatewayd.sending import send
from gatewayd.wire.errors import ConnectionReset, TLSFailed, Truncated, Unreachable, UpstreamError

from .replying import ReplyParser

#: How long a body that nobody needs any more may still take, in seconds and bytes, before its
#: connection is closed rather than kept.
DRAIN_SECONDS = 1.0
DRAIN_BYTES = 64 * 1024
#: A connection kept idle longer than this is closed; less where the backend says so. uvicorn
#: closes after 5 s without saying so.
IDLE_SECONDS = 4.0

_DONE = Failure(ResponseDone())
_UNTIL_CLOSE = Failure(PotentialDataLoss())


class NoAnswer(ConnectionReset):
    """The connection died after a request was sent and before any byte came back."""


@implementer(IResponse)
class Response:
    """A reply's head; its body waits until :meth:`deliverBody`."""

    version = (b"HTTP", 1, 1)
    phrase = b""
    request = None
    previousResponse = None

    def __init__(self, connection: Connection, reply: ReplyParser) -> None:
        self.code = reply.code
        self.headers = reply.headers
        self.length = reply.length
        self.connect_seconds = connection.connect_seconds if connection.replies == 0 else 0.0
        self._connection = connection

    def deliverBody(self, protocol: IProtocol) -> None:
        self._connection.deliver(protocol)

    def setPreviousResponse(self, response: IResponse) -> None:
        """Redirects are never followed, so there is none."""


@implementer(IHandshakeListener)
class Connection(Protocol):
    """It is also the transport of its bodies' receivers, see
    :class:`gatewayd.backend.interface.Body`.

    :param secure: whether TLS must be established before it is ready.
    :param max_head: the most bytes that a reply's head may take.
    :param on_idle: told when it may be used again, after each reply.
    :param on_close: told once when it is closed.
    """

    transport: Any

    def __init__(
        self,
        reactor: IReactorTime,
        secure: bool,
        max_head: int,
        on_idle: Callable[[Connection], None],
        on_close: Callable[[Connection], None],
    ) -> None:
        self._reactor = reactor
        self._secure = secure
        self._max_head = max_head
        self._on_idle = on_idle
        self._on_close = on_close
        self.ready: Deferred[Connection] | None = None
        self.replies = 0
        self.connect_seconds = 0.0
        self.idle_seconds = IDLE_SECONDS
        self._closed = False
        self._max_replies = 0
        # Of the request under way: its reply, who waits for the head, who takes the body.
        self._reply: ReplyParser | None = None
        self._waiting: Deferred[IResponse] | None = None
        self._receiver: IProtocol | None = None
        self._early = b""  # of the body, before there is a receiver
        self._drained = -1  # bytes, since nobody needs the rest
        self._drain_timer: IDelayedCall | None = None

    # -- coming and going --------------------------------------------------------------------

    def connectionMade(self) -> None:
        if self._closed:  # given up while it was being connected
            self.transport.abortConnection()
            return
        self.transport.setTcpNoDelay(True)
        if not self._secure:
            # The endpoint's wrapper has done its work; it would pass on each segment.
            self.transport.protocol = self
            self._is_ready()

    def handshakeCompleted(self) -> None:
        self._is_ready()

    def _is_ready(self) -> None:
        ready, self.ready = self.ready, None
        if ready is not None:
            ready.callback(self)

    def fail_ready(self, reason: UpstreamError) -> None:
        """It did not come about."""
        self.abort()
        ready, self.ready = self.ready, None
        if ready is not None:
            ready.errback(reason)

    def abort(self) -> None:
        """Close the socket now, whatever is under way and whatever TLS would like to say."""
        self._closed = True
        if self.transport is not None:
            self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._closed = True
        self._on_close(self)
        self._stop_drain_timer()
        if self.ready is not None:
            self.fail_ready(
                TLSFailed("No TLS connection to the backend could be made.", detail=_why(reason))
                if self._secure
                else Unreachable("The backend closed the connection.", detail=_why(reason))
            )
        elif self._reply is not None:
            self._lost_while_busy(self._reply, reason)

    def _lost_while_busy(self, reply: ReplyParser, reason: Failure) -> None:
        clean = reason.check(error.ConnectionDone) is not None
        if self._waiting is not None:
            kind = ConnectionReset if reply.answered else NoAnswer
            self._fail(
                kind("The backend closed the connection without a reply.", detail=_why(reason))
            )
        elif reply.framed or not clean:
            self._fail(
                Truncated("The backend's reply broke off before its end.", detail=_why(reason))
            )
        else:
            self._end_body(_UNTIL_CLOSE)

    # -- one request -------------------------------------------------------------------------

    def send(self, raw: bytes) -> Deferred[IResponse]:
        """Send a request, whole. The Deferred fires with the head of its reply.

        :raises NoAnswer: the connection died without a byte of reply.
        :raises ConnectionReset, BadReply: later or otherwise.
        """
        self._reply = ReplyParser(self._max_head)
        self._receiver, self._early, self._drained = None, b"", -1
        self._waiting = waiting = Deferred[IResponse](self._abandon)
        send(self.transport, raw)
        return waiting

    def _abandon(self, _: Deferred[IResponse]) -> None:
        self._waiting = None
        self._part()
        self.abort()

    def dataReceived(self, data: bytes) -> None:
        if self._closed:
            return
        reply = self._reply
        if reply is None:
            self.abort()  # nobody asked
            return
        body = reply.feed(data)
        if self._receiver is None:
            self._hold(reply, body)
        elif body:
            self._receiver.dataReceived(body)
        # It may have been left by now, and another request may be under way.
        if self._reply is reply:
            if reply.problem is not None:
                self._fail(reply.problem)
            elif reply.complete:
                self._end_body(_DONE)

    def _hold(self, reply: ReplyParser, body: bytes) -> None:
        """Take what comes while there is no receiver: not yet, or not any more."""
        if self._drained >= 0:
            self._drained += len(body)
            if self._drained > DRAIN_BYTES:
                self.abort()
            return
        self._early += body
        if self._waiting is None or not reply.code:
            return
        waiting, self._waiting = self._waiting, None
        waiting.callback(Response(self, reply))
        if self._is_undelivered(reply) and not self._closed:
            self.transport.pauseProducing()

    def _is_undelivered(self, reply: ReplyParser) -> bool:
        return self._reply is reply and self._receiver is None and self._drained < 0

    def _end_body(self, reason: Failure) -> None:
        """The body is complete: tell its receiver, and be idle or close."""
        reply, receiver = self._reply, self._receiver
        if reply is None or (receiver is None and self._drained < 0):
            return  # deliver() comes back here
        self._part()
        self.replies += 1
        if self._closed:
            pass
        elif reason is not _DONE or not self._reusable(reply):
            self.abort()
        else:
            self._stop_drain_timer()
            self._on_idle(self)
        if receiver is not None:
            receiver.connectionLost(reason)

    def _reusable(self, reply: ReplyParser) -> bool:
        if reply.keep_alive_replies is not None:
            self._max_replies = reply.keep_alive_replies
        if reply.keep_alive_seconds is not None:
            # A second early, so that its close and our request do not cross.
            seconds = reply.keep_alive_seconds
            self.idle_seconds = seconds - 1 if seconds > 2 else seconds / 2
        return reply.keep_alive and not 0 < self._max_replies <= self.replies

    def _fail(self, reason: UpstreamError) -> None:
        reply, receiver = self._reply, self._receiver
        if reply is None:
            return
        waiting, self._waiting = self._waiting, None
        if waiting is None and receiver is None and self._drained < 0:
            reply.problem = reply.problem or reason  # deliver() will say so
            self.abort()
            return
        self._part()
        self.abort()
        if waiting is not None:
            waiting.errback(reason)
        elif receiver is not None:
            receiver.connectionLost(Failure(reason))

    def _part(self) -> None:
        """The request that was under way is no longer."""
        if self._reply is not None:
            self._reply.close()
        self._reply = self._receiver = None

    def _stop_drain_timer(self) -> None:
        if self._drain_timer is not None:
            self._drain_timer.cancel()
            self._drain_timer = None

    # -- the body's receiver -----------------------------------------------------------------

    def deliver(self, receiver: IProtocol) -> None:
        """Give what has come of the body, and what comes, to ``receiver``."""
        reply = self._reply
        self._receiver = receiver
        receiver.makeConnection(self)  # type: ignore[arg-type]
        if not self._closed:
            self.transport.resumeProducing()
        early, self._early = self._early, b""
        if early and self._receiver is receiver:
            receiver.dataReceived(early)
        if reply is None or self._reply is not reply:
            return  # it wanted no more
        if reply.problem is not None:
            self._fail(reply.problem)
        elif reply.complete:
            self._end_body(_DONE)
        elif self._closed:
            self._fail(Truncated("The backend's reply broke off before its end."))

    def pauseProducing(self) -> None:
        if not self._closed:
            self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        if not self._closed:
            self.transport.resumeProducing()

    def abortConnection(self) -> None:
        """The receiver wants no more, nor to be told of the end."""
        self._part()
        self.abort()

    stopProducing = abortConnection

    def loseConnection(self) -> None:
        """The receiver has all it needs: keep the connection if the body ends soon."""
        if self._reply is not None and not self._closed and self._drained < 0:
            self._receiver = None
            self._drained = 0
            self.transport.resumeProducing()
            self._drain_timer = self._reactor.callLater(DRAIN_SECONDS, self._drain_expired)

    def _drain_expired(self) -> None:
        self._drain_timer = None
        self.abort()


def _why(reason: Failure) -> str:
    return f"{type(reason.value).__name__}: {reason.getErrorMessage()}"
