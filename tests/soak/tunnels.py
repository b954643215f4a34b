"""Random WebSockets through the whole gateway, and what must be true of each.

Each end of a tunnel is a :class:`Talker`: it sends random frames in random pieces, reads slowly or
fast, and ends in one of several ways. The world around them, with sockets in memory under Twisted's
own TCP and TLS code, is that of the other exchanges.
"""

from __future__ import annotations

import random
from typing import Any

from gatewayd.http1.frames import FrameTracker
from gatewayd.http1.handshake import accept_of
from tests.websocket import (
    BINARY,
    CLOSE,
    HANDSHAKE,
    KEY,
    PING,
    PONG,
    TEXT,
    close,
    frame,
    frames_in,
)

from .network import Connector, Plain, Secure
from .world import TOKEN, World

#: The most bytes that may wait for one side in the gateway: what makes its transport full, and a
#: segment behind it, in TLS records.
MOST_BUFFERED = 3 * 65536

#: Ways to end after the last frame: send a Close frame and wait for the other; wait for the other's
#: Close frame; reset; end without a Close frame; stop within a frame.
ENDS = ("close", "close", "wait", "reset", "fin", "cut")


class Talker:
    """One end of a tunnel.

    :param opens: the head that it sends first; None for a backend, which replies to one.
    """

    def __init__(
        self, end: Plain, choose: random.Random, id: str = "", opens: bytes | None = None
    ) -> None:
        self.id = id
        self.end = end
        self.received = self.sent = b""
        self.head = b""
        self.is_client = opens is not None
        self.how = choose.choice(ENDS)
        self.refuses = not self.is_client and choose.random() < 0.1
        self.open = self.left = self.closed = self.done = False
        self.wake: float | None = None
        self._choose = choose
        self._answers = choose.random() < 0.9  # a Close frame
        self._rate = choose.choice([1 << 20, 1 << 20, 3000, 500])
        self._pause = choose.choice([0.0, 0.0, 0.01, 0.2])
        self._queue = self._frames()
        self._frames_in = FrameTracker(1 << 30)
        if opens is not None:
            end.write(opens)

    def _frames(self) -> list[bytes]:
        """What it will send, in pieces."""
        pick, data = self._choose.choice, b""
        for _ in range(pick([0, 1, 5, 40])):
            opcode = pick([TEXT, BINARY, BINARY, PING, PONG])
            size = pick([0, 1, 125] if opcode in (PING, PONG) else [0, 1, 126, 3000])
            if self._choose.random() < 0.01:
                opcode, size = BINARY, 100_000  # larger than the limits
            data += frame(opcode, bytes(size), masked=self.is_client)
        if self.how == "cut":
            data += frame(BINARY, bytes(1000), masked=self.is_client)[: pick([1, 3, 500])]
        pieces = []
        while data:
            size = pick([1, 7, 1000, 100_000])
            pieces.append(data[:size])
            data = data[size:]
        return pieces[::-1]

    # -- what the world calls ------------------------------------------------------------------

    def act(self, now: float) -> bool:
        if self.done or (self.wake is not None and now < self.wake):
            return False
        data, self.wake = self.end.pump(self._rate), None
        if data:
            self._receive(data)
        moved = self.end.moved or bool(data)
        if self.end.ended or self.end.broken:
            self._end()
            return True
        if self.open and not self.left and self.end.unsent < 65536:
            moved = self._say() or moved
        if self._pause:
            self.wake = now + self._pause
        return moved

    def _receive(self, data: bytes) -> None:
        if self.head.endswith(b"\r\n\r\n"):
            self._take(data)
        else:
            head, separator, rest = (self.head + data).partition(b"\r\n\r\n")
            self.head = head + separator
            if not separator:
                return
            self._take(rest)
            self._begin()
        if self.close_in and not self.closed and self._answers and not self._queue:
            self._send_close()

    def _take(self, data: bytes) -> None:
        self.received += data
        self._frames_in.feed(data)

    def _begin(self) -> None:
        if self.is_client:
            self.open = self.head.startswith(b"HTTP/1.1 101 ")
        elif self.refuses:
            self.end.write(b"HTTP/1.1 404 No\r\nContent-Length: 2\r\n\r\n{}")
        else:
            self.open = True
            self.end.write(
                b"HTTP/1.1 101 Yes\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: %b\r\n\r\n" % accept_of(KEY)
            )

    @property
    def close_in(self) -> bool:
        """Whether the other side's Close frame has come."""
        return self._frames_in.closed

    def _say(self) -> bool:
        """Send the next piece, or end. Return whether anything was done."""
        if self._queue:
            piece = self._queue.pop()
            self.sent += piece
            self.end.write(piece)
        elif self.closed:
            return False
        elif self.how == "close" or (self.how == "wait" and self.close_in and self._answers):
            self._send_close()
        elif self.how == "reset":
            self.left = True
            self.end.reset()
            self._end()
        elif self.how == "fin" and not self.end.unsent:
            self.left = True
            self.end.finish()
        else:
            return False
        return True

    def _send_close(self) -> None:
        self.closed = True
        data = close(1000, masked=self.is_client)
        self.sent += data
        self.end.write(data)

    def _end(self) -> None:
        self.done = True
        if not self.end.socket.closed:
            self.end.socket.close()


