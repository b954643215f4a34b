"""The clocks of a client's connection, made so that a busy connection costs few timers."""

from __future__ import annotations

import fcntl
import struct
import termios
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from gatewayd.sending import tcp_of


class Deadline:
    """One deadline at a time; setting it replaces the one before.

    The delayed call is moved only when it would come too late: else it looks again when it comes.
    """

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self._when: float | None = None
        self._late: Callable[[], None] | None = None
        self._timer: IDelayedCall | None = None

    def set(self, seconds: float, late: Callable[[], None]) -> None:
        """Call ``late`` when ``seconds`` have passed; 0 is never."""
        self._late = late
        if not seconds:
            self._when = None
            return
        self._when = self._reactor.seconds() + seconds
        if self._timer is not None:
            if self._timer.getTime() <= self._when:
                return
            self._timer.cancel()
        self._timer = self._reactor.callLater(seconds, self._look)

    def clear(self) -> None:
        """Nothing is due any more."""
        self._when = self._late = None

    def is_for(self, late: Callable[[], None]) -> bool:
        return self._late == late

    def stop(self) -> None:
        """Let go of the timer, for good."""
        self.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self._when is None or self._late is None:
            return
        left = self._when - self._reactor.seconds()
        if left > 0:
            self._timer = self._reactor.callLater(left, self._look)
        else:
            late = self._late
            self.clear()
            late()


class WriteClock:
    """While bytes are pending, sees that the peer goes on taking them.

    What a slow reader takes shows in the kernel's queue long before the transport may write again:
    going by the transport alone would cut off who reads slowly but steadily.

    :param late: called when it has taken none for the time that :meth:`start` was told.
    """

    def __init__(self, reactor: IReactorTime, transport: Any, late: Callable[[], None]) -> None:
        self._reactor = reactor
        self._transport = transport
        self._late = late
        self._timer: IDelayedCall | None = None
        self._pending = 0
        self._seconds = self._since = 0.0

    def start(self, seconds: float) -> None:
        """Begin, unless it is running already. ``seconds`` is how long the peer may take none."""
        if self._timer is None:
            self._seconds = seconds
            self._pending, self._since = pending(self._transport), self._reactor.seconds()
            self._again()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _again(self) -> None:
        left = self._left()
        self._timer = self._reactor.callLater(min(self._seconds / 8, 5.0, left), self._look)

    def _look(self) -> None:
        self._timer = None
        before, self._pending = self._pending, pending(self._transport)
        if self._pending < before:
            self._since = self._reactor.seconds()
        if self._left() <= 0:
            self._late()
        else:
            self._again()

    def _left(self) -> float:
        """Seconds until it is due. Rounding must be the same for the timer and for the check."""
        return self._since + self._seconds - self._reactor.seconds()


def pending(transport: Any) -> int:
    """How many bytes given to a transport its peer has not acknowledged yet."""
    tcp = tcp_of(transport)
    count = len(getattr(tcp, "dataBuffer", b"")) - getattr(tcp, "offset", 0)
    count += getattr(tcp, "_tempDataLen", 0)
    try:
        (queued,) = struct.unpack("i", fcntl.ioctl(tcp.fileno(), termios.TIOCOUTQ, b"\0" * 4))
    except (AttributeError, OSError, ValueError):  # closed meanwhile, or not a socket
        return count
    return count + int(queued)
