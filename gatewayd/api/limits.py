"""Admission: how much may be under way at once. What does not fit is refused; nothing waits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gatewayd.wire.errors import Overloaded


class InFlight:
    """Counts the requests that are being answered.

    :param limit: the most at once.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.count = 0

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Be one of them for the time of the block.

        :raises Overloaded: when there are enough already.
        """
        if self.count >= self.limit:
            raise Overloaded("The gateway is at its limit of requests in flight.")
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1
