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

from gatewayd.http1.replies import ReplyParser
from gatewayd.sending import send
from gatewayd.wire.errors import (
    ConnectionReset,
    GatewayError,
    Truncated,
    Unreachable,
    UpstreamError,
)

from .failures import no_tls, why
from .response import Response
from .sockets import has_unread, has_unsent
from .tls import ClientTLS, explain

#: How long a body that nobody needs any more may still take, in seconds and bytes, before its
#: connection is closed rather than kept.
DRAIN_SECONDS = 1.0
DRAIN_BYTES = 64 * 1024
#: A connection kept idle longer than this is closed; less where the backend says so. uvicorn
#: closes after 5 s without saying so.
IDLE_SECONDS = 4.0
#: The most, whatever the backend says: firewalls forget idle connections without a word.
MAX_IDLE_SECONDS = 60.0

_DONE = Failure(ResponseDone())
_UNTIL_CLOSE = Failure(PotentialDataLoss())


class NoAnswer(ConnectionReset):
    """The connection died after a request was sent and before any byte came back."""


@implementer(IHandshakeListener)
class Connection(Protocol):
    """
    A connection that is idle, and so in a pool, is always one that is read, and has nothing left
    of the request before.

    :param tls: what it checks the backend's certificate with; None where there is no TLS.
    :param max_head: the most bytes that a reply's head may take; may change between requests.
    :param on_idle: told when it may be used again, after each reply.
    :param on_close: told once when it is closed, at once if that is this side's doing.
    """

    transport: Any

    def __init__(
        self,
        reactor: IReactorTime,
        tls: ClientTLS | None,
        max_head: int,
        on_idle: Callable[[Connection], None],
        on_close: Callable[[Connection], None],
    ) -> None:
        self._reactor = reactor
        self._tls = tls
        self.max_head = max_head
        self._on_idle = on_idle
        self._on_close = on_close
        self.ready: Deferred[Connection] | None = None
        self.replies = 0
        self.connect_seconds = 0.0
        self.idle_seconds = IDLE_SECONDS
        self._closed = False
        self._paused = False
        self._max_replies = 0
        # Of the request under way: its size, its reply, the Deferred that waits for the head, the
        # response whose receiver may command this connection, and that receiver.
        self._request_size = 0
        self._reply: ReplyParser | None = None
        self.response: Response | None = None
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
        if self._tls is None:
            # The endpoint's wrapper has done its work; it would pass on each segment.
            self.transport.protocol = self
            self._is_ready()

    def handshakeCompleted(self) -> None:
        assert self._tls is not None
        mismatch = self._tls.mismatch(self.transport.getHandle())
        if mismatch is None:
            self._is_ready()
        else:
            self.fail_ready(no_tls(mismatch))

    def _is_ready(self) -> None:
        ready, self.ready = self.ready, None
        if ready is not None:
            ready.callback(self)

    def fail_ready(self, reason: GatewayError) -> None:
        """It did not come about."""
        self.abort()
        ready, self.ready = self.ready, None
        if ready is not None:
            ready.errback(reason)

    def abort(self) -> None:
        """Close the socket now, whatever is under way and whatever TLS would like to say."""
        self._retire()
        if self.transport is not None:
            self.transport.abortConnection()

    def _retire(self) -> None:
        """Take no further request. The pool must know now; TCP tells of an abort a turn later."""
        if not self._closed:
            self._closed = True
            self._on_close(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        handle = None if self._tls is None else self.transport.getHandle()
        self.transport = None  # there is nothing left to abort
        self._retire()
        self._stop_drain_timer()
        if self.ready is not None:
            self.fail_ready(
                Unreachable("The backend closed the connection.", detail=why(reason))
                if self._tls is None
                else no_tls(explain(reason, handle))
            )
        elif self._reply is not None:
            self._lost_while_busy(self._reply, reason)

    def _lost_while_busy(self, reply: ReplyParser, reason: Failure) -> None:
        clean = reason.check(error.ConnectionDone) is not None
        if self._waiting is not None:
            kind = ConnectionReset if reply.answered else NoAnswer
            self._fail(
                kind("The backend closed the connection without a reply.", detail=why(reason))
            )
        elif reply.framed or not clean:
            self._fail(
                Truncated("The backend's reply broke off before its end.", detail=why(reason))
            )
        else:
            self._end_body(_UNTIL_CLOSE)

    # -- one request -------------------------------------------------------------------------

    def send(self, raw: bytes) -> Deferred[IResponse]:
        """Send a request, whole. The Deferred fires with the head of its reply.

        :raises NoAnswer: the connection died without a byte of reply.
        :raises ConnectionReset, BadReply: later or otherwise.
        """
        self._reply = ReplyParser(self.max_head)
        self._receiver, self._early, self._drained = None, b"", -1
        self._request_size = len(raw)
        self._waiting = waiting = Deferred[IResponse](self._abandon)
        send(self.transport, raw)
        return waiting

    def _abandon(self, _: Deferred[IResponse]) -> None:
        self._waiting = None
        self.leave()

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
        self.response = response = Response(self, reply)
        waiting.callback(response)
        if self.response is response and self._receiver is None:
            self.pause()  # until it is delivered

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
            self.resume()
            self._on_idle(self)
        if receiver is not None:
            receiver.connectionLost(reason)

    def _reusable(self, reply: ReplyParser) -> bool:
        if reply.keep_alive_replies is not None:
            self._max_replies = reply.keep_alive_replies
        if reply.keep_alive_seconds is not None:
            # A second early, so that its close and our request do not cross.
            seconds = min(reply.keep_alive_seconds, MAX_IDLE_SECONDS)
            self.idle_seconds = seconds - 1 if seconds > 2 else seconds / 2
        return (
            reply.keep_alive
            and not 0 < self._max_replies <= self.replies
            # One that answered before it had the whole request may never read the rest.
            and not has_unsent(self.transport, self._request_size)
        )

    def is_silent(self) -> bool:
        """Whether nothing has come to an idle one: it would be taken for the next reply."""
        return not has_unread(self.transport)

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
        self._reply = self.response = self._receiver = None

    def _stop_drain_timer(self) -> None:
        if self._drain_timer is not None:
            self._drain_timer.cancel()
            self._drain_timer = None

    # -- the body and its receiver -------------------------------------------------------------

    def deliver(self, response: Response, receiver: IProtocol) -> None:
        """Give what has come of a response's body, and what comes, to ``receiver``."""
        reply = self._reply
        self._receiver = receiver
        self.resume()
        receiver.makeConnection(response)  # type: ignore[arg-type]
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

    def pause(self) -> None:
        """Read no more for now."""
        if not self._closed and not self._paused:
            self._paused = True
            self.transport.pauseProducing()

    def resume(self) -> None:
        """Read again."""
        if self._paused:
            self._paused = False
            if not self._closed:
                self.transport.resumeProducing()

    def leave(self) -> None:
        """Part from the request under way, and close."""
        self._part()
        self.abort()

    def drain(self) -> None:
        """Nobody needs the rest of the body: read it if it is short, else close."""
        self.response = self._receiver = None
        if not self._closed:
            self._drained = 0
            self.resume()
            self._drain_timer = self._reactor.callLater(DRAIN_SECONDS, self._drain_expired)

    def _drain_expired(self) -> None:
        self._drain_timer = None
        self.abort()