class TunnelWorld(World):
    """A gateway, its backends, and clients that open WebSockets."""

    clients: list[Talker]  # type: ignore[assignment]  # other ends than those of the base class
    backends: list[Talker]  # type: ignore[assignment]

    def _connected(self, port: int, connector: Connector) -> None:
        socket = connector.succeed(self._capacity)
        if socket is not None:
            context = self._certificates.server
            end = Secure(socket, context, True) if self._ports[port] else Plain(socket)
            self.backends.append(Talker(end, self.random))

    def add_client(self, number: int) -> None:
        id = f"t{self.seed}-{number}"
        fields = {**HANDSHAKE, "Host": "g", "X-Request-ID": id}
        if self.tokens:
            fields["Authorization"] = f"Bearer {TOKEN}"
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        head = f"GET /v1/realtime HTTP/1.1\r\n{lines}\r\n".encode()
        socket = self._network.accept("127.0.0.1", self._capacity)
        context = self._certificates.client
        end = Secure(socket, context, False) if self.secure else Plain(socket)
        self.clients.append(Talker(end, self.random, id, head))


def judge(world: TunnelWorld) -> list[str]:
    """What is wrong with a run that has ended."""
    found = list(world.problems)
    lines: dict[str, list[dict[str, Any]]] = {}
    for line in world.log_lines():
        lines.setdefault(line["id"], []).append(line)
    for client in world.clients:
        id, named = client.id, f"{client.id}\r\n".encode()
        of_client = lines.get(id, [])
        if len(of_client) != 1:
            if of_client or b" 503 " not in client.head[:13]:  # above the limit of connections
                found.append(f"{id}: {len(of_client)} lines")
            continue
        backend = next((b for b in world.backends if b.open and named in b.head), None)
        found += [f"{id}: {problem}" for problem in _judge(client, backend, of_client[0])]
    found += [f"still there: {each}" for each in world.pending]
    if world.most_buffered > MOST_BUFFERED:
        found.append(f"{world.most_buffered} bytes were buffered")
    return found


def _judge(client: Talker, backend: Talker | None, line: dict[str, Any]) -> list[str]:
    found, end = [], line["end"]
    if backend is None or not client.open:
        if client.open:
            found.append("a 101 without a backend")
        if end == "complete" or (end == "backend_truncated" and client.head.endswith(b"\r\n\r\n")):
            found.append(f"{end} without a tunnel")
        return found
    for receiver, sender in ((client, backend), (backend, client)):
        problem = _wrong_bytes(receiver, sender)
        if problem:
            found.append(f"{'client' if receiver.is_client else 'backend'}: {problem}")
    if end == "complete" and not (backend.closed and (client.close_in or client.left)):
        found.append("complete without the backend's Close frame")
    if end == "client_gone" and not (client.left or client.end.socket.closed):
        found.append("the client had not left")
    if end == "backend_truncated" and not backend.left:
        found.append("the backend had not broken off")
    if not (client.left or client.end.broken or client.close_in):
        found.append(f"the client was told nothing of {end}")
    return found


def _wrong_bytes(receiver: Talker, sender: Talker) -> str:
    """Why the bytes received are not those sent, with at most a Close frame of the gateway."""
    received, sent = receiver.received, sender.sent
    count = min(len(received), len(sent))
    same = next((n for n in range(count) if received[n] != sent[n]), count)
    if same == len(received):
        return ""
    if received[same : same + 1] == b"\x88" and (receiver.left or receiver.end.broken):
        return ""  # it left within the gateway's Close frame
    for start in (same, same - 1):  # the first byte of two Close frames is the same
        try:
            frames_in(received[:start])
            (own,) = frames_in(received[start:])
        except (AssertionError, IndexError, ValueError):
            continue
        if own.opcode == CLOSE and own.code in (1001, 1009, 1011):
            return ""
    return f"after {same} bytes come others than were sent"


def play(world: TunnelWorld) -> list[str]:
    """Run a world to its end and judge it."""
    world.run(connections=world.random.choice([1, 3, 10]))
    return judge(world)
