"""WebSockets as bytes: handshakes and frames, and a gateway with a backend that accepts them."""

from __future__ import annotations

from typing import Any, NamedTuple

from twisted.internet.testing import MemoryReactorClock

from gatewayd.backend.openai import OpenAIBackend
from gatewayd.http1.handshake import accept_of
from gatewayd.settings.model import BackendSettings
from gatewayd.settings.values import base_url
from tests.backendside import GatewayWorld, ServerTransport
from tests.memory import ClientTransport, FakeBackend, Gateway, settings

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
#: From RFC 6455, section 1.3, as the key is.
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10

HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": KEY.decode(),
}

_MASK = b"\x12\x34\x56\x78"


class Frame(NamedTuple):
    opcode: int
    payload: bytes
    fin: bool = True
    masked: bool = False

    @property
    def code(self) -> int:
        """The status code of a Close frame."""
        return int.from_bytes(self.payload[:2], "big")


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, masked: bool = False) -> bytes:
    size = len(payload)
    bit = 0x80 if masked else 0
    if size < 126:
        length = bytes((bit | size,))
    elif size < 1 << 16:
        length = bytes((bit | 126,)) + size.to_bytes(2, "big")
    else:
        length = bytes((bit | 127,)) + size.to_bytes(8, "big")
    head = bytes((opcode | (0x80 if fin else 0),)) + length
    if not masked:
        return head + payload
    return head + _MASK + _unmasked(payload, _MASK)


def close(code: int | None = 1000, reason: bytes = b"", *, masked: bool = False) -> bytes:
    payload = b"" if code is None else code.to_bytes(2, "big") + reason
    return frame(CLOSE, payload, masked=masked)


def frames_in(data: bytes) -> list[Frame]:
    """The frames of some bytes, which must hold nothing else."""
    found = []
    while data:
        opcode, fin = data[0] & 0x0F, bool(data[0] & 0x80)
        masked, size = bool(data[1] & 0x80), data[1] & 0x7F
        at = 2
        if size > 125:
            at = 4 if size == 126 else 10
            size = int.from_bytes(data[2:at], "big")
        mask = data[at : at + 4] if masked else bytes(4)
        at += 4 if masked else 0
        payload = data[at : at + size]
        assert len(payload) == size, "a frame is incomplete"
        found.append(Frame(opcode, _unmasked(payload, mask), fin, masked))
        data = data[at + size :]
    return found


def _unmasked(payload: bytes, mask: bytes) -> bytes:
    return bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))


def accepting(key: bytes = KEY, extra: bytes = b"") -> bytes:
    """The reply of a backend that accepts."""
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: upgrade\r\n"
        b"Sec-WebSocket-Accept: %b\r\n%b\r\n" % (accept_of(key), extra)
    )


class Peer:
    """One end of a tunnel: what it has received, and what it sends."""

    def __init__(self, transport: Any, masked: bool) -> None:
        self.transport = transport
        self._masked = masked
        self._head = transport.value().partition(b"\r\n\r\n")[0] + b"\r\n\r\n"

    @property
    def raw(self) -> bytes:
        """The bytes received after the handshake."""
        return bytes(self.transport.value()[len(self._head) :])

    @property
    def frames(self) -> list[Frame]:
        return frames_in(self.raw)

    def sends(self, opcode: int, payload: bytes = b"", *, fin: bool = True) -> None:
        self.send_raw(frame(opcode, payload, fin=fin, masked=self._masked))

    def closes(self, code: int | None = 1000) -> None:
        self.send_raw(close(code, masked=self._masked))

    def send_raw(self, data: bytes) -> None:
        self.transport.protocol.dataReceived(data)


class TunnelWorld(GatewayWorld):
    """A gateway and a backend on connections in memory, with one clock.

    :param own: settings of the backend.
    :param values: settings of the gateway, as for :func:`tests.memory.settings`.
    """

    def __init__(self, *others: FakeBackend, own: Any = None, **values: str) -> None:
        self.reactor = MemoryReactorClock()
        made = settings(**values)
        server = BackendSettings("a", base_url("http://127.0.0.1:9"), **own or {})
        backend = OpenAIBackend(server, made.limits, self.reactor)
        self.gateway = Gateway(backend, *others, settings=made, clock=self.reactor)
        self.target = self.gateway.targets[0]

    def upgrade(self, path: str = "/v1/realtime", **headers: str) -> ClientTransport:
        """Send a request for a WebSocket; an underscore in the name of a header is a hyphen."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        fields = {**HANDSHAKE, "X-Request-ID": "ws-1", **named}
        return self.gateway.request("GET", path, headers=fields)

    def open(self, path: str = "/v1/realtime", **headers: str) -> tuple[Peer, Peer]:
        """Open a tunnel; return its client and its backend."""
        client = self.upgrade(path, **headers)
        server = self.accept()
        server.protocol.dataReceived(accepting())
        return Peer(client, masked=True), Peer(server, masked=False)

    def asked(self, server: ServerTransport) -> dict[str, str]:
        """The headers of the request that the backend received; "" is the request line."""
        line, *lines = server.value().decode().removesuffix("\r\n\r\n").split("\r\n")
        return {"": line, **dict(each.lower().split(": ", 1) for each in lines)}
