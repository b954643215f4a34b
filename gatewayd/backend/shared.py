"""One operation for all who want its result while it is under way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure

T = TypeVar("T")


class Shared(Generic[T]):
    """
    :param begin: begins the operation.
    :param cancels: whether to cancel it when nobody waits any more; a call in a thread goes on.
    """

    def __init__(self, begin: Callable[[], Deferred[T]], cancels: bool) -> None:
        self._begin = begin
        self._cancels = cancels
        self._running: Deferred[Any] | None = None
        self._waiting: list[Deferred[T]] = []

    def get(self) -> Deferred[T]:
        """The result of the operation that is under way, or of a new one.

        Cancelling the Deferred concerns nobody else who waits.
        """
        waiting: Deferred[T] = Deferred(self._leave)
        self._waiting.append(waiting)
        if self._running is None:
            running = self._running = maybeDeferred(self._begin)
            running.addBoth(self._ended)
        return waiting

    def _leave(self, waiting: Deferred[T]) -> None:
        if waiting in self._waiting:
            self._waiting.remove(waiting)
        if self._cancels and not self._waiting and self._running is not None:
            self._running.cancel()

    def _ended(self, result: T | Failure) -> None:
        self._running = None
        waiting, self._waiting = self._waiting, []
        for deferred in waiting:
            if deferred.called:
                pass  # cancelled by one that was told before it
            elif isinstance(result, Failure):
                deferred.errback(result)
            else:
                deferred.callback(result)
