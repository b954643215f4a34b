"""Connections to a backend in memory: the test plays the backend."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure


class ServerTransport(StringTransport):
    """The gateway's end of a connection to a backend."""

    protocol: Any
    aborted = False

    def setTcpNoDelay(self, enabled: bool) -> None:
        """A method of TCP transports; nothing to do here."""

    def abortConnection(self) -> None:
        if not self.aborted:
            self.aborted = True
            self.close(ConnectionDone())

    def close(self, reason: Exception) -> None:
        self.protocol.connectionLost(Failure(reason))


def connected(factory: Any) -> ServerTransport:
    """Let the connection that ``factory`` asked for succeed."""
    transport = ServerTransport()
    transport.protocol = factory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 9))
    transport.protocol.makeConnection(transport)
    return transport
