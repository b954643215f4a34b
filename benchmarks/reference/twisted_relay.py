"""Copies bytes from one socket to another, as cheaply as Twisted's own reactor allows.

It does not parse them. A gateway on Twisted cannot cost less than this.
"""

import sys
from collections.abc import Callable
from urllib.parse import urlsplit

from twisted.internet import reactor
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import ClientFactory, Factory, Protocol, connectionDone
from twisted.python.failure import Failure


class Half(Protocol):
    """Sends received bytes to the other half, immediately if the kernel accepts them."""

    def __init__(self, connected: Callable[["Half"], None]) -> None:
        self.other: Half | None = None
        self.early: list[bytes] = []
        self._connected = connected

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        self._connected(self)

    def dataReceived(self, data: bytes) -> None:
        if self.other is None:
            self.early.append(data)
            return
        transport = self.other.transport
        try:
            sent = transport.socket.send(data)
        except OSError:
            sent = 0
        if sent < len(data):
            transport.write(data[sent:])

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.other is not None:
            self.other.transport.loseConnection()


class Front(Factory):
    noisy = False

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port

    def buildProtocol(self, addr: IAddress) -> Half:
        return Half(self._connect)

    def _connect(self, front: Half) -> None:
        reactor.connectTCP(self._host, self._port, Back(front))


class Back(ClientFactory):
    noisy = False

    def __init__(self, front: Half) -> None:
        self._front = front

    def buildProtocol(self, addr: IAddress) -> Half:
        return Half(self._join)

    def _join(self, back: Half) -> None:
        back.other, self._front.other = self._front, back
        back.transport.write(b"".join(self._front.early))


def main(port: str, backend: str) -> None:
    parts = urlsplit(backend)
    front = Front(parts.hostname or "", parts.port or 80)
    reactor.listenTCP(int(port), front, backlog=4096, interface="127.0.0.1")
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
