"""Drops the rest of a body that its receiver does not need, if that rest is short."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

#: The longest rest that is read, in seconds and bytes. A longer one closes the connection.
DISCARD_SECONDS = 1.0
DISCARD_BYTES = 64 * 1024


class Discarding:
    """Receives the rest of one body.

    :param abort: closes the connection.
    """

    def __init__(self, reactor: IReactorTime, abort: Callable[[], None]) -> None:
        self._abort = abort
        self._remaining = DISCARD_BYTES
        self._timer = reactor.callLater(DISCARD_SECONDS, abort)

    def dataReceived(self, data: bytes) -> None:
        self._remaining -= len(data)
        if self._remaining < 0:
            self._timer.cancel()
            self._abort()

    def connectionLost(self, reason: Failure) -> None:
        """The body has ended."""
        self._timer.cancel()
