"""An open WebSocket between a client and a backend: bytes both ways, and an honest end.

No message is read. :class:`gatewayd.http1.frames.FrameTracker` follows the headers of the frames of
each direction, so the tunnel knows what is content and whether a Close frame has crossed:

- After a Close frame from each side the tunnel is whole. It is whole, too, if the backend closes
  the connection after its own Close frame. One side's Close frame gives the other side
  :data:`CLOSING_SECONDS`.
- In any other end the gateway sends a Close frame of its own to each side that is still connected,
  if it is between two frames there. If not, it resets that connection: a Close frame within a frame
  would be read as a part of a message.

Each side is read only while the other side takes what was written to it. :mod:`.opening` asks for
the tunnel, has the clocks, and ends it.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from gatewayd.backend.interface import Accepted, Clocks
from gatewayd.http1 import frames
from gatewayd.http1.frames import FrameTracker, close_frame
from gatewayd.settings.model import LimitSettings
from gatewayd.wire.errors import (
    BackendClosed,
    BadReply,
    Drained,
    GatewayError,
    MessageRefused,
    Truncated,
    UpstreamTimeout,
)

from .attempt import BodyTransport
from .client import TunnelClient
from .watch import Watch

#: Seconds that a side gets to answer the other side's Close frame.
CLOSING_SECONDS = 5.0

#: With these status codes a backend closes because of a fault of its own.
_FAULTS = range(frames.INTERNAL_ERROR, frames.BAD_GATEWAY + 1)


def _ignore(_: GatewayError | None) -> None:
    """The callback of a tunnel that is over."""


@implementer(IPushProducer)
class Tunnel:
    """Is the producer of the client's connection, and receives the backend's bytes.

    :param clocks: of the backend.
    :param on_end: called when the tunnel is over, with the reason, or None if it is whole. It must
        call :meth:`close`.
    """

    def __init__(
        self,
        client: TunnelClient,
        backend: Accepted,
        clocks: Clocks,
        watch: Watch,
        limits: LimitSettings,
        on_end: Callable[[GatewayError | None], None],
    ) -> None:
        self._client = client
        self._backend = backend
        self._clocks = clocks
        self._watch = watch
        self._on_end = on_end
        self._from_client = FrameTracker(limits.request_body)
        self._from_backend = FrameTracker(limits.event)
        self._transport: BodyTransport | None = None  # of the backend's bytes
        self._paused = False
        self._over = False
        self._backend_closes = False  # its Close frame was the first
        #: Whether the client's next message is awaited, rather than the backend's.
        self.awaits_client = True

    def begin(self) -> None:
        """Answer the client, then relay."""
        client, exchange = self._client, self._client.exchange
        exchange.bytes_in = 0
        client.registerProducer(self, True)
        self._backend.link.register(_Reading(client))
        self._watch.content()  # the idle clock runs from here
        client.begin_tunnel(self._backend.headers, self.received)
        if not self._over:
            self._backend.body.deliverBody(self)  # type: ignore[arg-type]  # what it calls

    # -- from the client -------------------------------------------------------------------------

    def received(self, data: bytes) -> None:
        """Bytes from the client."""
        direction, exchange = self._from_client, self._client.exchange
        if self._over or direction.closed:
            return
        relayed = direction.feed(data)
        if relayed:
            exchange.bytes_in = (exchange.bytes_in or 0) + len(relayed)
            self._backend.link.write(relayed)
        self._relayed(direction)
        if direction.problem is not None:
            self._on_end(MessageRefused(*direction.problem))

    # -- from the backend ------------------------------------------------------------------------

    def makeConnection(self, transport: BodyTransport) -> None:
        self._transport = transport
        if self._paused:
            transport.pauseProducing()

    def dataReceived(self, data: bytes) -> None:
        direction = self._from_backend
        if self._over or direction.closed:
            return
        self._client.write(direction.feed(data))
        self._relayed(direction)
        problem = direction.problem
        if problem is not None:
            self._on_end(BadReply("The backend sent an invalid frame.", detail=problem.message))

    def connectionLost(self, reason: Failure) -> None:
        self._transport = None
        if self._over:
            return
        if self._from_backend.closed:
            self._on_end(self._judge_close())
            return
        problem = reason.value
        if not isinstance(problem, GatewayError):
            problem = Truncated("The backend closed the connection without a Close frame.")
        self._on_end(problem)

    # -- the end ---------------------------------------------------------------------------------

    def _relayed(self, direction: FrameTracker) -> None:
        """Bytes of this direction were relayed."""
        client_closed, backend_closed = self._from_client.closed, self._from_backend.closed
        if direction.content and not (client_closed or backend_closed):
            self.awaits_client = direction is self._from_backend
            self._watch.content()
        if client_closed and backend_closed:
            self._on_end(self._judge_close())
        elif direction.closed:
            self._backend_closes = backend_closed
            self._watch.start(self._clocks.at_most(CLOSING_SECONDS))

    def _judge_close(self) -> GatewayError | None:
        code = self._from_backend.close_code
        if self._backend_closes and code in _FAULTS:
            return BackendClosed(f"The backend closed the WebSocket with status {code}.")
        return None

    def timeout_error(self, clock: str) -> GatewayError | None:
        """The reason of the end when a clock has run out; None if the tunnel is whole."""
        if self._from_backend.closed:  # the client does not answer, and has all there is
            return self._judge_close()
        if self._from_client.closed:
            return UpstreamTimeout("The backend did not answer a Close frame.")
        return UpstreamTimeout(f"The WebSocket took too long ({clock}).")

    def close(self, problem: GatewayError | None) -> None:
        """End the exchange and close both sides.

        :param problem: the reason; None if the tunnel is whole.
        """
        self._stop()
        client, sent = self._client, self._from_backend
        client.unregisterProducer()
        reset = not (sent.closed or sent.between_frames)
        if problem is not None and not sent.closed and not reset:
            client.write(close_frame(_close_code(problem), problem.message, masked=False))
        self._leave_backend("The tunnel has ended.")
        client.end_tunnel(problem, reset=reset)

    def leave(self) -> None:
        """The client has disconnected: close the backend's side at once."""
        self._stop()
        self._leave_backend("The client has disconnected.")

    def _stop(self) -> None:
        self._over = True
        self._on_end = _ignore  # break the reference cycle with the one who has asked for it

    def _leave_backend(self, reason: str) -> None:
        link, sent, received = self._backend.link, self._from_client, self._from_backend
        if not sent.between_frames:
            link.abort()
        elif sent.closed and received.closed:
            link.close(b"")  # the client's Close frame may be on its way
        elif sent.closed or received.closed:
            link.close_at_once(b"")
        else:
            link.close_at_once(close_frame(frames.GOING_AWAY, reason, masked=True))

    # -- the client's pace -----------------------------------------------------------------------

    def pauseProducing(self) -> None:
        """Stop reading from the backend: the client is too slow."""
        self._paused = True
        self._watch.pause()
        if self._transport is not None:
            self._transport.pauseProducing()

    def resumeProducing(self) -> None:
        self._paused = False
        self._watch.resume()
        if self._transport is not None:
            self._transport.resumeProducing()

    def stopProducing(self) -> None:
        """The client's connection is closing; :meth:`leave` follows."""


@implementer(IPushProducer)
class _Reading:
    """Stops reading from the client while the backend is too slow."""

    def __init__(self, client: TunnelClient) -> None:
        self._client = client

    def pauseProducing(self) -> None:
        self._client.read_tunnel(False)

    def resumeProducing(self) -> None:
        self._client.read_tunnel(True)

    def stopProducing(self) -> None:
        """The backend's connection is lost; the tunnel is told by its ``connectionLost``."""


def _close_code(problem: GatewayError) -> int:
    """The status code of the Close frame that tells a client of a problem."""
    if isinstance(problem, MessageRefused):
        return problem.close_code
    return frames.SERVICE_RESTART if isinstance(problem, Drained) else frames.INTERNAL_ERROR
