"""The idle connections to one backend, the newest first.

The oldest is the most likely to have been closed by the backend.
"""

from __future__ import annotations

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from .connection import Connection

#: Seconds between two checks for connections that were idle for too long.
SWEEP_SECONDS = 1.0


class Pool:
    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self._idle: dict[Connection, float] = {}  # oldest first, and when each expires
        self._sweep: IDelayedCall | None = None  # one timer for all: cheaper than one for each
        self._closed = False

    def take(self) -> Connection | None:
        """Take the newest connection that can be used; None if there is none."""
        now = self._reactor.seconds()
        while self._idle:
            connection, expires = self._idle.popitem()
            if expires > now and connection.is_silent():
                return connection
            connection.abort()
        return None

    def put(self, connection: Connection) -> None:
        """Keep a connection that has become idle. A closed pool closes it."""
        if self._closed:
            connection.abort()
            return
        self._idle[connection] = self._reactor.seconds() + connection.idle_seconds
        if self._sweep is None:
            self._sweep = self._reactor.callLater(SWEEP_SECONDS, self._close_expired)

    def remove(self, connection: Connection) -> None:
        """Forget a connection that has closed, if it is here."""
        self._idle.pop(connection, None)

    def close(self) -> None:
        """Close all connections, now and as they become idle."""
        self._closed = True
        for connection in list(self._idle):
            connection.abort()
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    def _close_expired(self) -> None:
        now = self._reactor.seconds()
        for connection in [c for c, expires in self._idle.items() if expires <= now]:
            connection.abort()
        self._sweep = None
        if self._idle:
            self._sweep = self._reactor.callLater(SWEEP_SECONDS, self._close_expired)
