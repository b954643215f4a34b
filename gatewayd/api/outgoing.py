"""What is sent to a client: its pace, and how its connection is closed.

The transport calls an :class:`Outgoing` when it holds more than 64 KiB that the client has not
taken (then it is *full*), and again when it is empty. There are three ways to close:

- :meth:`Outgoing.close`: what is pending is sent first. Then the connection is closed, or it
  lingers: only our side is closed, and what the client still sends is read and dropped for a while.
  Closing with unread bytes would reset the connection, and the client might lose the answer.
- :meth:`Outgoing.close_by_reset`: what is pending is sent first. Then the connection is reset, so
  that a body that only the connection's end could delimit does not look complete.
- :meth:`Outgoing.abort`: at once; what is pending is lost.

Twisted's transports do not close while a producer is registered and paused, and under TLS while any
producer is registered. So a full transport is closed when it is empty, and the producer is
unregistered first. A connection that closes is gone after :data:`LINGER_SECONDS` if the client has
taken everything, and after ``client_write`` seconds (:data:`CLOSING_SECONDS` if that is 0) in which
the client took nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from gatewayd.sending import tcp_of, tune

from .clocks import Deadline, WriteClock, pending
from .state import ServerState

#: How long a connection that we have closed is read, so that the client can close it too.
LINGER_SECONDS = 2.0
#: Seconds between two checks whether a client has taken what is sent before a reset.
RESET_CHECK_SECONDS = 0.05
#: Replaces ``client_write = 0`` for a connection that closes.
CLOSING_SECONDS = 60.0


def _ignore() -> None:
    """Replaces the callbacks of a connection that is gone."""


@implementer(IPushProducer)
class Outgoing:
    """
    :param deadline: the connection's; used for the closing once that has begun.
    :param full_changed: called when the transport has become full or empty.
    :param timed_out: called when the client has taken nothing for ``client_write`` seconds.
    """

    def __init__(
        self,
        state: ServerState,
        transport: Any,
        deadline: Deadline,
        full_changed: Callable[[], None],
        timed_out: Callable[[], None],
    ) -> None:
        #: Whether the client has yet to take what it was sent.
        self.full = False
        #: Whether the connection is being closed: what is received is dropped.
        self.closing = False
        self._state = state
        self._transport = transport
        self._deadline = deadline
        self._full_changed = full_changed
        self._timed_out = timed_out
        self._reads = True
        self._producer: IPushProducer | None = None
        self._write_clock: WriteClock | None = None
        self._when_taken: list[Callable[[], None]] = []
        self._close_when_empty: Callable[[], None] | None = None
        self._check_seconds = LINGER_SECONDS
        self._resets = False
        tune(transport)
        transport.registerProducer(self, True)

    def set_reading(self, wanted: bool) -> None:
        """Have the transport read, or leave what the client sends in the kernel."""
        if wanted != self._reads:
            self._reads = wanted
            if wanted:
                self._transport.resumeProducing()
            else:
                self._transport.pauseProducing()

    def when_taken(self, call: Callable[[], None]) -> None:
        """Call when the transport is not full, or is gone: at once if that is so now."""
        if self.full:
            self._when_taken.append(call)
        else:
            call()

    def register(self, producer: IPushProducer) -> None:
        """Have ``producer`` paused while the transport is full."""
        self._producer = producer
        if self.full:  # the transport will not say so again
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
        self._start_write_clock()
        self._full_changed()

    def resumeProducing(self) -> None:
        self.full = False
        if self._write_clock is not None and not self.closing:
            self._write_clock.stop()
        self._call_when_taken()
        if self._producer is not None:
            self._producer.resumeProducing()
        if self._close_when_empty is not None:
            self._close_when_empty()
        else:
            self._full_changed()

    def stopProducing(self) -> None:
        """The connection is lost; the channel's ``connectionLost`` handles that."""

    # -- closing -------------------------------------------------------------------------------

    def close(self, *, linger: bool) -> None:
        """Send what is pending, then close both sides, or only ours if the connection lingers."""
        if self.closing:
            return
        self._begin_closing(LINGER_SECONDS)
        self._close_when_empty = self._close_our_side if linger else self._close_both_sides
        if not self.full:
            self._close_when_empty()

    def close_by_reset(self) -> None:
        """Send what is pending; reset the connection when the client has taken it."""
        if not self.closing:
            self._resets = True
            self._begin_closing(RESET_CHECK_SECONDS)

    def abort(self) -> None:
        self.closing = True
        self._transport.abortConnection()

    def connection_lost(self) -> None:
        self.closing, self.full = True, False
        self._deadline.stop()
        if self._write_clock is not None:
            self._write_clock.stop()
        # Break the reference cycles with the clock, the transport and the channel.
        self._write_clock = self._producer = self._close_when_empty = self._transport = None
        self._full_changed = self._timed_out = _ignore
        self._call_when_taken()

    def _begin_closing(self, check_seconds: float) -> None:
        self.closing = True
        self._check_seconds = check_seconds
        self.set_reading(True)
        self._start_write_clock()
        self._deadline.set(check_seconds, self._check_taken)

    def _close_our_side(self) -> None:
        self._close_when_empty = None
        self._transport.unregisterProducer()
        if tcp_of(self._transport) is self._transport:
            self._transport.loseWriteConnection()
        else:  # sends a close_notify and waits for the client's
            self._transport.loseConnection()

    def _close_both_sides(self) -> None:
        self._close_when_empty = None
        self._transport.unregisterProducer()
        self._transport.loseConnection()
        tcp_of(self._transport).loseConnection()  # does not wait for the client's close_notify

    def _check_taken(self) -> None:
        if pending(self._transport):  # the write clock bounds how long that may last
            self._deadline.set(self._check_seconds, self._check_taken)
        elif self._resets:
            self._transport.abortConnection()
        else:  # no reset here: some systems drop what a program has not read before a reset
            tcp_of(self._transport).loseConnection()

    def _start_write_clock(self) -> None:
        seconds = self._state.settings.timeouts.client_write
        if self.closing:
            seconds = seconds or CLOSING_SECONDS
        if not seconds:
            return
        if self._write_clock is None:  # most connections never need one
            self._write_clock = WriteClock(self._state.reactor, self._transport, self._timed_out)
        self._write_clock.start(seconds)

    def _call_when_taken(self) -> None:
        calls, self._when_taken = self._when_taken, []
        for call in calls:
            call()
