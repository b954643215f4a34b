"""The gateway in memory with clients on real sockets; the test controls the clock.

Twisted's own transports send and receive, with or without TLS, and the kernel's buffers are real:
tests of clients that do not read need both. The loop turns only when a test calls it.
"""

from __future__ import annotations

import json
import select
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import tcp
from twisted.internet.address import IPv4Address
from twisted.internet.main import CONNECTION_LOST
from twisted.internet.task import Clock
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from gatewayd.api.tls import Certificate
from gatewayd.backend.interface import Backend
from gatewayd.settings.files import read_file
from gatewayd.settings.model import Settings
from gatewayd.settings.pem import server_context
from tests.certificates import certificate
from tests.memory import Gateway

#: Bytes of the kernel's buffers, for each direction of a connection.
BUFFER = 16 * 1024
KIB = 1024
tls_or_not = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
#: With 0 there is no timeout: then only the end of a connection bounds it.
client_write = pytest.mark.parametrize("client_write", ["60", "0"])
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: gateway\r\n\r\n"
CHAT = "/v1/chat/completions"
#: Seconds after which the kernel reports nothing more: an acknowledgement may take 40 ms.
QUIET = 0.06


class Loop(Clock):
    """A clock and a reactor for sockets; it polls them when :meth:`turn` is called."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: set[Any] = set()
        self.writers: set[Any] = set()
        self.addReader, self.removeReader = self.readers.add, self.readers.discard
        self.addWriter, self.removeWriter = self.writers.add, self.writers.discard

    def turn(self) -> None:
        """Handle ready sockets as the epoll reactor does, and calls that are due."""
        poll, watched = select.poll(), self.readers | self.writers
        by_number = {transport.fileno(): transport for transport in watched}
        for number, transport in by_number.items():
            reads = select.POLLIN if transport in self.readers else 0
            poll.register(number, reads | (select.POLLOUT if transport in self.writers else 0))
        for number, event in poll.poll(0):
            transport, why = by_number[number], None
            if event & (select.POLLHUP | select.POLLERR) and not event & select.POLLIN:
                why = CONNECTION_LOST
            if not why and event & select.POLLIN and transport in self.readers:
                why = transport.doRead()
            if not why and event & select.POLLOUT and transport in self.writers:
                why = transport.doWrite()
            if why:
                transport.connectionLost(Failure(why))
        self.advance(0)


class Accepted(tcp.Connection):
    """The gateway's end of a connection."""

    def __init__(self, accepted: socket.socket, protocol: Any, loop: Loop) -> None:
        super().__init__(accepted, protocol, loop)  # type: ignore[arg-type]  # what it calls
        self.connected = 1
        self.startReading()
        protocol.makeConnection(self)

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 0)


class Wired:
    """A gateway with clients on sockets; a context manager that closes them.

    :param folder: where a certificate is written; needed for clients with TLS.
    """

    def __init__(
        self, *backends: Backend, folder: Path | None = None, settings: Settings | None = None
    ) -> None:
        self.loop = Loop()
        self.gateway = Gateway(*backends, settings=settings, clock=self.loop)
        self.clients: list[Client] = []
        self._pair = certificate(folder, "gateway") if folder else None
        self._tls = self._opens_tls(*self._pair) if self._pair else None

    def _opens_tls(self, certificate: str, key: str) -> TLSMemoryBIOFactory:
        context = server_context(read_file(certificate), read_file(key))
        return TLSMemoryBIOFactory(Certificate(context), False, self.gateway.site, self.loop)

    def __enter__(self) -> Wired:
        return self

    def __exit__(self, *failure: object) -> None:
        for client in self.clients:
            client.close()
        for _ in range(4):
            self.loop.turn()
        for channel in list(self.gateway.site.state.connections):
            channel.transport.abortConnection()
        self.loop.advance(0)
        assert not self.gateway.site.state.connections

    def connect(self, tls: bool = False, shakes: bool = True, offers: Sequence[str] = ()) -> Client:
        """Connect a client.

        :param shakes: False to leave the TLS handshake to :meth:`Client.shake`.
        :param offers: the protocols that it offers (ALPN).
        """
        with socket.create_server(("127.0.0.1", 0)) as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
            ours = socket.socket()
            for which in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                ours.setsockopt(socket.SOL_SOCKET, which, BUFFER)
            ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            ours.connect(listening.getsockname())
            theirs, _ = listening.accept()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        factory: Any = self._tls if tls else self.gateway.site
        transport = Accepted(theirs, factory.buildProtocol(None), self.loop)
        ours.setblocking(False)
        trust = ssl.create_default_context(cafile=self._pair[0]) if tls and self._pair else None
        if trust is not None and offers:
            trust.set_alpn_protocols(list(offers))
        client = Client(self, ours, transport, trust)
        self.clients.append(client)
        if shakes:
            client.shake()
        return client

    def until(self, done: Callable[[], Any], what: str = "") -> None:
        """Turn the loop until ``done()``. Only the kernel may need time: the clock stands still."""
        deadline = time.monotonic() + 5
        while not done():
            assert time.monotonic() < deadline, what or "the condition was never met"
            self.loop.turn()

    def settle(self) -> None:
        """Turn the loop until nothing has changed for :data:`QUIET` seconds."""
        before, since = [client.state for client in self.clients], time.monotonic()
        while time.monotonic() - since < QUIET:
            self.loop.turn()
            if before != (now := [client.state for client in self.clients]):
                before, since = now, time.monotonic()

    def wait(self, seconds: float) -> None:
        """Advance the gateway's clock in small steps, and turn the loop."""
        for _ in range(int(seconds / 0.05)):
            self.loop.advance(0.05)
            self.loop.turn()


