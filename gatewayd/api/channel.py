"""One client's connection: its requests are read here, one after the other.

Twisted Web's own channel reads requests more leniently than a gateway may (bare LF, folded
headers, odd lengths), buffers bodies on disk, has no clock for a whole request and stops noticing
a disconnect behind pipelined bytes. :class:`Channel` reads with llhttp instead, in three steps:

1. the head is read (:mod:`.incoming`), within ``request_head`` bytes and seconds; what needs no
   body (its size, who is calling) is decided here;
2. the body is gathered in memory, within ``request_body`` bytes and seconds;
3. the request is handled; what the client sends meanwhile waits, up to a limit.

Whatever cannot be read for certain is answered and the connection is closed: bytes behind it are
never taken for a request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web import http

from gatewayd.exchange import End, request_id, traceparent
from gatewayd.sending import limit_unsent, send
from gatewayd.wire.errors import (
    GatewayError,
    Overloaded,
    RequestTimeout,
    RequestTooLarge,
)
from gatewayd.wire.head import Fields, Framing

from .clocks import Deadline, WriteClock, pending
from .incoming import Incoming
from .request import Request

if TYPE_CHECKING:
    from .site import Site

#: What may wait behind the request that is being handled. Past it the client is cut off: reading
#: must go on, or its leaving would not be noticed.
PIPELINED_BYTES = 64 * 1024
#: After a refusal the rest of what the client sends is read and dropped for this long, so that
#: the answer is not lost to a reset.
LINGER_SECONDS = 2.0

#: Heads and bodies that are read of one client before others get their turn.
STEPS_AT_ONCE = 16

_METHODS = frozenset(b"GET HEAD POST PUT PATCH DELETE OPTIONS TRACE CONNECT".split())


class Channel(http.HTTPChannel):
    """
    :param site: what it belongs to.
    """

    transport: Any
    _networkProducer: Any
    abortTimeout = None  # type: ignore[assignment]  # the clocks here abort what must be
    timeOut = None

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.site: Site = site
        self.factory = site
        self._settings = site.settings
        self._incoming = Incoming()
        self._request: Request | None = None  # whose body is being read
        self._closing = False
        self._pumping = False
        self._turn: IDelayedCall | None = None
        self._client = ""
        self._deadline = Deadline(site.reactor)
        self._writes: WriteClock | None = None

    # -- the connection ------------------------------------------------------------------------

    def connectionMade(self) -> None:
        super().connectionMade()
        self._client = getattr(self.transport.getPeer(), "host", "")
        limit_unsent(self.transport)
        if self.site.connected(self):
            self._deadline.set(self._settings.timeouts.request_head, self._idle_too_long)
        else:
            self._refuse_connection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._closing = True
        self._deadline.stop()
        if self._writes is not None:
            self._writes.stop()
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        self._incoming.close()
        if self._request is not None:  # its body was still coming
            self.requests.append(self._request)
            self._request = None
        super().connectionLost(reason)
        self.requests.clear()
        self.site.disconnected(self)

    def dataReceived(self, data: bytes) -> None:
        if self._closing:
            return
        self._incoming.buffer += data
        if not self._handlingRequest:
            self._pump()
        elif len(self._incoming.buffer) > PIPELINED_BYTES:
            self.abort(End.CLIENT_GONE, "too many pipelined bytes")

    def _pump(self) -> None:
        """Read the requests that are here, one after the other, some of them at a time."""
        if self._pumping or self._turn is not None:
            return  # it goes on anyway
        self._pumping = True
        try:
            for _ in range(STEPS_AT_ONCE):
                if not self._incoming.buffer or self._closing or self._handlingRequest:
                    break
                if not (self._read_head() if self._request is None else self._read_body()):
                    break
            else:
                self._networkProducer.pauseProducing()
                self._turn = self.site.reactor.callLater(0, self._take_turn)
        except GatewayError as error:
            self._refuse(error)
        finally:
            self._pumping = False

    def _take_turn(self) -> None:
        self._turn = None
        if not self._waitingForTransport:
            self._networkProducer.resumeProducing()
        self._pump()

    # -- step 1: the head ----------------------------------------------------------------------

    def _read_head(self) -> bool:
        """Take a head off the buffer if it is complete. False: more bytes are needed."""
        self._settings = self.site.settings
        fields = self._incoming.head(self._settings.limits.request_head)
        if fields is None:
            if not self._deadline.is_for(self._head_too_slow):
                self._deadline.set(self._settings.timeouts.request_head, self._head_too_slow)
            return False
        self._take_head(fields)
        return True

    def _take_head(self, fields: Fields) -> None:
        self._request = request = self._new_request(fields)
        framing = Framing.of(self._incoming.line, fields)
        self.persistent = framing.persistent
        self.site.admit(request)
        limits = self._settings.limits
        if framing.length is not None and framing.length > limits.request_body:
            said = f"The request body is larger than {limits.request_body} bytes."
            raise RequestTooLarge(said)
        if framing.length == 0:
            self._handle(b"")
            return
        self._incoming.expect_body(framing.length, limits.request_body, limits.request_head)
        self._deadline.set(self._settings.timeouts.request_body, self._body_too_slow)
        if framing.wants_continue and not self._incoming.buffer:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    # -- step 2: the body ----------------------------------------------------------------------

    def _read_body(self) -> bool:
        """Take what is here of the body off the buffer. False: more bytes are needed."""
        body = self._incoming.body()
        if body is None:
            return False
        self._handle(body)
        return True

    # -- step 3: handling ----------------------------------------------------------------------

    def _handle(self, body: bytes) -> None:
        request, self._request = self._request, None
        assert request is not None
        self._handlingRequest = True
        self._deadline.clear()
        request.body = body
        self.requests.append(request)
        request.process()

    def write(self, data: bytes) -> None:
        """Twisted Web's hook: send a part of the answer."""
        send(self.transport, data)

    @property
    def closes_after_answer(self) -> bool:
        return not self.persistent or self.site.draining

    def requestDone(self, request: Request) -> None:
        """Twisted Web's hook: the answer has been written."""
        self.requests.remove(request)
        self._handlingRequest = False
        if self._closing:
            return
        if self.closes_after_answer:
            self.close_lingering()
            return
        self._deadline.set(self.site.settings.timeouts.client_idle, self._idle_too_long)
        self._pump()

    def _new_request(self, fields: Fields) -> Request:
        ids = fields.all(self.site.id_header.lower()) or fields.all(b"request-id")
        exchange = self.site.begin(request_id(ids), self._client)
        line = self._incoming.line
        if line.method in _METHODS:  # another could hold anything, and is logged
            exchange.method = line.method.decode("ascii")
        exchange.traceparent = traceparent(fields.all(b"traceparent"))
        return Request(self, exchange, line, fields)

    # -- refusing and closing ------------------------------------------------------------------

    def _refuse(self, error: GatewayError) -> None:
        """Answer what was read so far with an error, and close: the rest cannot be trusted."""
        request, self._request = self._request, None
        if request is None:
            request = self._new_request(Fields())
        self.persistent = False
        self._handlingRequest = True
        self.requests.append(request)
        request.fail(error)

    def close_if_idle(self) -> None:
        """Close unless a request is being read or answered."""
        if not self._handlingRequest and self._request is None and not self._closing:
            self._idle_too_long()

    def stop_reading(self, error: GatewayError) -> None:
        """Refuse a request whose body is still coming; close if there is none under way."""
        if self._request is not None and not self._closing:
            self._refuse(error)
        else:
            self.close_if_idle()

    def close_lingering(self) -> None:
        """Send what is pending, then FIN; read and drop what the client still sends for a while.

        Closing at once with unread bytes would reset the connection, and the answer might be
        lost with it.
        """
        if self._closing:
            return
        self._closing = True
        self._incoming.buffer.clear()
        self._networkProducer.unregisterProducer()
        if self.isSecure():
            self.transport.loseConnection()
        else:
            self.transport.loseWriteConnection()
        self._watch_writes()
        self._deadline.set(LINGER_SECONDS, self._lingered)

    def abort(self, end: End, detail: str) -> None:
        """Close at once; what is under way ends so."""
        self._closing = True
        self._incoming.buffer.clear()
        for request in self.requests:
            request.give_up(end, detail)
        self.transport.abortConnection()

    def _lingered(self) -> None:
        if pending(self.transport):  # then it is for the write clock to say
            self._deadline.set(LINGER_SECONDS, self._lingered)
        else:
            self.transport.abortConnection()

    def _refuse_connection(self) -> None:
        self._closing = True
        body = Overloaded("The gateway has too many connections.").body()
        head = (
            "HTTP/1.1 503 Service Unavailable",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Retry-After: 1",
            "Connection: close",
            f"{self._settings.gateway.request_id_header}: {request_id(())}",
        )
        self.transport.write("\r\n".join((*head, "", "")).encode("ascii") + body)
        self.transport.loseConnection()

    # -- the client's pace ---------------------------------------------------------------------

    def _idle_too_long(self) -> None:
        self._closing = True
        self.transport.loseConnection()
        self._watch_writes()

    def _head_too_slow(self) -> None:
        self._refuse(RequestTimeout("The request's head did not arrive in time."))

    def _body_too_slow(self) -> None:
        self._refuse(RequestTimeout("The request's body did not arrive in time."))

    def pauseProducing(self) -> None:
        super().pauseProducing()
        self._watch_writes()

    def resumeProducing(self) -> None:
        super().resumeProducing()
        if self._writes is not None and not self._closing:
            self._writes.stop()

    def _watch_writes(self) -> None:
        if self._writes is None:  # most connections never need one
            self._writes = WriteClock(
                self.site.reactor,
                self._settings.timeouts.client_write,
                self.transport,
                lambda: self.abort(End.CLIENT_GONE, "client_write"),
            )
        self._writes.start()
