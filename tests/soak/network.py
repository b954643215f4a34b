"""Sockets without a kernel: pairs of bounded buffers under Twisted's own ``tcp.Connection``.

Twisted's own code handles back-pressure, half-closed connections and resets, on these buffers. A
run is fast, and the same seed gives the same run. Time is a :class:`twisted.internet.task.Clock`.
"""

from __future__ import annotations

import errno
import itertools
import random
import socket as real
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.internet import error, tcp
from twisted.internet.address import IPv4Address
from twisted.internet.posixbase import _DisconnectSelectableMixin
from twisted.internet.task import Clock
from twisted.python.failure import Failure

#: Descriptor numbers that are never in use: a system call on them fails.
_numbers = itertools.count(1_000_000)
#: Counts sends and closes, so that their order is known.
_operations = itertools.count(1)


class Socket:
    """One end of a connection.

    :param capacity: how many unread bytes it holds.
    """

    def __init__(self, capacity: int, random: random.Random) -> None:
        self.capacity = capacity
        self.received = bytearray()
        self.peer: Socket
        self.closed = False
        self.closed_at = 0  # the operation that closed it; 0 if none has
        self.sent_at: list[int] = []  # the operations that sent; whoever reads may forget them
        self.ended = False  # the peer sends no more
        self.broken = False  # the peer has reset the connection
        self.sent_too_late = False  # ... because bytes arrived after it had closed
        self._random = random
        self._number = next(_numbers)
        self._reset_on_close = False

    # -- what tcp.Connection calls -------------------------------------------------------------

    def fileno(self) -> int:
        return self._number

    def setblocking(self, blocking: bool) -> None:
        assert not blocking

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        if (level, option) == (real.SOL_SOCKET, real.SO_LINGER):
            self._reset_on_close = True

    def send(self, data: Any) -> int:
        if self.broken:
            raise ConnectionResetError(errno.ECONNRESET, "reset")
        self.sent_at.append(next(_operations))
        if self.peer.closed:
            self.broken = self.sent_too_late = True  # the answer to bytes for a closed socket
            return len(data)
        room = self.peer.capacity - len(self.peer.received)
        if room <= 0:
            raise BlockingIOError(errno.EWOULDBLOCK, "full")
        self.peer.received += bytes(data[:room])
        return min(room, len(data))

    def recv(self, size: int, flags: int = 0) -> bytes:
        if self.broken:
            raise ConnectionResetError(errno.ECONNRESET, "reset")
        if self.received:
            size = min(size, len(self.received))
            if size > 1 and self._random.random() < 0.3:
                size = self._random.randint(1, size)
            data = bytes(self.received[:size])
            if flags & real.MSG_PEEK:
                return data
            del self.received[:size]
            return data
        if self.ended:
            return b""
        raise BlockingIOError(errno.EWOULDBLOCK, "empty")

    def shutdown(self, how: int) -> None:
        self.peer.ended = True

    def close(self) -> None:
        if self.closed:
            return
        self.closed, self.closed_at = True, next(_operations)
        if self._reset_on_close or self.received:
            self.peer.broken = True
            self.peer.received.clear()
        else:
            self.peer.ended = True

    # -- what the network and the far ends ask -------------------------------------------------

    def reset(self) -> None:
        self._reset_on_close = True
        self.close()

    @property
    def readable(self) -> bool:
        return bool(self.received) or self.ended or self.broken

    @property
    def writable(self) -> bool:
        peer = self.peer
        return self.broken or peer.closed or len(peer.received) < peer.capacity


def pair(random: random.Random, capacity: int) -> tuple[Socket, Socket]:
    one, other = Socket(capacity, random), Socket(capacity, random)
    one.peer, other.peer = other, one
    return one, other


class Connection(tcp.Connection):
    """The gateway's end of a connection."""

    logstr = "soak"

    def __init__(self, socket: Socket, protocol: Any, network: Network, peer: str) -> None:
        super().__init__(socket, protocol, network)  # type: ignore[arg-type]  # as far as is used
        self.connected = 1
        self._peer = peer

    def begin(self) -> None:
        self.startReading()
        self.protocol.makeConnection(self)

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", self._peer, 1)

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 2)


class Connector:
    """A connection to a backend while it is being made."""

    def __init__(self, network: Network, factory: Any, port: int) -> None:
        self._network = network
        self._port = port
        self._factory = factory
        self._over = False

    def getDestination(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", self._port)

    def stopConnecting(self) -> None:
        self.fail(error.UserError())

    def disconnect(self) -> None:
        self.stopConnecting()

    def fail(self, reason: Exception) -> None:
        if not self._over:
            self._over = True
            self._factory.clientConnectionFailed(self, Failure(reason))

    def succeed(self, capacity: int) -> Socket | None:
        """Connect; return the backend's end, or None if the connect was cancelled."""
        if self._over:
            return None
        self._over = True
        ours, its = pair(self._network.random, capacity)
        protocol = self._factory.buildProtocol(self.getDestination())
        if protocol is None:
            return None
        connection = Connection(ours, protocol, self._network, "127.0.0.1")
        self._network.connections.add(connection)
        connection.begin()
        return its


class Port:
    """Where the gateway listens."""

    def __init__(self, factory: Any) -> None:
        self.factory = factory
        self.listens = True

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 8000)

    def stopListening(self) -> None:
        self.listens = False


