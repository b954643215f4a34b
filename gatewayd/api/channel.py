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

Besides that, a connection may be

- *full*: its transport holds an answer that the client has yet to take (:mod:`.outgoing`). No head
  and no body is read then, and no request is handled, so a client that does not read cannot make
  this process keep more than the answers to one request and 128 KiB;
- *in line*: :data:`STEPS_AT_ONCE` heads and bodies were read, and others have their turn;
- *closing*: what comes is read and dropped.

The socket is not read while the connection is full or in line, unless a request is being handled
or the connection is closing. So a disconnect is noticed at once (promise 4) wherever there is
something to cancel. Where the socket is not read, no backend is at work; and a client that goes
leaves bytes of its answer unread, so that its reset is noticed there too.

One deadline runs at a time: for the head (also before any byte of it has come), for the body, for
the time between two requests, or for the closing. None runs while a request is handled: the relay
has its own. While the connection is full or closing, the write clock runs besides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from gatewayd.exchange import End, request_id, traceparent
from gatewayd.http1.head import Fields, Framing
from gatewayd.http1.requests import Incoming
from gatewayd.http1.writing import CONTINUE, response_head
from gatewayd.wire.errors import (
    GatewayError,
    Overloaded,
    RequestTimeout,
    RequestTooLarge,
)

from .clocks import Deadline
from .outgoing import Outgoing
from .request import Request
from .state import ServerState

#: What may wait behind the request that is being handled. Past it the client is cut off: reading
#: must go on, or its leaving would not be noticed.
PIPELINED_BYTES = 64 * 1024

#: Heads and bodies that are read of one client before others get their turn.
STEPS_AT_ONCE = 16

_METHODS = frozenset(b"GET HEAD POST PUT PATCH DELETE OPTIONS TRACE CONNECT".split())