class Client:
    """A client's end of a connection. It reads only when a test calls :meth:`read`."""

    def __init__(
        self, wired: Wired, raw: socket.socket, transport: Accepted, trust: ssl.SSLContext | None
    ) -> None:
        self._wired = wired
        self.raw = raw
        self.transport = transport
        self._trust = trust
        self._sock: Any = raw
        #: All bytes that were read, and how the connection ended: ``closed``, ``reset``, or ``cut``
        #: (TLS without a ``close_notify``).
        self.heard = b""
        self.ended = ""

    @property
    def state(self) -> tuple[object, ...]:
        """Values that change while the gateway works on this connection."""
        loop, transport = self._wired.loop, self.transport
        timers = len(loop.getDelayedCalls())
        ended = len(self._wired.gateway.ended)
        return self.held, transport in loop.readers, transport in loop.writers, timers, ended

    @property
    def held(self) -> int:
        """Bytes that the gateway's transport keeps for this client."""
        transport = self.transport
        return len(transport.dataBuffer) - transport.offset + transport._tempDataLen

    @property
    def agreed(self) -> str | None:
        """The protocol that ALPN has selected."""
        agreed: str | None = self._sock.selected_alpn_protocol()
        return agreed

    @property
    def is_read(self) -> bool:
        return self.transport in self._wired.loop.readers

    @property
    def is_gone(self) -> bool:
        """Whether the gateway's end is closed."""
        return bool(self.transport.disconnected)

    def shake(self) -> None:
        """Do the TLS handshake."""
        if self._trust is None:
            return
        self._sock = self._trust.wrap_socket(
            self.raw,
            server_hostname="127.0.0.1",
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,  # a test must see an end without close_notify
        )
        self._trust = None
        self._wired.until(self._has_shaken, "a handshake")
        self._wired.loop.turn()

    def _has_shaken(self) -> bool:
        try:
            self._sock.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def send(self, data: bytes, wait: bool = True) -> int:
        """Send data and turn the loop; return how many bytes were sent.

        :param wait: False to stop when the gateway reads no more.
        """
        sent, since = 0, time.monotonic()
        while sent < len(data) and (wait or time.monotonic() - since < QUIET):
            try:
                sent += self._sock.send(data[sent : sent + 16384])
                since = time.monotonic()
            except (BlockingIOError, ssl.SSLWantWriteError):
                pass
            self._wired.loop.turn()
        self._wired.settle()
        return sent

    def request(self, method: str, path: str, body: bytes = b"", *headers: str) -> bytes:
        lines = [f"{method} {path} HTTP/1.1", "Host: gateway", *headers]
        if body:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode() + body

    def read(self, at_most: int = 1 << 30) -> bytes:
        """Read what has arrived, and what the gateway sends meanwhile."""
        since, before = time.monotonic(), len(self.heard)
        while time.monotonic() - since < QUIET and not self.ended:
            if len(self.heard) - before >= at_most:
                break
            self._wired.loop.turn()
            try:
                data = self._sock.recv(min(65536, at_most))
            except (BlockingIOError, ssl.SSLWantReadError):
                continue
            except ConnectionResetError:
                self.ended = "reset"
            except ssl.SSLEOFError:
                self.ended = "cut"
            else:
                since = time.monotonic()
                self.heard += data
                if not data:
                    self.ended = "closed"
        return self.heard[before:]

    def read_all(self) -> bytes:
        """Read until the connection ends."""
        self._wired.until(lambda: [self.read(), self.ended][1], "the connection's end")
        return self.heard

    def close(self) -> None:
        self._sock.close()
        self.raw.close()


def chat_body(stream: bool = False, size: int = 2, **more: object) -> bytes:
    """The body of a chat request with a message of this size; the echo's answer is as long."""
    messages = [{"role": "user", "content": "x" * size}]
    return json.dumps({"messages": messages, "stream": stream, **more}).encode()


def closed_by(wired: Wired, client: Client, seconds: float) -> None:
    """Check that the connection is closed after this time, and not before."""
    wired.wait(seconds - 0.2)
    wired.settle()
    assert not client.is_gone
    wired.wait(0.4)
    assert client.is_gone
