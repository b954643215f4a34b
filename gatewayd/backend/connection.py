"""One HTTP/1.1 connection to a backend, for one request at a time.

llhttp parses, strictly; this module adds what it leaves open: limits on the head and on interim
replies, framing told apart (chunked, length, until close), codings refused because none was asked
for, surplus bytes, and an abort that closes the socket in every state.

Idle -> ``send`` -> head -> body -> idle again, or closed. Whatever goes wrong closes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import httptools
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
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IResponse
from zope.interface import implementer

from gatewayd.sending import send
from gatewayd.wire.errors import (
    BadReply,
    ConnectionReset,
    TLSFailed,
    Truncated,
    Unreachable,
    UpstreamError,
)

#: Interim (1xx) replies before the real one. Each costs work and says nothing.
MAX_INTERIM = 1000
#: How long a body that nobody needs any more may still take, in seconds and bytes, before its
#: connection is closed rather than kept.
DRAIN_SECONDS = 1.0
DRAIN_BYTES = 64 * 1024
#: A connection kept idle longer than this is closed; less where the backend says so. uvicorn
#: closes after 5 s without saying so.
IDLE_SECONDS = 4.0

_KEEP_ALIVE = re.compile(rb"(timeout|max)\s*=\s*(\d{1,9})", re.IGNORECASE)

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

    def __init__(self, connection: Connection, code: int, headers: Headers, length: object) -> None:
        self.code = code
        self.headers = headers
        self.length = length
        self.connect_seconds = connection.connect_seconds if connection.replies == 0 else 0.0
        self._connection = connection

    def deliverBody(self, protocol: IProtocol) -> None:
        self._connection.deliver(protocol)

    def setPreviousResponse(self, response: IResponse) -> None:
        """Redirects are never followed, so there is none."""


class BodyTransport:
    """What the receiver of a body may do; see :class:`gatewayd.backend.interface.Body`."""

    def __init__(self, connection: Connection) -> None:
        self.pauseProducing = connection.pause
        self.resumeProducing = connection.resume
        self.stopProducing = self.abortConnection = connection.leave
        self.loseConnection = connection.release


@implementer(IHandshakeListener)
class Connection(Protocol):
    """
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
        self._waiting: Deferred[IResponse] | None = None
        self._busy = False
        self._drain_timer: IDelayedCall | None = None
        self._parser: Any = None

    # -- coming and going --------------------------------------------------------------------

    def connectionMade(self) -> None:
        if self._closed:  # given up while it was being connected
            self.transport.abortConnection()
            return
        self.transport.setTcpNoDelay(True)
        if not self._secure:
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
        if self._drain_timer is not None:
            self._drain_timer.cancel()
            self._drain_timer = None
        if self.ready is not None:
            self.fail_ready(
                TLSFailed("No TLS connection to the backend could be made.", detail=_why(reason))
                if self._secure
                else Unreachable("The backend closed the connection.", detail=_why(reason))
            )
        elif self._busy:
            self._lost_while_busy(reason)
        self._parser = None

    def _lost_while_busy(self, reason: Failure) -> None:
        clean = reason.check(error.ConnectionDone) is not None
        if self._waiting is not None:
            kind = ConnectionReset if self._answered else NoAnswer
            self._fail(
                kind("The backend closed the connection without a reply.", detail=_why(reason))
            )
        elif self._framed or not clean:
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
        self._busy = True
        self._answered = False
        self._parser = httptools.HttpResponseParser(self)
        self._begun = self._complete = self._framed = False
        self._in_head = True
        self._head_size = self._interim = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._response: Response | None = None
        self._receiver: IProtocol | None = None
        self._parts: list[bytes] = []
        self._drained = -1
        self._failure: UpstreamError | None = None
        self._waiting = waiting = Deferred[IResponse](self._abandon)
        send(self.transport, raw)
        return waiting

    def _abandon(self, _: Deferred[IResponse]) -> None:
        self._waiting = None
        self._busy = False
        self.abort()

    def dataReceived(self, data: bytes) -> None:
        if self._closed:
            return
        if not self._busy:
            self.abort()  # nobody asked
            return
        self._answered = True
        if self._in_head:
            self._head_size += len(data)
        problem: UpstreamError | None = None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            problem = BadReply("The backend switched to another protocol.")
        except httptools.HttpParserError as e:
            cause = e.__context__
            problem = (
                cause
                if isinstance(cause, UpstreamError)
                else BadReply("The backend's reply is not valid HTTP.", detail=str(e))
            )
        if problem is None and self._in_head and self._head_size > self._max_head:
            problem = BadReply("The head of the backend's reply is too large.")
        if problem is not None and self._complete:
            # The reply is whole; what follows it is nobody's, and whose it is next is not known.
            problem, self._keep_alive = None, False
        if self._response is not None and self._waiting is not None:
            response, waiting, self._waiting = self._response, self._waiting, None
            waiting.callback(response)
            if not self._is_under_way(response):
                return  # it was delivered whole, and another request may be under way already
            if self._receiver is None and self._drained < 0 and not self._closed:
                self.transport.pauseProducing()
        if self._parts:
            self._flush()
        if problem is not None:
            self._fail(problem)
        elif self._complete:
            self._end_body(_DONE)

    def _is_under_way(self, response: Response) -> bool:
        return self._busy and self._response is response

    def _flush(self) -> None:
        if self._drained >= 0:
            self._drained += sum(map(len, self._parts))
            self._parts.clear()
            if self._drained > DRAIN_BYTES:
                self.abort()
        elif self._receiver is not None:
            parts = self._parts
            data = parts[0] if len(parts) == 1 else b"".join(parts)
            self._parts = []
            self._receiver.dataReceived(data)

    def _end_body(self, reason: Failure) -> None:
        """The body is complete: tell its receiver, and be idle or close."""
        if not self._busy or (self._receiver is None and self._drained < 0):
            return  # deliver() comes back here
        self._busy = False
        receiver, self._receiver = self._receiver, None
        self.replies += 1
        if self._closed:
            pass
        elif reason is not _DONE or not self._reusable():
            self.abort()
        else:
            if self._drain_timer is not None:
                self._drain_timer.cancel()
                self._drain_timer = None
            self._on_idle(self)
        if receiver is not None:
            receiver.connectionLost(reason)

    def _reusable(self) -> bool:
        return self._keep_alive and not 0 < self._max_replies <= self.replies

    def _fail(self, reason: UpstreamError) -> None:
        if not self._busy:
            return
        if self._response is not None and self._waiting is None and self._receiver is None:
            if self._failure is None:
                self._failure = reason  # deliver() will say so
            self.abort()
            return
        self._busy = False
        self.abort()
        waiting, self._waiting = self._waiting, None
        receiver, self._receiver = self._receiver, None
        if waiting is not None:
            waiting.errback(reason)
        elif receiver is not None:
            receiver.connectionLost(Failure(reason))

    # -- the body's receiver -----------------------------------------------------------------

    def deliver(self, receiver: IProtocol) -> None:
        """Give what has come of the body, and what comes, to ``receiver``."""
        self._receiver = receiver
        receiver.makeConnection(BodyTransport(self))  # type: ignore[arg-type]
        if not self._closed:
            self.transport.resumeProducing()
        if self._parts:
            self._flush()
        if self._failure is not None:
            self._fail(self._failure)
        elif self._complete:
            self._end_body(_DONE)
        elif self._closed:
            self._fail(Truncated("The backend's reply broke off before its end."))

    def leave(self) -> None:
        """The receiver wants no more, nor to be told of the end."""
        self._receiver = None
        self._busy = False
        self.abort()

    def pause(self) -> None:
        if not self._closed:
            self.transport.pauseProducing()

    def resume(self) -> None:
        if not self._closed:
            self.transport.resumeProducing()

    def release(self) -> None:
        """The receiver has all it needs: keep the connection if the body ends soon."""
        if self._busy and not self._closed and self._drained < 0:
            self._receiver = None
            self._drained = 0
            self.transport.resumeProducing()
            self._drain_timer = self._reactor.callLater(DRAIN_SECONDS, self._drain_expired)

    def _drain_expired(self) -> None:
        self._drain_timer = None
        self.abort()

    # -- llhttp calls these while it is fed; what they raise comes out of feed_data ----------

    def on_message_begin(self) -> None:
        if self._begun and self._complete:
            raise BadReply("The backend sent more than its reply.")
        self._begun = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer: nothing here reads those
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        code = self._parser.get_status_code()
        if code == 101:
            raise BadReply("The backend switched to another protocol.")
        if code < 200:
            self._interim += 1
            self._headers.clear()
            if self._interim > MAX_INTERIM:
                raise BadReply("The backend sent interim replies without end.")
            self._head_size = 0
            return
        if sum(len(n) + len(v) + 4 for n, v in self._headers) > self._max_head:
            raise BadReply("The head of the backend's reply is too large.")
        self._in_head = False
        self._read_head(code)

    def _read_head(self, code: int) -> None:
        length: object = UNKNOWN_LENGTH
        headers = Headers()
        for name, value in self._headers:
            if name == b"content-length":
                length = int(value)
                self._framed = True
            elif name == b"transfer-encoding":
                if value.lower() != b"chunked":
                    raise BadReply("The backend used an unknown transfer coding.")
                self._framed = True
            elif name == b"content-encoding":
                if value.lower() != b"identity":
                    raise BadReply("The backend used a content coding that was not asked for.")
            elif name == b"keep-alive":
                self._read_keep_alive(value)
            elif name not in (b"set-cookie", b"connection"):
                headers.addRawHeader(name, value)
        if code in (204, 304):
            self._framed = True
        self._response = Response(self, code, headers, length)

    def _read_keep_alive(self, value: bytes) -> None:
        for key, number in _KEEP_ALIVE.findall(value):
            if key.lower() == b"max":
                self._max_replies = int(number)
            else:
                # A second early, so that its close and our request do not cross.
                seconds = float(number)
                self.idle_seconds = seconds - 1 if seconds > 2 else seconds / 2

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        if self._in_head:
            return  # of an interim reply
        self._complete = True
        self._keep_alive = self._parser.should_keep_alive()


def _why(reason: Failure) -> str:
    return f"{type(reason.value).__name__}: {reason.getErrorMessage()}"
