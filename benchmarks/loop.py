"""A small epoll loop for the mock backend and the load generator, which must cost little.

asyncio with its transports and futures costs more than some of the gateways that are measured.
"""

from __future__ import annotations

import heapq
import select
import socket
from collections.abc import Callable
from time import monotonic

IN, OUT = select.EPOLLIN, select.EPOLLOUT


class Loop:
    """Calls the handlers of ready sockets, and functions at their time."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0

    def add(self, sock: socket.socket, handler: Callable[[int], None], mask: int = IN) -> None:
        self._handlers[sock.fileno()] = handler
        self._epoll.register(sock.fileno(), mask)

    def change(self, sock: socket.socket, mask: int) -> None:
        self._epoll.modify(sock.fileno(), mask)

    def close(self, sock: socket.socket) -> None:
        del self._handlers[sock.fileno()]
        self._epoll.unregister(sock.fileno())
        sock.close()

    def at(self, when: float, call: Callable[[], None]) -> None:
        """:param when: by the clock of ``time.monotonic``."""
        self._number += 1
        heapq.heappush(self._due, (when, self._number, call))

    def run(self, until: float, done: Callable[[], bool] = lambda: False) -> None:
        """Run until a time, or until ``done()`` is true after an event."""
        due, handlers, poll = self._due, self._handlers, self._epoll.poll
        while not done():
            now = monotonic()
            while due and due[0][0] <= now:
                heapq.heappop(due)[2]()
                now = monotonic()
            if now >= until:
                return
            wait = (min(until, due[0][0]) if due else until) - now
            for fd, mask in poll(max(0.0, min(wait, 1.0))):
                handler = handlers.get(fd)
                if handler is not None:  # None if an earlier handler of this turn has closed it
                    handler(mask)
