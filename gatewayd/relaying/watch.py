"""The clocks of one relay: timestamps, and the connection's timer that has them checked.

An event costs a timestamp and no timer. The check comes no later than any clock can be due, and
comes again while a clock runs. The timer is lent by the client's connection, which needs none
meanwhile. So one delayed call of the reactor serves many requests.

Only content moves the clocks: what a client would show or count. Comments and pings do not, neither
the backend's nor the gateway's own. A part of an event counts as content until the event is
complete; if the event then has none, the clocks stand where they stood before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.internet.interfaces import IReactorTime

from gatewayd.backend.interface import Clocks
from gatewayd.exchange import Exchange


def _ignore(*_: object) -> None:
    """The callbacks of a stopped watch."""


def _stays() -> bool:
    """No other backend is asked."""
    return False


class Timer(Protocol):
    """Calls one function, once: :class:`gatewayd.api.clocks.Deadline`."""

    def set(self, seconds: float, timed_out: Callable[[], None]) -> None:
        """Call ``timed_out`` after this time, and nothing that was set before."""

    def clear(self) -> None:
        """Call nothing."""


class Watch:
    """
    :param timer: used until :meth:`stop`.
    :param ping: seconds of silence after which ``on_ping`` is called; 0 for never.
    :param caller_timeout: seconds that the caller waits for the first byte; 0 if it did not say.
    :param on_timeout: called once, with the clock that ran out: ``total``, ``first_byte``,
        ``idle`` or ``caller_timeout``. No clock is checked after that before the next
        :meth:`start`.
    :param on_patience: called once after each :meth:`start`, when ``patience`` has run out. Returns
        whether the backend was left; then no clock is checked before the next :meth:`start`.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        timer: Timer,
        exchange: Exchange,
        ping: float,
        caller_timeout: float,
        on_timeout: Callable[[str], None],
        on_ping: Callable[[], None],
        on_patience: Callable[[], bool] = _stays,
    ) -> None:
        self._reactor = reactor
        self._timer = timer
        self._exchange = exchange
        self._ping = ping
        self._caller_timeout = caller_timeout
        self._on_timeout = on_timeout
        self._on_ping = on_ping
        self._on_patience = on_patience
        self._impatient = False  # patience has run out, and the backend was not left
        self._clocks = Clocks()
        self._shortest = 0.0  # of the clocks that are reset while a reply is read
        self._created_at = self.started_at = self._wrote_at = reactor.seconds()
        self._content_at: float | None = None
        self._part_at: float | None = None  # the last part of an event that is not complete
        self._paused = False
        self._scheduled = False
        self._stopped = False

    # -- what happens ------------------------------------------------------------------------------

    def start(self, clocks: Clocks) -> None:
        """A backend with these clocks is asked now. Content of an earlier one does not count.

        The clocks ``total`` and ``caller_timeout`` run since the watch was made.
        """
        self._clocks = clocks
        idle, ping = clocks.idle, self._ping
        self._shortest = min(idle, ping) if idle and ping else idle or ping or clocks.total
        now = self.started_at = self._reactor.seconds()
        self._content_at = self._part_at = None
        self._impatient = False
        first_byte, patience, total = clocks.first_byte, clocks.patience, clocks.total
        running = first_byte, patience, total, self._caller_timeout, self._shortest
        soonest = self._created_at + min(filter(None, running), default=0.0)
        if soonest > now:  # no clock can be due before this
            self._scheduled = True
            self._timer.set(soonest - now, self._check)
        else:
            self._check()

    @property
    def waited(self) -> float:
        """Seconds since the backend was asked; 0 if any content has come."""
        return 0.0 if self._content_at is not None else self._reactor.seconds() - self.started_at

    def content(self) -> None:
        """Bytes of content came."""
        now, before = self._reactor.seconds(), self._content_at
        self._content_at, self._part_at = now, None
        exchange = self._exchange
        if before is None:
            exchange.first_byte = now
            if not self._scheduled:
                self._schedule(self._deadlines())
        elif now - before > exchange.longest_gap and exchange.first_event is not None:
            exchange.longest_gap = now - before

    def empty_event(self) -> None:
        """Events ended, and none of them had content."""
        if self._part_at is not None:
            self._part_at = None
            self._schedule(self._deadlines())  # an earlier clock may be due already

    def partial_event(self) -> None:
        """Data of an event came whose end has not come yet."""
        before, self._part_at = self._part_at, self._reactor.seconds()
        if before is None and not self._scheduled:
            self._schedule(self._deadlines())

    def relayed(self, events: int) -> None:
        """Events with content came and were sent on at once, and they are not the first.

        The fast path: :meth:`content`, :meth:`wrote` and the count of events in one call.
        """
        now, before, exchange = self._reactor.seconds(), self._content_at, self._exchange
        self._content_at = self._wrote_at = now
        if before is not None and now - before > exchange.longest_gap:
            exchange.longest_gap = now - before
        exchange.events += events

    def wrote(self) -> None:
        """A part of the reply was sent to the client."""
        self._wrote_at = self._reactor.seconds()
        if self._exchange.first_event is None and self._content_at is not None:
            self._exchange.first_event = self._wrote_at

    def pause(self) -> None:
        """The client is too slow. From now on the backend is silent because it is not read."""
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._wrote_at = self._reactor.seconds()
        if self._content_at is not None:
            self._content_at = self._wrote_at
        if self._part_at is not None:
            self._part_at = self._wrote_at
        self._check()

    def stop(self) -> None:
        """Stop all clocks for good."""
        if not self._stopped:
            self._stopped = True
            # Break the reference cycle with the relay.
            self._on_timeout = self._on_ping = _ignore
            self._on_patience = _stays
            self._timer.clear()

    # -- what is due -------------------------------------------------------------------------------

    def _deadlines(self) -> list[tuple[float, str]]:
        clocks = self._clocks
        deadlines = []
        if clocks.total:
            deadlines.append((self._created_at + clocks.total, "total"))
        heard_at = self._content_at if self._part_at is None else self._part_at
        if heard_at is None:
            if clocks.first_byte:
                deadlines.append((self.started_at + clocks.first_byte, "first_byte"))
            if clocks.patience and not self._impatient:
                deadlines.append((self.started_at + clocks.patience, "patience"))
            if self._caller_timeout:
                deadlines.append((self._created_at + self._caller_timeout, "caller_timeout"))
        elif clocks.idle and not self._paused:
            deadlines.append((heard_at + clocks.idle, "idle"))
        if self._ping and not self._paused:
            deadlines.append((self._wrote_at + self._ping, "ping"))
        return deadlines

    def _check(self) -> None:
        """Call back for the clocks that are due, and check again when the next one can be."""
        if self._stopped:
            return
        now, deadlines = self._reactor.seconds(), self._deadlines()
        for due, clock in deadlines:
            if due > now:
                continue
            if clock == "ping":
                self._wrote_at = now
                self._on_ping()
            elif clock == "patience":
                self._impatient = True
                if self._on_patience():
                    return
            else:
                self._on_timeout(clock)
                return
            deadlines = self._deadlines()
        self._schedule(deadlines)

    def _schedule(self, deadlines: list[tuple[float, str]]) -> None:
        """Check again when the next clock can be due, never within this call."""
        if self._stopped:
            return
        self._scheduled = bool(deadlines)
        if not deadlines:
            self._timer.clear()
            return
        wait = min(deadlines)[0] - self._reactor.seconds()
        if self._shortest:
            wait = min(wait, self._shortest)
        self._timer.set(max(wait, 0.001), self._check)
