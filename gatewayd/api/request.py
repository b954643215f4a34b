"""One request as handlers see it, and the ways to answer it. Each of them ends its exchange.

A handler that has a whole answer returns it (:mod:`.handling`). One that streams calls
:meth:`Request.begin_stream` or :meth:`Request.begin_bytes`, then ``write`` and ``finish``.

Handlers written for Klein or Twisted Web may also use :mod:`.twistedrequest`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer
from twisted.python.failure import Failure
from zope.interface import implementer

from gatewayd.exchange import End, Exchange
from gatewayd.http1.head import Fields, RequestLine
from gatewayd.sending import send
from gatewayd.wire import sse
from gatewayd.wire.dialects import OPENAI, Dialect
from gatewayd.wire.endpoints import dialect_of
from gatewayd.wire.errors import GatewayError

from .clocks import Deadline
from .outgoing import Outgoing
from .security import ANYONE, Caller
from .state import ServerState
from .twistedrequest import TwistedRequest

#: For the log: the client disconnected before it was answered. nginx uses the same number.
CLIENT_CLOSED_REQUEST = 499

_COMPLETE = End.COMPLETE  # an attribute of an enumeration takes a thousand instructions to read

_WITHOUT_BODY = frozenset({204, 304})


HeaderPairs = Sequence[tuple[bytes, bytes]]


def _size(size: int) -> bytes:
    """The line before a chunk."""
    return b"%x\r\n" % size


#: The lines before chunks of a token's size: a lookup takes a third of the time of formatting.
_SIZES = [_size(size) for size in range(1024)]


class Connection(Protocol):
    """A client's connection as its request sees it: :class:`gatewayd.api.channel.Channel`."""

    state: ServerState
    transport: Any
    outgoing: Outgoing
    deadline: Deadline

    @property
    def closes_after_answer(self) -> bool: ...
    def request_done(self) -> None: ...
    def close_lingering(self) -> None: ...
    def close_by_reset(self) -> None: ...
    def open_tunnel(self, receive: Callable[[bytes], None]) -> None: ...
    def read_tunnel(self, wanted: bool) -> None: ...


