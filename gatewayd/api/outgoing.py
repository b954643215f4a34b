"""The way out to a client: its pace, and how its connection is closed.

The transport calls an :class:`Outgoing` when it holds more than 64 KiB that the client has not
taken (then it is *full*), and again when it is empty. What is closed is closed in three ways:

- :meth:`Outgoing.close`: what waits is sent first; then the connection is closed for good, or it
  lingers: only our side of it is closed, and what the client still sends is read and dropped for a
  while. Closing with unread bytes would reset the connection, and the answer might be lost with it.
- :meth:`Outgoing.close_by_reset`: what waits is sent first; then the connection is reset, so that
  a body that only the connection's end could delimit does not look whole.
- ``transport.abortConnection()``: at once, and what waits is lost.

Twisted's transports do not close while a producer is registered and paused, and under TLS while
any is registered. So a full transport is closed when it is empty, and the producer leaves first.
Whatever the client does, a connection that closes is gone after :data:`LINGER_SECONDS` if it has
taken everything, and after ``client_write`` seconds (:data:`CLOSING_SECONDS` if that is 0) in which
it took nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from gatewayd.sending import tcp_of, tune

from .clocks import Deadline, WriteClock, pending
from .state import ServerState

#: How long a connection that we have closed is read, for the client to close it too.
LINGER_SECONDS = 2.0
#: How often it is looked whether a client has taken what is sent before a reset.
LOOK_SECONDS = 0.05
#: In place of ``client_write = 0``, when a connection is to be closed.
CLOSING_SECONDS = 60.0


def _ignore() -> None:
    """What is called of a connection that is gone."""


@implementer(IPushProducer)
class Outgoing:
    """
    :param deadline: the connection's; it is for the closing once that has begun.
    :param turned: called whenever the transport has become full or empty.
    :param late: called when the client has taken nothing for too long.
    """

    def __init__(
        self,
        state: ServerState,
        transport: Any,
        deadline: Deadline,
        turned: Callable[[], None],
        late: Callable[[], None],
    ) -> None:
        #: Whether the client has yet to take what it was sent.
        self.full = False
        #: Whether the connection is being closed: nothing that comes is looked at any more.
        self.closing = False
        self._state = state
        self._transport = transport
        self._deadline = deadline
        self._turned = turned
        self._late = late
        self._reads = True
        self._producer: IPushProducer | None = None
        self._writes: WriteClock | None = None
        self._taken: list[Callable[[], None]] = []
        self._hang_up: Callable[[], None] | None = None  # when the transport is empty
        self._look_every = LINGER_SECONDS
        self._resets = False
        tune(transport)
        transport.registerProducer(self, True)

    def read(self, wanted: bool) -> None:
        """Have the transport read, or leave what the client sends in the kernel."""
        if wanted != self._reads:
            self._reads = wanted
            if wanted:
                self._transport.resumeProducing()
            else:
                self._transport.pauseProducing()

    def when_taken(self, call: Callable[[], None]) -> None:
        """Call when the transport is not full any more: at once if it is not, or is gone."""
        if self.full:
            self._taken.append(call)
        else:
            call()

    def register(self, producer: IPushProducer) -> None:
        """Have ``producer`` paused while the transport is full."""
        self._producer = producer
        if self.full:  # the transport says so only once
            producer.pauseProducing()

    def unregister(self) -> None:
        self._producer = None

    # -- what the transport calls: IPushProducer -----------------------------------------------

    def pauseProducing(self) -> None:
        if self.full:
            return
        self.full = True
        if self._producer is not None:
            self._producer.pauseProducing()
        self._watch()
        self._turned()

    def resumeProducing(self) -> None:
        self.full = False
        if self._writes is not None and not self.closing:
            self._writes.stop()
        self._call_taken()
        if self._producer is not None:
            self._producer.resumeProducing()
        if self._hang_up is not None:
            self._hang_up()
        else:
            self._turned()

    def stopProducing(self) -> None:
        """The connection is lost; the channel is told so."""

    # -- closing -------------------------------------------------------------------------------

    def close(self, *, linger: bool) -> None:
        """Send what waits, then close: for good, or only our side for now."""
        if self.closing:
            return
        self._begin_closing(LINGER_SECONDS)
        self._hang_up = self._close_our_side if linger else self._close_both_sides
        if not self.full:
            self._hang_up()

    def close_by_reset(self) -> None:
        """Send what waits; when the client has taken it, reset the connection."""
        if not self.closing:
            self._resets = True
            self._begin_closing(LOOK_SECONDS)

    def abort(self) -> None:
        self.closing = True
        self._transport.abortConnection()

    def lost(self) -> None:
        """The connection is gone."""
        self.closing, self.full = True, False
        self._deadline.stop()
        if self._writes is not None:
            self._writes.stop()
            self._writes = None  # it holds this, and this holds it
        self._producer = self._hang_up = self._transport = None  # TLS holds this, too
        self._turned = self._late = _ignore
        self._call_taken()

    def _begin_closing(self, look_every: float) -> None:
        self.closing = True
        self._look_every = look_every
        self.read(True)
        self._watch()
        self._deadline.set(look_every, self._look)

    def _close_our_side(self) -> None:
        self._hang_up = None
        self._transport.unregisterProducer()
        if tcp_of(self._transport) is self._transport:
            self._transport.loseWriteConnection()
        else:  # sends a close_notify, and waits for the client's
            self._transport.loseConnection()

    def _close_both_sides(self) -> None:
        self._hang_up = None
        self._transport.unregisterProducer()
        self._transport.loseConnection()
        tcp_of(self._transport).loseConnection()  # TLS need not be answered

    def _look(self) -> None:
        if pending(self._transport):  # how long that may take is for the write clock to say
            self._deadline.set(self._look_every, self._look)
        elif self._resets:
            self._transport.abortConnection()
        else:  # not by a reset: some systems drop what a program has not read by then
            tcp_of(self._transport).loseConnection()

    def _watch(self) -> None:
        """See that the client goes on taking what it is sent."""
        seconds = self._state.settings.timeouts.client_write
        if self.closing:
            seconds = seconds or CLOSING_SECONDS
        if not seconds:
            return
        if self._writes is None:  # most connections never need one
            self._writes = WriteClock(self._state.reactor, self._transport, self._late)
        self._writes.start(seconds)

    def _call_taken(self) -> None:
        taken, self._taken = self._taken, []
        for call in taken:
            call()
