"""The clocks of a client's connection. They make few timers, also on a busy connection."""

from __future__ import annotations

import fcntl
import struct
import termios
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from gatewayd.sending import tcp_of


class Deadline:
    """One deadline at a time: setting another replaces it.

    A later deadline leaves the timer where it is; the timer is set again when it fires too early.
    """

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self._when: float | None = None
        self._timed_out: Callable[[], None] | None = None
        self._timer: IDelayedCall | None = None
        self._timer_at = 0.0  # when the timer fires

    def set(self, seconds: float, timed_out: Callable[[], None]) -> None:
        """Call ``timed_out`` when ``seconds`` have passed; 0 means never."""
        self._timed_out = timed_out
        if not seconds:
            self._when = None
            return
        self._when = when = self._reactor.seconds() + seconds
        if self._timer is not None:
            if self._timer_at <= when:
                return
            self._timer.cancel()
        self._start(seconds)

    def clear(self) -> None:
        """Have no deadline."""
        self._when = self._timed_out = None

    def is_for(self, timed_out: Callable[[], None]) -> bool:
        return self._timed_out == timed_out

    def stop(self) -> None:
        """Have no deadline and no timer."""
        self.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self) -> None:
        self._timer = None
        if self._when is None or self._timed_out is None:
            return
        remaining = self._when - self._reactor.seconds()
        if remaining > 0:
            self._start(remaining)
        else:
            timed_out = self._timed_out
            self.clear()
            timed_out()

    def _start(self, seconds: float) -> None:
        self._timer = self._reactor.callLater(seconds, self._check)
        self._timer_at = self._timer.getTime()


class WriteClock:
    """Times out a peer that takes none of the bytes that are pending.

    It looks at the kernel's queue: what a slow reader takes shows there long before the transport
    may write again. The transport alone would time out a peer that reads slowly but steadily.

    :param timed_out: called when the peer has taken nothing for the time given to :meth:`start`.
    """

    def __init__(
        self, reactor: IReactorTime, transport: Any, timed_out: Callable[[], None]
    ) -> None:
        self._reactor = reactor
        self._transport = transport
        self._timed_out = timed_out
        self._timer: IDelayedCall | None = None
        self._pending = 0
        self._seconds = self._since = 0.0

    def start(self, seconds: float) -> None:
        """Start unless it is running. ``seconds`` is how long the peer may take nothing."""
        if self._timer is None:
            self._seconds = seconds
            self._pending, self._since = pending(self._transport), self._reactor.seconds()
            self._schedule()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self) -> None:
        seconds = min(self._seconds / 8, 5.0, self._remaining())
        self._timer = self._reactor.callLater(seconds, self._check)

    def _check(self) -> None:
        self._timer = None
        before, self._pending = self._pending, pending(self._transport)
        if self._pending < before:
            self._since = self._reactor.seconds()
        if self._remaining() <= 0:
            self._timed_out()
        else:
            self._schedule()

    def _remaining(self) -> float:
        """Seconds until the timeout. One method, so that timer and check round alike."""
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