@implementer(IConsumer)
class Request(TwistedRequest):
    """
    :param channel: the connection that it came on.
    :param fields: its headers.
    """

    _error: GatewayError | None = None
    _head = b""  # a head that is made and not sent
    _head_unsent = True
    _events = False  # the body is an event stream

    body = b""
    caller = ANYONE
    preflight = False
    #: The handler's Deferred; cancelled when the client disconnects.
    handling: Deferred[Any] | None = None
    #: Called once when the handler has ended and the client has taken the answer, or is gone.
    release: Callable[[], None] | None = None

    def __init__(
        self, channel: Connection, exchange: Exchange, line: RequestLine, fields: Fields
    ) -> None:
        #: None once the answer was written, and after a disconnect.
        self.channel: Connection | None = channel  # type: ignore[assignment]  # a Protocol of ours
        self.exchange = exchange
        self.fields = fields
        self.method, self.uri, self.path = line.method, line.target, line.path
        self.clientproto = b"HTTP/1." + line.minor
        #: For the handler, until it has answered.
        self.timer = channel.deadline
        self._outgoing = channel.outgoing
        self._chunks = line.minor == b"1" and line.method != b"HEAD"
        self._id_header = channel.state.id_header
        self._headers = {self._id_header: exchange.id.encode("ascii")}

    def admit_as(self, caller: Caller, headers: dict[bytes, bytes]) -> None:
        """Admit the request as an earlier one with the same head was admitted.

        :param headers: what :meth:`headers_so_far` returned for that one.
        """
        self.caller = caller
        self.exchange.caller = caller.name
        if headers:
            self._headers.update(headers)

    def headers_so_far(self) -> dict[bytes, bytes]:
        """The headers of the answer, without its id and those that every answer has."""
        return {name: self._headers[name] for name in self._headers if name != self._id_header}

    @property
    def draining(self) -> bool:
        """Whether the gateway is shutting down."""
        return self.channel is not None and self.channel.state.draining

    # -- answering -----------------------------------------------------------------------------

    def set_headers(self, headers: HeaderPairs) -> None:
        """Set headers of the answer, also if it will be an error.

        :param headers: names in lower case; names and values must hold no line break.
        """
        for name, value in headers:
            self._headers[name.title()] = value

    def use_dialect(self, dialect: Dialect) -> None:
        """Set the headers that the clients of an API expect of each answer."""
        if dialect.id_header and self._id_header.title() != dialect.id_header:
            self._headers[dialect.id_header] = self._headers[self._id_header]

    def respond(
        self,
        status: int,
        body: bytes,
        headers: HeaderPairs = (),
        media_type: bytes = b"application/json",
    ) -> None:
        """Answer with a whole body and end."""
        if self.exchange.end is not None:
            return
        if self.startedWriting:
            raise RuntimeError("Another answer was begun.")
        self.set_headers(headers)
        self._headers[b"Content-Type"] = media_type
        self._headers[b"Content-Length"] = b"%d" % len(body)
        self._chunks = False
        head = self._make_head(status)
        if self.method == b"HEAD":
            body = b""
        self.sentLength = len(body)
        self._finish(head + body)

    def fail(self, error: GatewayError) -> None:
        """Answer with an error envelope, or cut a body that was begun. The error names the end."""
        if self.startedWriting:
            self.cut(error, b"")
            return
        if self.exchange.end is not None:
            return
        error.drop_traceback()
        headers = list(error.headers)
        if error.executed:  # even if the backend itself says that the client may retry
            headers.append((b"x-should-retry", b"false"))
        self._error = error
        dialect = self._dialect()
        self.use_dialect(dialect)
        self.respond(error.status, dialect.envelope(error, self.exchange.id), headers)

    def begin_stream(self, headers: HeaderPairs = ()) -> None:
        """Begin an event stream: :meth:`write` its frames, then :meth:`finish`."""
        self.set_headers(headers)
        self._headers[b"Cache-Control"] = b"no-cache"
        self._headers[b"X-Accel-Buffering"] = b"no"
        self._headers[b"Content-Type"] = b"text/event-stream"
        self._events = True
        self._begin()

    def begin_bytes(self, headers: HeaderPairs, content_type: str, status: int = 200) -> None:
        """Begin a body of any type, as :meth:`begin_stream` does an event stream.

        :param content_type: ASCII, with its parameters; "" if it is not known.
        """
        self.set_headers(headers)
        if content_type:
            self._headers[b"Content-Type"] = content_type.encode("ascii")
        self.code = status
        self._begin()

    def write(self, data: bytes) -> None:
        """Send a part of the body, and the head before the first part. No-op after a disconnect."""
        channel, size = self.channel, len(data)
        if channel is None or not size:
            return
        self.sentLength += size
        if self._chunks:
            data = (_SIZES[size] if size < len(_SIZES) else _size(size)) + data + b"\r\n"
        if self._head_unsent:
            data = self._with_head(data)
        send(channel.transport, data)

    def finish(self) -> None:
        """End the body, which is complete. No-op after a disconnect."""
        head = self._take_head() if self._head_unsent else b""
        self._finish(head + b"0\r\n\r\n" if self._chunks else head)

    def _finish(self, last: bytes) -> None:
        """Send the last bytes and end, unless the exchange has ended."""
        if self.exchange.end is not None or self.channel is None:
            return
        self._end()  # first: a client that has the answer may look for its line in the log
        if last:
            send(self.channel.transport, last)
        channel, self.channel, self.finished = self.channel, None, 1
        channel.request_done()
        for notified in self._notify:
            notified.callback(None)

    def cut(self, error: GatewayError, name: bytes) -> None:
        """End a body that is incomplete: an error event if it is a stream, and no last chunk.

        Without chunks (HTTP/1.0), only a reset tells the client that the body is incomplete.

        :param name: of the error event, unless the path's dialect has one; empty in streams whose
            events have no names.
        """
        if self.exchange.end is not None or self.channel is None:
            return
        error.drop_traceback()
        if self._events:
            dialect = self._dialect()
            envelope = dialect.envelope(error, self.exchange.id)
            self.write(sse.encode(envelope, dialect.event or name))
        self._error = error
        self._end()
        if self._chunks:
            self.channel.close_lingering()
        else:
            self.channel.close_by_reset()

    def _dialect(self) -> Dialect:
        """The dialect of the request's path. It need not be the path of an endpoint."""
        if self.channel is None:
            return OPENAI
        root = self.channel.state.settings.gateway.root_path
        return dialect_of(self.path.decode("ascii").removeprefix(root))

    # -- tunnels -------------------------------------------------------------------------------

    def begin_tunnel(self, headers: HeaderPairs, receive: Callable[[bytes], None]) -> None:
        """Switch to a WebSocket. From now on :meth:`write` sends bytes as they are.

        :param receive: is given the client's bytes.
        """
        if self.channel is None:
            return
        self.set_headers(headers)
        self._headers |= {b"Connection": b"Upgrade", b"Upgrade": b"websocket"}
        self.code, self.startedWriting = 101, 1
        self._chunks = self._head_unsent = False
        send(self.channel.transport, self.channel.state.response_head(101, self._headers))
        self.channel.open_tunnel(receive)

    def read_tunnel(self, wanted: bool) -> None:
        """Read from the client, or leave what it sends in the kernel."""
        if self.channel is not None:
            self.channel.read_tunnel(wanted)

    def end_tunnel(self, error: GatewayError | None, *, reset: bool) -> None:
        """End, and close the connection when the client has taken what was written."""
        if self.exchange.end is not None or self.channel is None:
            return
        self._error = error
        if error is not None:
            error.drop_traceback()
        self._end()
        if reset:
            self.channel.close_by_reset()
        else:
            self.channel.close_lingering()

    # -- the head ------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self.code in _WITHOUT_BODY:
            self._chunks = False
        if self._chunks:
            self._headers[b"Transfer-Encoding"] = b"chunked"
        self._head = self._make_head(self.code)

    def _take_head(self) -> bytes:
        """Return the head, which is about to be sent; make it if no ``begin_`` method has."""
        if not self.startedWriting:
            self._begin()
        self._head_unsent = False
        head, self._head = self._head, b""
        return head

    def _with_head(self, data: bytes) -> bytes:
        """Put the head before the first part of the body."""
        if self.code in _WITHOUT_BODY:
            raise RuntimeError(f"An answer with status {self.code} has no body.")
        if self.method == b"HEAD":  # the head is sent by finish()
            self.sentLength = 0
            return b""
        return self._take_head() + data

    def _make_head(self, status: int) -> bytes:
        channel, headers = self.channel, self._headers
        self.code, self.startedWriting = status, 1
        if channel is None:
            return b""  # the client has disconnected
        if channel.closes_after_answer:
            headers[b"Connection"] = b"close"
        return channel.state.response_head(status, headers)

    # -- the end -------------------------------------------------------------------------------

    def _end(self) -> None:
        error = self._error
        self._account()
        if error is None:
            self.exchange.finish(_COMPLETE, self._now())
        else:
            end = End(error.end)
            self.exchange.finish(end, self._now(), code=error.code, detail=error.detail)

    def abandon(self, end: End, detail: str) -> None:
        """End the exchange without the rest of an answer: the connection is about to close."""
        if self.exchange.end is None:
            self._account()
            if not self.startedWriting:
                self.exchange.status = CLIENT_CLOSED_REQUEST
            self.exchange.finish(end, self._now(), detail=detail)

    def connectionLost(self, reason: Failure) -> None:
        """The connection is gone; the handler is cancelled."""
        self.abandon(End.CLIENT_GONE, "")
        self.channel, self._disconnected = None, True
        if self.handling is not None:
            self.handling.cancel()
        for notified in self._notify:
            notified.errback(reason)

    def _account(self) -> None:
        self.exchange.status = self.code
        self.exchange.bytes_out = self.sentLength

    def _now(self) -> float:
        assert self.channel is not None
        return self.channel.state.reactor.seconds()

    # -- the client's pace ---------------------------------------------------------------------

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Have ``producer``, which must be a push producer, paused while the client is slow."""
        if not streaming:
            raise ValueError("Only push producers (streaming=True) can be registered.")
        if self.channel is not None:
            self._outgoing.register(producer)

    def unregisterProducer(self) -> None:
        if self.channel is not None:
            self._outgoing.unregister()

    def when_taken(self, call: Callable[[], None]) -> None:
        """Call when the client has taken what it was sent, or is gone; at once if nothing waits."""
        self._outgoing.when_taken(call)