class Channel(Protocol):
    """
    :param admit: called with each request whose head is good; raises to refuse it.
    :param handle: called with each request that is complete.
    """

    transport: Any
    outgoing: Outgoing

    def __init__(
        self,
        state: ServerState,
        admit: Callable[[Request], None],
        handle: Callable[[Request], None],
    ) -> None:
        self.state = state
        self._admit = admit
        self._process = handle
        self._settings = state.settings
        self._incoming = Incoming()
        self._arriving: Request | None = None  # its body is being read
        self._handled: Request | None = None  # it is being handled, or its reply was cut
        self._persistent = True
        self._pumping = False
        self._turn: IDelayedCall | None = None  # while the connection is in line
        self._gathered = 0  # bytes of a body that is not whole yet
        self._client = ""
        self._deadline = Deadline(state.reactor)

    # -- the connection ------------------------------------------------------------------------

    def connectionMade(self) -> None:
        self._client = getattr(self.transport.getPeer(), "host", "")
        self.outgoing = Outgoing(
            self.state, self.transport, self._deadline, self._turned, self._takes_nothing
        )
        if self.state.connected(self):
            self._deadline.set(self._settings.timeouts.request_head, self._idle_too_long)
        else:
            self._refuse_connection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._stop_turn()
        self._drop_what_came()
        self._incoming.close()
        self.outgoing.lost()
        for request in (self._arriving, self._handled):
            if request is not None:
                request.connectionLost(reason)
        self._arriving = self._handled = None
        self.state.disconnected(self)

    def dataReceived(self, data: bytes) -> None:
        if self.outgoing.closing:
            return
        self._incoming.buffer += data
        if self._handled is None:
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
                if not self._incoming.buffer or self._handled is not None:
                    break
                if self.outgoing.full or self.outgoing.closing:
                    break
                if not (self._read_head() if self._arriving is None else self._read_body()):
                    break
            else:
                if not self.outgoing.closing:
                    self._turn = self.state.reactor.callLater(0, self._take_turn)
                    self._read_or_not()
        except GatewayError as error:
            self._refuse(error)
        finally:
            self._pumping = False

    def _take_turn(self) -> None:
        self._turn = None
        self._read_or_not()
        self._pump()

    def _stop_turn(self) -> None:
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None

    def _read_or_not(self) -> None:
        """Have the socket read exactly when it should be, as the module says above."""
        if not self.outgoing.closing:  # else it is read
            waits = self.outgoing.full or self._turn is not None
            self.outgoing.read(self._handled is not None or not waits)

    def _turned(self) -> None:
        """The transport has become full, or empty."""
        self._read_or_not()
        self._pump()

    # -- step 1: the head ----------------------------------------------------------------------

    def _read_head(self) -> bool:
        """Take a head off the buffer if it is complete. False: more bytes are needed."""
        self._settings = self.state.settings
        fields = self._incoming.head(self._settings.limits.request_head)
        if fields is None:
            if not self._deadline.is_for(self._head_too_slow):
                self._deadline.set(self._settings.timeouts.request_head, self._head_too_slow)
            return False
        self._take_head(fields)
        return True

    def _take_head(self, fields: Fields) -> None:
        self._arriving = request = self._new_request(fields)
        framing = Framing.of(self._incoming.line, fields)
        self._persistent = framing.persistent
        self._admit(request)
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
            self.transport.write(CONTINUE)

    # -- step 2: the body ----------------------------------------------------------------------

    def _read_body(self) -> bool:
        """Take what is here of the body off the buffer. False: more bytes are needed."""
        body = self._incoming.body()
        if body is None:
            self._count_gathered(self._incoming.gathered)
            if self.state.gathers_too_much:
                raise Overloaded("The gateway is at its limit of request bodies on their way.")
            return False
        self._count_gathered(0)
        self._handle(body)
        return True

    def _count_gathered(self, size: int) -> None:
        self.state.bytes_gathered += size - self._gathered
        self._gathered = size

    # -- step 3: handling ----------------------------------------------------------------------

    def _handle(self, body: bytes) -> None:
        request, self._arriving = self._arriving, None
        assert request is not None
        self._handled = request
        self._deadline.clear()
        request.body = body
        self._process(request)

    @property
    def closes_after_answer(self) -> bool:
        return not self._persistent or self.state.draining

    def request_done(self) -> None:
        """The answer has been written."""
        self._handled = None
        if self.outgoing.closing:
            return
        if self.closes_after_answer:
            self.close_lingering()
            return
        self._deadline.set(self.state.settings.timeouts.client_idle, self._idle_too_long)
        self._read_or_not()
        self._pump()

    def _new_request(self, fields: Fields) -> Request:
        ids = fields.all(self.state.id_header.lower()) or fields.all(b"request-id")
        exchange = self.state.begin_exchange(request_id(ids), self._client)
        line = self._incoming.line
        if line.method in _METHODS:  # another could hold anything, and is logged
            exchange.method = line.method.decode("ascii")
        exchange.traceparent = traceparent(fields.all(b"traceparent"))
        return Request(self, exchange, line, fields)

    # -- refusing and closing ------------------------------------------------------------------

    def _refuse(self, error: GatewayError) -> None:
        """Answer what was read so far with an error, and close: the rest cannot be trusted."""
        request, self._arriving = self._arriving, None
        if request is None:
            request = self._new_request(Fields())
        self._persistent = False
        self._handled = request
        request.fail(error)

    def close_if_idle(self) -> None:
        """Close unless a request is being read or answered."""
        if self._handled is None and self._arriving is None:
            self._drop_what_came()
            self.outgoing.close(linger=False)

    def stop_reading(self, error: GatewayError) -> None:
        """Refuse a request whose body is still coming; close if there is none under way."""
        if self._arriving is not None:
            self._refuse(error)
        else:
            self.close_if_idle()

    def close_lingering(self) -> None:
        """Send what is pending and close; read and drop what still comes for a while."""
        self._drop_what_came()
        self.outgoing.close(linger=True)

    def close_by_reset(self) -> None:
        """Send what is pending, then reset: the client must not take its end for a good one."""
        self._drop_what_came()
        self.outgoing.close_by_reset()

    def abort(self, end: End, detail: str) -> None:
        """Close at once; what is under way ends so."""
        self._drop_what_came()
        for request in (self._arriving, self._handled):
            if request is not None:
                request.abandon(end, detail)
        self.outgoing.abort()

    def _drop_what_came(self) -> None:
        self._count_gathered(0)
        self._incoming.clear()

    def _refuse_connection(self) -> None:
        body = Overloaded("The gateway has too many connections.").body()
        id_header = self._settings.gateway.request_id_header
        head = response_head(
            503,
            (
                (b"Content-Type", b"application/json"),
                (b"Content-Length", b"%d" % len(body)),
                (b"Retry-After", b"1"),
                (b"Connection", b"close"),
                (id_header.encode("ascii"), request_id(()).encode("ascii")),
            ),
        )
        self.transport.write(head + body)
        self.outgoing.close(linger=self.state.surplus_may_linger)

    # -- the client's pace ---------------------------------------------------------------------

    def _idle_too_long(self) -> None:
        timeouts = self.state.settings.timeouts
        if self.outgoing.full and timeouts.client_write:  # its answer has not reached it yet
            self._deadline.set(timeouts.client_idle, self._idle_too_long)
        else:
            self.close_if_idle()

    def _head_too_slow(self) -> None:
        self._refuse(RequestTimeout("The request's head did not arrive in time."))

    def _body_too_slow(self) -> None:
        self._refuse(RequestTimeout("The request's body did not arrive in time."))

    def _takes_nothing(self) -> None:
        self.abort(End.CLIENT_GONE, "client_write")
