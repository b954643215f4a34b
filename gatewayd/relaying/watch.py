"""The clocks of one relay, as timestamps that one delayed call looks at.

Content costs a timestamp and no timer: the delayed call comes no later than any clock could be
due, and comes again when one still runs. Only content moves the clocks, which is what a client
would show or count; comments and pings do not, neither the backend's nor the gateway's own. An
event that comes slowly counts as content while it comes; once it is complete and was none, the
clocks stand where they stood before it.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from gatewayd.backend.interface import Clocks
from gatewayd.exchange import Exchange


def _ignore(*_: object) -> None:
    """What is due after the end."""


class Watch:
    """
    :param ping: seconds of silence after which ``comment`` is called; 0 for never.
    :param patience: how long the caller said that it waits for the first byte; 0 if it did not.
    :param late: told once which clock ran out: ``total``, ``first_byte``, ``idle`` or
        ``patience``. After that nothing is watched any more.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        exchange: Exchange,
        ping: float,
        patience: float,
        late: Callable[[str], None],
        comment: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._exchange = exchange
        self._ping = ping
        self._patience = patience
        self._late = late
        self._comment = comment
        self._clocks = Clocks()
        self._shortest = 0.0  # of the clocks that start anew while a reply is read
        self._began = self._asked_at = self._wrote_at = reactor.seconds()
        self._content_at: float | None = None
        self._part_at: float | None = None  # of an event that has not ended
        self._paused = False
        self._stopped = False
        self._timer: IDelayedCall | None = None

    # -- what happens --------------------------------------------------------------------------

    def asked(self, clocks: Clocks) -> None:
        """A backend with these clocks was asked; what came from one before does not count."""
        self._clocks = clocks
        self._shortest = min((t for t in (clocks.idle, self._ping) if t), default=clocks.total)
        self._asked_at, self._content_at = self._reactor.seconds(), None
        self._part_at = None
        self._look()

    @property
    def waited(self) -> float:
        """Seconds since the backend was asked; 0 if any content has come."""
        return 0.0 if self._content_at is not None else self._reactor.seconds() - self._asked_at

    def content(self) -> None:
        """Bytes of content came."""
        now, before = self._reactor.seconds(), self._content_at
        self._content_at, self._part_at = now, None
        exchange = self._exchange
        if before is None:
            exchange.first_byte = now
            self._begin()
        elif now - before > exchange.longest_gap and exchange.first_event is not None:
            exchange.longest_gap = now - before

    def event(self, content: bool) -> None:
        """Events came, and whether one was content is known now."""
        if content:
            self.content()
        elif self._part_at is not None:
            self._part_at = None
            self._look_later()  # an earlier clock may be due already

    def part(self) -> None:
        """Bytes of an event came whose end has not."""
        before, self._part_at = self._part_at, self._reactor.seconds()
        if before is None:
            self._begin()

    def relayed(self, events: int) -> None:
        """Events came and went on, and not the first: all of the above and below at once."""
        now, before, exchange = self._reactor.seconds(), self._content_at, self._exchange
        self._content_at = self._wrote_at = now
        if before is not None and now - before > exchange.longest_gap:
            exchange.longest_gap = now - before
        exchange.events += events

    def wrote(self) -> None:
        """The client was sent what the backend sent last."""
        self._wrote_at = self._reactor.seconds()
        if self._exchange.first_event is None and self._content_at is not None:
            self._exchange.first_event = self._wrote_at

    def pause(self) -> None:
        """The client is too slow: the backend's silence is our doing from now on."""
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._wrote_at = self._reactor.seconds()
        if self._content_at is not None:
            self._content_at = self._wrote_at
        if self._part_at is not None:
            self._part_at = self._wrote_at
        self._look()

    def stop(self) -> None:
        """Nothing is due any more."""
        self._stopped = True
        self._late = self._comment = _ignore  # who watches holds this, and this would hold them
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    # -- what is due ---------------------------------------------------------------------------

    def _deadlines(self) -> list[tuple[float, str]]:
        clocks = self._clocks
        deadlines = []
        if clocks.total:
            deadlines.append((self._began + clocks.total, "total"))
        heard_at = self._content_at if self._part_at is None else self._part_at
        if heard_at is None:
            if clocks.first_byte:
                deadlines.append((self._asked_at + clocks.first_byte, "first_byte"))
            if self._patience:
                deadlines.append((self._began + self._patience, "patience"))
        elif clocks.idle and not self._paused:
            deadlines.append((heard_at + clocks.idle, "idle"))
        if self._ping and not self._paused:
            deadlines.append((self._wrote_at + self._ping, "ping"))
        return deadlines

    def _look(self) -> None:
        """See which clock is due, and look again when the next one can be."""
        if self._stopped:
            return
        now = self._reactor.seconds()
        for due, clock in self._deadlines():
            if due > now:
                continue
            if clock != "ping":
                self._late(clock)
                return
            self._wrote_at = now
            self._comment()
        self._look_later()

    def _begin(self) -> None:
        """The idle clock runs now; the clocks before it may all have been off."""
        if self._timer is None or not self._timer.active():
            self._look_later()

    def _look_later(self) -> None:
        """Look again when the next clock can be due, never within this call."""
        if self._stopped:
            return
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        now = self._reactor.seconds()
        soonest = min((due for due, _ in self._deadlines()), default=None)
        if soonest is not None:
            soonest = min(soonest, now + (self._shortest or soonest))
            self._timer = self._reactor.callLater(max(soonest - now, 0.001), self._look)
