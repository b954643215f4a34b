"""One client's connection: its requests are read here, one after the other.

Twisted Web's own channel reads requests more leniently than a gateway may (bare LF, folded
headers, odd lengths), buffers bodies on disk, has no clock for a whole request, and does not notice
a disconnect behind pipelined bytes. :class:`Channel` reads with llhttp instead. It is in one phase
at a time:

========== ===================================================== ==================================
phase      what happens                                          next phase
========== ===================================================== ==================================
HEAD       A head is awaited and read, within ``request_head``   BODY; HANDLING if there is no body
           bytes and seconds. What needs no body is decided      or if the request is refused
           (its size, the caller).
BODY       The body is gathered in memory, within                HANDLING
           ``request_body`` bytes and seconds.
HANDLING   The request is answered. Bytes of further requests    HEAD, or the connection closes
           are kept, up to :data:`PIPELINED_BYTES`. In a tunnel
           bytes are passed on as they come.
========== ===================================================== ==================================

A request that cannot be read with certainty is answered with an error and the connection is
closed: the bytes behind it are never taken for a request.

In every phase a connection may also be

- *full*: its transport holds an answer that the client has yet to take (:mod:`.outgoing`). No head
  and no body is read then, and no request is handled, so a client that does not read cannot make
  this process keep more than the answers to one request and 128 KiB;
- *yielding*: :data:`STEPS_AT_ONCE` requests were read, and other connections come first;
- *closing*: what is received is dropped.

The socket is not read while the connection is full or yielding, unless a request is being handled
or the connection is closing. So a disconnect is noticed at once (promise 4) whenever there is a
handler to cancel. While the socket is not read, no backend works for this client; and if the client
disconnects then, bytes of its answer stay unread, so that the kernel reports a reset.

One deadline runs at a time: for the head (from the connection's start), for the body, for the time
between two requests, or for the closing. In HANDLING the relay uses the timer of the deadline for
its own clocks (:mod:`gatewayd.relaying.watch`).
While the connection is full or closing, the write clock runs as well.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from gatewayd.exchange import End, request_id, traceparent
from gatewayd.http1.head import Fields, Framing, RequestLine
from gatewayd.http1.requests import RequestParser
from gatewayd.http1.writing import CONTINUE, response_head
from gatewayd.wire.errors import GatewayError, Overloaded, RequestTimeout, RequestTooLarge

from .clocks import Deadline
from .known import KnownHead
from .outgoing import Outgoing
from .passage import Passage
from .request import Request
from .state import ServerState

#: Bytes that may wait behind the request that is being handled. With more the client is
#: disconnected: reading must go on, or the client's own disconnect would not be noticed.
PIPELINED_BYTES = 64 * 1024

#: Steps that are read from one client before other connections are served. A step is a head with
#: what has come of its body, or the rest of a body.
STEPS_AT_ONCE = 8

#: The methods that are logged. Any other could hold anything.
_METHODS = {
    method.encode("ascii"): method
    for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"]
}


class Phase(enum.Enum):
    """The phase of a connection; see the table above."""

    HEAD = enum.auto()
    BODY = enum.auto()
    HANDLING = enum.auto()


# Names of the module: an attribute of an enumeration costs a call in Python 3.11.
HEAD, BODY, HANDLING = Phase


class Channel(Protocol):
    """
    :param admit: called with each request whose head is valid; raises to refuse it.
    :param handle: called with each request that is complete.
    """

    transport: Any
    outgoing: Outgoing
    deadline: Deadline

    def __init__(
        self,
        state: ServerState,
        admit: Callable[[Request], None],
        handle: Callable[[Request], None],
    ) -> None:
        self.state = state
        self._admit = admit
        self._on_complete = handle
        self._settings = state.settings
        self._incoming = RequestParser()
        self._phase = HEAD
        self._request: Request | None = None  # in BODY and HANDLING, and while a head is judged
        self._persistent = True
        self._reading = False  # in _read_requests()
        self._yielding: IDelayedCall | None = None
        self._bytes_gathered = 0  # of a body that is not complete
        self._tunnel: Passage | None = None  # open, while the request is handled
        self._client = ""
        self.deadline = Deadline(state.reactor)

    # -- the connection ------------------------------------------------------------------------

    def connectionMade(self) -> None:
        self._client = getattr(self.transport.getPeer(), "host", "")
        self.outgoing = Outgoing(
            self.state, self.transport, self.deadline, self._read_on, self._write_timeout
        )
        if self.state.connected(self):
            self.deadline.set(self._settings.timeouts.request_head, self._idle_timeout)
        else:
            self._refuse_connection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._yielding is not None:
            self._yielding.cancel()
            self._yielding = None
        self._discard_input()
        self._incoming.close()
        self.outgoing.connection_lost()
        request, self._request = self._request, None
        if request is not None:
            request.connectionLost(reason)
        self.state.disconnected(self)

    def dataReceived(self, data: bytes) -> None:
        if self.outgoing.closing:
            return
        incoming = self._incoming
        incoming.buffer = incoming.buffer + data if incoming.buffer else data
        if self._phase is not HANDLING:
            self._read_requests()
        elif self._tunnel is not None:
            self._pass_on(self._tunnel)
        elif len(incoming.buffer) > PIPELINED_BYTES:
            self.abort(End.CLIENT_GONE, "too many pipelined bytes")

    def _read_requests(self) -> None:
        """Read the heads and bodies in the buffer, a limited number of them at once."""
        if self._reading or self._yielding is not None:
            return  # the call that runs or is scheduled goes on
        incoming, outgoing = self._incoming, self.outgoing
        self._reading = True
        try:
            for _ in range(STEPS_AT_ONCE):
                if not incoming.buffer or self._phase is HANDLING:
                    break
                if outgoing.full or outgoing.closing:
                    break
                if not (self._read_head() if self._phase is HEAD else self._read_body()):
                    break
            else:
                if not outgoing.closing:
                    self._yielding = self.state.reactor.callLater(0, self._go_on)
                    self._update_reading()
        except GatewayError as error:
            self._refuse(error)
        finally:
            self._reading = False

    def _go_on(self) -> None:
        """Other connections were served; go on reading."""
        self._yielding = None
        self._read_on()

    def _read_on(self) -> None:
        """Go on reading, unless the connection is full or yielding."""
        self._update_reading()
        self._read_requests()

    def _update_reading(self) -> None:
        """Have the socket read exactly when the module's docstring says so."""
        if not self.outgoing.closing:  # then it is read
            if self._phase is HANDLING:
                waits = self._tunnel is not None and self._tunnel.holding
            else:
                waits = self.outgoing.full or self._yielding is not None
            self.outgoing.set_reading(not waits)

    # -- HEAD ----------------------------------------------------------------------------------

    def _read_head(self) -> bool:
        """Take a head off the buffer. Return False if more bytes are needed."""
        state = self.state
        self._settings = settings = state.settings
        raw = self._incoming.take_head(settings.limits.request_head)
        if raw is None:
            if not self.deadline.is_for(self._head_timeout):
                self.deadline.set(settings.timeouts.request_head, self._head_timeout)
            return False
        found = None if state.draining else state.known_heads.find(raw)
        if found is None:
            self._judge_head(raw)
        else:
            self._use_known_head(*found)
        return True

    def _judge_head(self, raw: bytes) -> None:
        fields = self._incoming.parse(raw)
        line = self._incoming.line
        ids = fields.get(self.state.id_field) or fields.get(b"request-id", [])
        self._request = request = self._new_request(line, fields, ids)
        traces = fields.get(b"traceparent")
        if traces is not None:
            request.exchange.traceparent = traceparent(traces)
        framing = Framing.of(line, fields)
        self._persistent = framing.persistent
        self._admit(request)
        if not (ids or traces or request.preflight):
            known = KnownHead(line, fields, framing, request.caller, request.headers_so_far())
            self.state.known_heads.keep(raw, known)
        self._expect_body(request, framing, framing.length)

    def _use_known_head(self, known: KnownHead, length: int) -> None:
        self._request = request = self._new_request(known.line, known.fields, ())
        self._persistent = known.framing.persistent
        request.admit_as(known.caller, known.headers)
        self._expect_body(request, known.framing, length)

    def _new_request(self, line: RequestLine, fields: Fields, ids: Sequence[bytes]) -> Request:
        exchange = self.state.begin_exchange(request_id(ids), self._client)
        exchange.method = _METHODS.get(line.method, "")
        return Request(self, exchange, line, fields)

    def _expect_body(self, request: Request, framing: Framing, length: int | None) -> None:
        """The head is complete and admitted. Handle the request if its body is complete, too.

        :param length: of the body, in bytes; None if it is chunked.
        """
        limits, incoming = self._settings.limits, self._incoming
        if length == 0:
            self._handle(request, b"")
            return
        if length is not None and length > limits.request_body:
            raise RequestTooLarge(f"The request body is larger than {limits.request_body} bytes.")
        self._phase = BODY
        incoming.expect_body(length, limits.request_body, limits.request_head)
        if incoming.buffer:
            if self._read_body():
                return
        elif framing.wants_continue:
            self.transport.write(CONTINUE)
        self.deadline.set(self._settings.timeouts.request_body, self._body_timeout)

    # -- BODY ----------------------------------------------------------------------------------

    def _read_body(self) -> bool:
        """Take what is here of the body off the buffer. Return False if more bytes are needed."""
        body = self._incoming.body()
        if body is None:
            self._count_gathered(self._incoming.gathered)
            if self.state.gathers_too_much:
                raise Overloaded("The gateway is at its limit of request bodies on their way.")
            return False
        if self._bytes_gathered:
            self._count_gathered(0)
        assert self._request is not None
        self._handle(self._request, body)
        return True

    def _count_gathered(self, size: int) -> None:
        self.state.bytes_gathered += size - self._bytes_gathered
        self._bytes_gathered = size

    # -- HANDLING ------------------------------------------------------------------------------

    def _handle(self, request: Request, body: bytes) -> None:
        self._phase = HANDLING
        self.deadline.clear()
        request.body = body
        self._on_complete(request)

    @property
    def closes_after_answer(self) -> bool:
        return not self._persistent or self.state.draining

    def request_done(self) -> None:
        """The answer was written."""
        self._phase, self._request = HEAD, None
        outgoing = self.outgoing
        if outgoing.closing:
            return
        if self.closes_after_answer:
            self.close_lingering()
            return
        self.deadline.set(self.state.settings.timeouts.client_idle, self._idle_timeout)
        if outgoing.full or self._incoming.buffer or self._yielding is not None:
            self._read_on()

    # -- tunnels -------------------------------------------------------------------------------

    def open_tunnel(self, receive: Callable[[bytes], None]) -> None:
        """Give ``receive`` all that the client sends until the connection closes."""
        self._persistent = False
        self._tunnel = Passage(self.state.reactor, self.transport, receive, self._left_tunnel)
        if self._incoming.buffer:
            self._pass_on(self._tunnel)

    def read_tunnel(self, wanted: bool) -> None:
        """Read from the client, or leave what it sends in the kernel."""
        if self._tunnel is not None:
            self._tunnel.hold(not wanted)
            self._update_reading()

    def _pass_on(self, tunnel: Passage) -> None:
        data, self._incoming.buffer = self._incoming.buffer, b""
        tunnel.receive(data)

    def _left_tunnel(self) -> None:
        """The client has disconnected while its connection was not read."""
        self.abort(End.CLIENT_GONE, "")

    # -- refusing and closing ------------------------------------------------------------------

    def _refuse(self, error: GatewayError) -> None:
        """Answer with an error and close: what follows in the buffer cannot be trusted."""
        request = self._request or self._new_request(self._incoming.line, Fields(), ())
        self._phase, self._request = HANDLING, request
        self._persistent = False
        request.fail(error)

    def close_if_idle(self) -> None:
        """Close unless a request is being read or answered."""
        if self._request is None:
            self._discard_input()
            self.outgoing.close(linger=False)

    def stop_reading(self, error: GatewayError) -> None:
        """Refuse a request whose body is incomplete; close if there is no request."""
        if self._phase is BODY:
            self._refuse(error)
        else:
            self.close_if_idle()

    def close_lingering(self) -> None:
        """Send what is pending and close; read and drop what is received for a while."""
        self._discard_input()
        self.outgoing.close(linger=True)

    def close_by_reset(self) -> None:
        """Send what is pending, then reset, so that the body does not look complete."""
        self._discard_input()
        self.outgoing.close_by_reset()

    def abort(self, end: End, detail: str) -> None:
        """Close at once. A request that is being read or answered ends as ``end``."""
        self._discard_input()
        if self._request is not None:
            self._request.abandon(end, detail)
        self.outgoing.abort()

    def _discard_input(self) -> None:
        self._count_gathered(0)
        self._incoming.clear()
        if self._tunnel is not None:
            self._tunnel.stop()
            self._tunnel = None

    def _refuse_connection(self) -> None:
        body = Overloaded("The gateway has too many connections.").body()
        head = response_head(
            503,
            (
                (b"Content-Type", b"application/json"),
                (b"Content-Length", b"%d" % len(body)),
                (b"Retry-After", b"1"),
                (b"Connection", b"close"),
                (self.state.id_header, request_id(()).encode("ascii")),
            ),
        )
        self.transport.write(head + body)
        self.outgoing.close(linger=self.state.surplus_may_linger)

    # -- timeouts ------------------------------------------------------------------------------

    def _idle_timeout(self) -> None:
        timeouts = self.state.settings.timeouts
        if self.outgoing.full and timeouts.client_write:  # the client has yet to take its answer
            self.deadline.set(timeouts.client_idle, self._idle_timeout)
        else:
            self.close_if_idle()

    def _head_timeout(self) -> None:
        self._refuse(RequestTimeout("The request's head did not arrive in time."))

    def _body_timeout(self) -> None:
        self._refuse(RequestTimeout("The request's body did not arrive in time."))

    def _write_timeout(self) -> None:
        self.abort(End.CLIENT_GONE, "client_write")