class Network(Clock, _DisconnectSelectableMixin):
    """The reactor of the gateway: sockets and time.

    :param on_connect: called for each connect to a backend, with its port and the connector.
    """

    def __init__(self, random: random.Random, on_connect: Callable[[int, Connector], None]) -> None:
        super().__init__()
        self.random = random
        self.connections: set[Connection] = set()
        self._on_connect = on_connect
        self._readers: dict[Any, None] = {}
        self._writers: dict[Any, None] = {}

    # -- Twisted's interface -------------------------------------------------------------------

    def addReader(self, reader: Any) -> None:
        self._readers[reader] = None

    def addWriter(self, writer: Any) -> None:
        self._writers[writer] = None

    def removeReader(self, reader: Any) -> None:
        self._readers.pop(reader, None)

    def removeWriter(self, writer: Any) -> None:
        self._writers.pop(writer, None)

    def connectTCP(
        self, host: str, port: int, factory: Any, timeout: float = 30, bindAddress: Any = None
    ) -> Connector:
        connector = Connector(self, factory, port)
        factory.doStart()
        factory.startedConnecting(connector)
        self._on_connect(port, connector)
        return connector

    def listenTCP(self, port: int, factory: Any, backlog: int, interface: str) -> Port:
        self._port = Port(factory)
        return self._port

    def callFromThread(self, call: Callable[..., Any], *args: Any, **more: Any) -> None:
        self.callLater(0, call, *args, **more)

    # -- running -------------------------------------------------------------------------------

    def is_read(self, connection: Connection) -> bool:
        return connection in self._readers

    def accept(self, peer: str, capacity: int) -> Socket:
        """Connect a client to the port; return its end."""
        ours, its = pair(self.random, capacity)
        protocol = self._port.factory.buildProtocol(IPv4Address("TCP", peer, 1))
        connection = Connection(ours, protocol, self, peer)
        self.connections.add(connection)
        connection.begin()
        return its

    def turn(self) -> bool:
        """Read and write on all ready connections. Return False if none was ready."""
        moved = False
        readers = [r for r in self._readers if r.socket.readable]
        self.random.shuffle(readers)
        for reader in readers:
            if reader in self._readers:
                moved = True
                why = reader.doRead()
                if why:
                    self._disconnectSelectable(reader, why, True)
        writers = [w for w in self._writers if w.socket.writable]
        for writer in writers:
            if writer in self._writers:
                moved = True
                why = writer.doWrite()
                if why:
                    self._disconnectSelectable(writer, why, False)
        self.connections = {c for c in self.connections if hasattr(c, "socket")}
        return moved


class Plain:
    """The far end of a socket: non-blocking reads and writes."""

    def __init__(self, socket: Socket) -> None:
        self.socket = socket
        self._out = bytearray()
        self._fin = False

    #: Whether the peer has closed its side, or reset the connection.
    ended: bool = False
    broken: bool = False
    #: Whether the last :meth:`pump` sent or received anything.
    moved = False

    def write(self, data: bytes) -> None:
        self._out += data

    @property
    def unsent(self) -> int:
        return len(self._out)

    def finish(self) -> None:
        """Close when all bytes have been sent."""
        self._fin = True

    def reset(self) -> None:
        self._out.clear()
        self.socket.reset()

    def pump(self, most: int = 1 << 20) -> bytes:
        """Send pending bytes; return received bytes, at most ``most``."""
        self.moved = False
        self._send()
        return self._receive(most)

    def _send(self) -> None:
        if self.socket.closed:
            return
        try:
            while self._out:
                del self._out[: self.socket.send(self._out)]
                self.moved = True
        except BlockingIOError:
            return
        except ConnectionError:
            self._out.clear()
        if self._fin and not self.unsent:
            self.socket.shutdown(1)
            self._fin = False

    def _receive(self, most: int) -> bytes:
        if self.socket.closed or not most:
            return b""
        try:
            data = self.socket.recv(most)
        except BlockingIOError:
            return b""
        except ConnectionError:
            self.broken = True
            return b""
        self.moved = True
        if not data:
            self.ended = True
        return data


class Secure(Plain):
    """The same over TLS."""

    def __init__(self, socket: Socket, context: ssl.SSLContext, server: bool) -> None:
        super().__init__(socket)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        name = None if server else "127.0.0.1"
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server, name)
        self._plain = bytearray()
        self._told_end = self._closes = False

    def write(self, data: bytes) -> None:
        self._plain += data

    @property
    def unsent(self) -> int:
        return len(self._out) + len(self._plain)

    def reset(self) -> None:
        self._plain.clear()
        super().reset()

    def finish(self) -> None:
        """Close with close_notify; without it, an attacker could have closed."""
        self._closes = True
        super().finish()

    def pump(self, most: int = 1 << 20) -> bytes:
        self.moved, received = False, b""
        while raw := self._receive(most):
            self._incoming.write(raw)
            if len(raw) >= most:
                break
        if self.ended and not self._told_end:
            self._told_end = True
            self._incoming.write_eof()
        try:
            if self._plain:
                del self._plain[: self._tls.write(bytes(self._plain))]
            else:
                self._tls.do_handshake()
            while data := self._tls.read(1 << 16):
                received += data
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            self.ended = True
        except ssl.SSLError:
            self.broken = True
        if self._closes and not self._plain:
            self._closes = False
            with suppress(ssl.SSLError):
                self._tls.unwrap()
        if self._outgoing.pending:
            self._out += self._outgoing.read()
        self._send()
        return received
