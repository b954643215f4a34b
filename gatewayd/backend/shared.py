"""One operation whose result is shared by all that wait for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure

T = TypeVar("T")


class Shared(Generic[T]):
    """
    :param begin: begins the operation.
    :param cancels: whether to cancel the operation when no waiter is left. A call in a thread
        cannot be cancelled.
    """

    def __init__(self, begin: Callable[[], Deferred[T]], cancels: bool) -> None:
        self._begin = begin
        self._cancels = cancels
        self._running: Deferred[Any] | None = None
        self._waiters: list[Deferred[T]] = []

    def get(self) -> Deferred[T]:
        """The result of the running operation, or of a new one if none is running.

        Cancelling the Deferred does not affect other waiters.
        """
        waiter: Deferred[T] = Deferred(self._cancelled)
        self._waiters.append(waiter)
        if self._running is None:
            running = self._running = maybeDeferred(self._begin)
            running.addBoth(self._ended)
        return waiter

    def _cancelled(self, waiter: Deferred[T]) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        if self._cancels and not self._waiters and self._running is not None:
            self._running.cancel()

    def _ended(self, result: T | Failure) -> None:
        self._running = None
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if waiter.called:
                pass  # cancelled by an earlier waiter's callback
            elif isinstance(result, Failure):
                waiter.errback(result)
            else:
                waiter.callback(result)
