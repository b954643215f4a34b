"""One request as handlers see it, and the ways to answer it; each ends its exchange."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.resource import IResource

from gatewayd.exchange import End, Exchange
from gatewayd.http1.head import Fields, RequestLine
from gatewayd.http1.writing import response_head
from gatewayd.sending import send
from gatewayd.wire import sse
from gatewayd.wire.errors import GatewayError, Internal

from .outgoing import Outgoing
from .security import ANYONE
from .state import ServerState

_log = Logger()

#: nginx's, for the log: the client left before it was answered.
CLIENT_CLOSED_REQUEST = 499

Headers = Sequence[tuple[bytes, bytes]]


def _size(size: int) -> bytes:
    """The line before a chunk."""
    return b"%x\r\n" % size


#: Of tokens: looking one up costs a third of making it.
_SIZES = [_size(size) for size in range(1024)]


class Connection(Protocol):
    """A client's connection as its request sees it: :class:`gatewayd.api.channel.Channel`."""

    state: ServerState
    transport: Any
    outgoing: Outgoing

    @property
    def closes_after_answer(self) -> bool: ...
    def request_done(self) -> None: ...
    def close_lingering(self) -> None: ...
    def close_by_reset(self) -> None: ...


class Request(http.Request):
    """Twisted's request, with other insides: it reads and writes the head itself.

    :param channel: the connection that it came on.
    :param fields: its headers.
    """

    # None when it has finished, and after a disconnect.
    channel: Connection | None  # type: ignore[assignment]

    def __init__(
        self, channel: Connection, exchange: Exchange, line: RequestLine, fields: Fields
    ) -> None:
        # Not super().__init__(): what it prepares (two header objects, cookies, addresses) is
        # made for each request and used for none.
        self.channel = channel
        self.exchange = exchange
        self.fields = fields
        self.method, self.uri, self.path = line.method, line.target, line.path
        self.body = b""
        self.caller = ANYONE
        self.preflight = False
        #: What answers it; cancelled when the client leaves.
        self.handling: Deferred[Any] | None = None
        self._chunks = line.minor == b"1" and line.method != b"HEAD"
        # By name as it is sent.
        self._headers: dict[bytes, bytes] = dict(channel.state.common_headers())
        self._headers[channel.state.id_header] = exchange.id.encode("ascii")
        self._events = True
        self._error: GatewayError | None = None

    def process(self, resource: IResource) -> None:  # type: ignore[override]  # is handed it
        """Have it handled."""
        assert self.channel is not None
        if self.preflight:
            self.respond(200, b"")
            return
        try:
            resource.render(self)
        except Exception:
            _log.failure("handling {id} failed", id=self.exchange.id)
            self.fail(Internal("The gateway met an internal error."))

    # -- answering -----------------------------------------------------------------------------

    def set_headers(self, headers: Headers) -> None:
        """Headers of the answer, whatever answer it will be. Names in lower case."""
        for name, value in headers:
            self._headers[name.title()] = value

    def respond(
        self,
        status: int,
        body: bytes,
        headers: Headers = (),
        media_type: bytes = b"application/json",
    ) -> None:
        """Answer with a whole body and end."""
        self.set_headers(headers)
        self._headers[b"Content-Type"] = media_type
        self._headers[b"Content-Length"] = b"%d" % len(body)
        self._chunks = False
        head = self._head(status)
        if self.method == b"HEAD":
            body = b""
        self.sentLength = len(body)
        self._finish(head + body)

    def fail(self, error: GatewayError) -> None:
        """Answer with an error envelope and end as the error says."""
        if self.exchange.end is not None:
            return
        error.let_go()
        headers = list(error.headers)
        if error.executed:  # whatever the backend itself may think of it
            headers.append((b"x-should-retry", b"false"))
        self._error = error
        self.respond(error.status, error.body(), headers)

    def begin_stream(self, headers: Headers = ()) -> None:
        """Answer with an event stream: :meth:`write` its frames, then :meth:`finish`."""
        self.set_headers(headers)
        self._headers[b"Cache-Control"] = b"no-cache"
        self._headers[b"X-Accel-Buffering"] = b"no"
        self._begin(b"text/event-stream")

    def begin_bytes(self, headers: Headers, content_type: str) -> None:
        """Answer with bytes of any type, as :meth:`begin_stream` does with events.

        :param content_type: ASCII, with its parameters.
        """
        self.set_headers(headers)
        self._events = False
        self._begin(content_type.encode("ascii"))

    def write(self, data: bytes) -> None:
        """Send a piece of a body that was begun."""
        channel, size = self.channel, len(data)
        if channel is None or not size:
            return
        self.sentLength += size
        if self._chunks:
            data = (_SIZES[size] if size < len(_SIZES) else _size(size)) + data + b"\r\n"
        if self._pending:
            data, self._pending = self._pending + data, b""
        send(channel.transport, data)

    def finish(self) -> None:
        """End a body that was begun, well."""
        rest, self._pending = self._pending + (b"0\r\n\r\n" if self._chunks else b""), b""
        self._finish(rest)

    def _finish(self, last: bytes) -> None:
        """Send the last bytes; an end that was given already stays."""
        if self.exchange.end is not None or self.channel is None:
            return
        self._end()  # first: who has the answer may look for its line in the log
        if last:
            send(self.channel.transport, last)
        channel, self.channel, self.finished = self.channel, None, 1
        channel.request_done()

    def cut(self, error: GatewayError, name: bytes) -> None:
        """End a body that was begun: an error event where it is a stream, and no last chunk.

        Without chunks (HTTP/1.0) only a reset says that it is not whole.

        :param name: of the event, in streams whose events have names.
        """
        if self.exchange.end is not None or self.channel is None:
            return
        error.let_go()
        if self._events:
            self.write(sse.encode(error.body(), name))
        self._error = error
        self._end()
        if self._chunks:
            self.channel.close_lingering()
        else:
            self.channel.close_by_reset()

    def _begin(self, media_type: bytes) -> None:
        self._headers[b"Content-Type"] = media_type
        if self._chunks:
            self._headers[b"Transfer-Encoding"] = b"chunked"
        self._pending = self._head(200)  # goes out with the first bytes

    #: A head that was not sent yet.
    _pending = b""

    def _head(self, status: int) -> bytes:
        if self.channel is not None and self.channel.closes_after_answer:
            self._headers[b"Connection"] = b"close"
        self.code, self.startedWriting = status, 1
        return response_head(status, self._headers.items())

    # -- the end -------------------------------------------------------------------------------

    def _end(self) -> None:
        error = self._error
        self._account()
        if error is None:
            self.exchange.finish(End.COMPLETE, self._now())
        else:
            end = End(error.end)
            self.exchange.finish(end, self._now(), code=error.code, detail=error.detail)

    def give_up(self, end: End, detail: str) -> None:
        """The connection is going to be closed under it, by the client or because of it."""
        if self.exchange.end is None:
            self._account()
            if not self.startedWriting:
                self.exchange.status = CLIENT_CLOSED_REQUEST
            self.exchange.finish(end, self._now(), detail=detail)

    def connectionLost(self, reason: Failure) -> None:
        """Twisted's hook: the client has left."""
        self.give_up(End.CLIENT_GONE, "")
        self.channel = None
        if self.handling is not None:
            self.handling.cancel()

    def _account(self) -> None:
        self.exchange.status = self.code
        self.exchange.bytes_out = self.sentLength

    def _now(self) -> float:
        assert self.channel is not None
        return self.channel.state.reactor.seconds()

    # -- the client's pace ---------------------------------------------------------------------

    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None:
        """Have ``producer`` paused while the client is slow."""
        if self.channel is not None:
            self.channel.outgoing.register(producer)

    def unregisterProducer(self) -> None:
        if self.channel is not None:
            self.channel.outgoing.unregister()
