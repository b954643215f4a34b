"""One open HTTP/1.1 connection to a backend: one request after the other.

:class:`State` and :data:`TRANSITIONS` are the theory of operation. Opening a connection is the work
of :mod:`.connecting`, keeping idle ones that of :mod:`.pool`. What a backend sends is parsed and
judged by :mod:`gatewayd.http1.replies`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet import error
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import IResponse

from gatewayd.http1.replies import ReplyParser
from gatewayd.sending import send
from gatewayd.wire.errors import ConnectionReset, Truncated, UpstreamError

from .discarding import Discarding
from .failures import describe
from .response import BodyReceiver, Response
from .sockets import arrivals, has_unsent

#: An idle connection is closed after this many seconds, or earlier if the backend asks for it.
#: uvicorn closes idle connections after 5 s and does not announce it.
IDLE_SECONDS = 4.0
#: The longest idle time that a backend can ask for: firewalls drop idle connections silently.
MAX_IDLE_SECONDS = 60.0

_DONE = Failure(ResponseDone())
_UNTIL_CLOSE = Failure(PotentialDataLoss())


class State(enum.IntEnum):  # its members are hashed in C
    #: No request. The connection is in the pool, or about to be used. It is always read.
    IDLE = enum.auto()
    #: A request was sent; the head of its reply has not arrived.
    AWAITING_HEAD = enum.auto()
    #: The head was handed out. The :class:`Response` holds the body until there is a receiver.
    HOLDING = enum.auto()
    #: A receiver takes the body, and can pause the connection.
    DELIVERING = enum.auto()
    #: The receiver does not need the rest of the body: it is read and dropped, within limits.
    DISCARDING = enum.auto()
    #: Closed, or being closed. Later events are ignored.
    CLOSED = enum.auto()


class Event(enum.IntEnum):
    SEND = enum.auto()
    HEAD = enum.auto()
    DELIVER = enum.auto()
    DISCARD = enum.auto()
    #: The reply is complete, and the connection can be used again.
    END = enum.auto()
    #: The backend or the gateway closes the connection, for any reason.
    CLOSE = enum.auto()


# Names of the module: an attribute of an enumeration costs a call in Python 3.11.
IDLE, AWAITING_HEAD, HOLDING, DELIVERING, DISCARDING, CLOSED = State
SEND, HEAD, DELIVER, DISCARD, END, CLOSE = Event

#: The events that can occur in each state, and the state that follows.
TRANSITIONS: dict[State, dict[Event, State]] = {
    IDLE: {SEND: AWAITING_HEAD, CLOSE: CLOSED},
    AWAITING_HEAD: {HEAD: HOLDING, CLOSE: CLOSED},
    HOLDING: {DELIVER: DELIVERING, END: IDLE, CLOSE: CLOSED},
    DELIVERING: {DISCARD: DISCARDING, END: IDLE, CLOSE: CLOSED},
    DISCARDING: {END: IDLE, CLOSE: CLOSED},
    CLOSED: {CLOSE: CLOSED},
}


SendAgain = Callable[[], Deferred[IResponse] | None]


class Connection(Protocol):
    """
    :param max_head: the largest head of a reply, in bytes; may change between requests.
    :param on_idle: called after each reply if the connection can be used again.
    :param on_close: called once when the connection closes; immediately if the gateway closes it.
    """

    transport: Any = None
    #: Parses the replies.
    parser = ReplyParser

    def __init__(
        self,
        reactor: IReactorTime,
        max_head: int,
        on_idle: Callable[[Connection], None],
        on_close: Callable[[Connection], None],
    ) -> None:
        self.state = IDLE
        self.max_head = max_head
        #: Seconds that opening it took.
        self.connect_seconds = 0.0
        #: Seconds for which it may stay idle.
        self.idle_seconds = IDLE_SECONDS
        #: Complete replies so far.
        self.replies = 0
        #: The response that may control this connection: from its head until its body has ended.
        self.response: Response | None = None
        self._reactor = reactor
        self._on_idle = on_idle
        self._on_close = on_close
        self._arrivals: Callable[[], Sequence[Any]] | None = None
        self._paused = False
        self._max_replies = 0  # after which the backend closes; 0 if unknown
        self._request_size = 0
        self._reply: ReplyParser | None = None  # of the current request
        self._head: Deferred[IResponse] | None = None  # while its head is awaited
        self._key = ""
        self._send_again: SendAgain | None = None
        self._sent_again: Deferred[IResponse] | None = None  # what became of its last request
        self._receiver: BodyReceiver | None = None  # of its body, from the head on

    def send(
        self, raw: bytes, key: str = "", send_again: SendAgain | None = None
    ) -> Deferred[IResponse]:
        """Send a whole request. The Deferred fires with the head of the reply.

        Cancelling the Deferred closes the connection.

        :param key: the API key in it.
        :param send_again: called if the connection is lost before any byte of a reply. It sends
            the request on another connection and returns its Deferred, or returns None.
        :raises ConnectionReset, BadReply: there is no reply, it broke off in its head, or its head
            is not valid.
        """
        self.state = TRANSITIONS[self.state][SEND]
        self._reply = self.parser(self.max_head)
        self._request_size = len(raw)
        head: Deferred[IResponse] = Deferred(self._cancelled)
        self._head = head
        self._key, self._send_again = key, send_again
        send(self.transport, raw)
        return head

    def dataReceived(self, data: bytes) -> None:
        reply = self._reply
        if reply is None:
            self.abort()  # bytes without a request; no-op if it is closed
            return
        body = reply.feed(data)
        receiver = self._receiver
        if receiver is None:
            if reply.code:
                self._hand_out_head(reply, body)
        elif body:
            receiver.dataReceived(body)
        # The receiver may have closed the connection, or begun the next request on it.
        if reply.over and self._reply is reply:
            if reply.problem is not None:
                self._fail(reply.problem)
            else:
                self._end(reply, _DONE)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.transport = None
        reply = self._reply
        if reply is None:
            self.abort()
            return
        detail = describe(reason)
        if self.state is AWAITING_HEAD:
            head, again = self._head, None
            if not reply.answered and self._send_again is not None:
                again = self._send_again()
            if again is None or head is None:
                message = "The backend closed the connection without a reply."
                self._fail(ConnectionReset(message, detail=detail))
            else:
                self.abort()
                self._sent_again = again
                again.chainDeferred(head)
        elif reply.framed or not reason.check(error.ConnectionDone):
            self._fail(Truncated("The backend's reply broke off before its end.", detail=detail))
        else:
            self._end(reply, _UNTIL_CLOSE)

    def abort(self) -> None:
        """Close the socket immediately, in any state, without waiting for TLS.

        Neither the receiver nor the Deferred of :meth:`send` is called.
        """
        closed, self.state = self.state is CLOSED, TRANSITIONS[self.state][CLOSE]
        self._forget_request()
        if not closed:
            self._on_close(self)  # now: TCP reports an abort only in the reactor's next turn
        if self.transport is not None:
            self.transport.abortConnection()

    def _cancelled(self, _: Deferred[IResponse]) -> None:
        """The canceller of the Deferred of :meth:`send`."""
        if self._sent_again is None:
            self.abort()
        else:
            self._sent_again.cancel()

    def is_silent(self) -> bool:
        """Whether an idle connection has received nothing, which would be read as a reply."""
        if self._arrivals is None:
            self._arrivals = arrivals(self.transport)
        return not self._arrivals()

    # -- one reply -------------------------------------------------------------------------------

    def _hand_out_head(self, reply: ReplyParser, body: bytes) -> None:
        """The head is complete; ``body`` is the part of the body that arrived with it."""
        self.state = TRANSITIONS[self.state][HEAD]
        head, self._head, self._send_again = self._head, None, None
        self._receiver = self.response = response = Response(self, reply, body, self._key)
        assert head is not None
        head.callback(response)
        if self._receiver is response:
            self.pause()  # until there is a receiver

    def _end(self, reply: ReplyParser, reason: Failure) -> None:
        """The body is complete: become idle, or close. Then tell the receiver."""
        receiver = self._receiver
        self.replies += 1
        if reason is _DONE and self._is_reusable(reply):
            self.state = TRANSITIONS[self.state][END]
            self._forget_request()
            if self._paused:
                self.resume()
            self._on_idle(self)
        else:
            self.abort()
        if receiver is not None:
            receiver.connectionLost(reason)

    def _is_reusable(self, reply: ReplyParser) -> bool:
        if reply.keep_alive_replies is not None:
            self._max_replies = reply.keep_alive_replies
        if reply.keep_alive_seconds is not None:
            # One second less, so that the backend does not close while a request is on its way.
            seconds = min(reply.keep_alive_seconds, MAX_IDLE_SECONDS)
            self.idle_seconds = seconds - 1 if seconds > 2 else seconds / 2
        return (
            reply.keep_alive
            and not 0 < self._max_replies <= self.replies
            # A backend that replies before it has read the whole request may never read the rest.
            and not has_unsent(self.transport, self._request_size)
        )

    def _fail(self, problem: UpstreamError) -> None:
        """The reply cannot be completed: close, then report it to the waiter or the receiver."""
        head, receiver = self._head, self._receiver
        self.abort()
        if head is not None:
            head.errback(problem)
        elif receiver is not None:
            receiver.connectionLost(Failure(problem))

    def _forget_request(self) -> None:
        if self._reply is not None:
            self._reply.close()
        self._reply = self._head = self._send_again = self._receiver = self.response = None

    # -- called by the response ------------------------------------------------------------------

    def deliver_to(self, receiver: BodyReceiver) -> None:
        """Have ``receiver`` take the rest of the body."""
        self.state = TRANSITIONS[self.state][DELIVER]
        self._receiver = receiver
        if self._paused:
            self.resume()

    def discard_rest(self) -> None:
        """Read and drop the rest of the body if it is short; otherwise close."""
        self.state = TRANSITIONS[self.state][DISCARD]
        self.response = None
        self._receiver = Discarding(self._reactor, self.abort)
        self.resume()

    def pause(self) -> None:
        """Stop reading."""
        if not self._paused:
            self._paused = True
            self.transport.pauseProducing()

    def resume(self) -> None:
        """Read again."""
        if self._paused:
            self._paused = False
            self.transport.resumeProducing()
