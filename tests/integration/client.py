"""A client of the gateway on a blocking socket: one connection, its requests and answers.

Requests that no HTTP client would send are in :mod:`.raw`.
"""

from __future__ import annotations

import itertools
import json
import re
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, Protocol, Self

import attrs


@attrs.define
class Answer:
    """The answer to one request, and when it came. Times are of :func:`time.monotonic`."""

    id: str
    asked: float
    status: int = 0
    headers: list[tuple[str, str]] = attrs.field(factory=list)
    body: bytearray = attrs.field(factory=bytearray, repr=lambda body: repr(bytes(body[-600:])))
    head_at: float = 0.0
    #: Time of the last byte, or of the end of the connection if that came later.
    last_at: float = 0.0
    #: Time of each empty line in an event stream.
    arrivals: list[float] = attrs.field(factory=list, repr=False)
    whole: bool = False  #: its length or its last chunk was received
    ended: str = ""  #: ``closed`` or ``reset``; empty while the connection is open
    surplus: bytes = b""  #: bytes after a whole answer
    _buffer: bytearray = attrs.field(factory=bytearray, repr=False)
    _left: int = 0  # bytes to come: of the length, or of this chunk and its line end
    _chunked: bool = False

    def header(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]

    @property
    def seconds(self) -> float:
        return self.last_at - self.asked

    def feed(self, data: bytes) -> None:
        self.last_at = time.monotonic()
        self._buffer += data
        if not self.status:
            head, found, rest = self._buffer.partition(b"\r\n\r\n")
            if not found:
                return
            self._begin(head.decode("latin-1"))
            self._buffer = rest
        while (
            self._buffer
            and not self.whole
            and (self._take_chunk if self._chunked else self._take)()
        ):
            pass
        if self.whole:
            self.surplus += bytes(self._buffer)
            self._buffer.clear()

    def _begin(self, head: str) -> None:
        self.head_at = self.last_at
        line, *headers = head.split("\r\n")
        self.status = int(line.split()[1])
        self.headers = [(k.lower(), v) for k, _, v in (h.partition(": ") for h in headers)]
        self._chunked = self.header("transfer-encoding") == ["chunked"]
        lengths = self.header("content-length")
        assert len(lengths) + self._chunked == 1, head
        self._left = int(*lengths) if lengths else 0
        self.whole = not self._chunked and not self._left

    def _take(self, behind: int = 0) -> bool:
        """Take bytes of the body; the last ``behind`` bytes of the rest do not belong to it."""
        data = bytes(self._buffer[: max(0, self._left - behind)])
        del self._buffer[: len(data)]
        self._left -= len(data)
        before, self.body = len(self.body), self.body
        self.body += data
        count = self.body.count(b"\n\n", max(0, before - 1))
        self.arrivals += [self.last_at] * count
        self.whole = not self._chunked and not self._left
        return bool(data)

    def _take_chunk(self) -> bool:
        if self._left > 2:
            return self._take(behind=2)
        if self._left:
            if len(self._buffer) < 2:
                return False
            assert self._buffer.startswith(b"\r\n"), "a chunk without its end"
            del self._buffer[:2]
            self._left = 0
            return True
        line, found, rest = self._buffer.partition(b"\r\n")
        size = int(line or b"0", 16)
        if not found or (not size and len(rest) < 2):
            return False
        if size:
            self._left = size + 2
        else:
            assert rest.startswith(b"\r\n"), "trailers"
            del rest[:2]
            self.whole = True
        self._buffer = rest
        return True

    def json(self) -> Any:
        return json.loads(self.body)

    def frames(self) -> list[bytes]:
        """The frames of an event stream. Each must be complete: a comment or one line of data."""
        *frames, rest = bytes(self.body).split(b"\n\n")
        assert rest == b""
        for frame in frames:
            assert frame == b": ping" or re.fullmatch(rb"data: [^\r\n]+", frame), frame
        return frames

    def payloads(self) -> list[bytes]:
        return [frame[6:] for frame in self.frames() if frame.startswith(b"data: ")]


class HasPort(Protocol):
    """A gateway, as far as a client needs to know it."""

    @property
    def port(self) -> int:
        """Its port on 127.0.0.1."""


class Client:
    """One connection to a gateway.

    :param port: of the gateway on 127.0.0.1.
    :param token: the bearer token of every request.
    :param tls: verifies the gateway's certificate; without it the connection is plain.
    :param receive_buffer: bytes that the kernel accepts before the test reads them.
    """

    def __init__(
        self,
        port: int,
        token: str = "",
        tls: ssl.SSLContext | None = None,
        *,
        receive_buffer: int = 0,
    ) -> None:
        self.sock = socket.socket()
        self.sock.settimeout(TIMEOUT)
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            self.sock.connect(("127.0.0.1", port))
        except OSError:
            self.sock.close()
            raise
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            self.sock = tls.wrap_socket(self.sock, server_hostname="127.0.0.1")
        self._host = f"127.0.0.1:{port}"
        self._token = token

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(
        self, method: str, path: str, body: bytes = b"", *, behind: bytes = b"", **headers: str
    ) -> None:
        """Send a request.

        :param behind: bytes to send in the same segments after the request.
        :param headers: with ``_`` for each ``-``.
        """
        head = [f"{method} {path} HTTP/1.1", f"Host: {self._host}"]
        if self._token:
            head.append(f"Authorization: Bearer {self._token}")
        if body:
            head.append(f"Content-Length: {len(body)}")
        head += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.sock.sendall("\r\n".join([*head, "", ""]).encode() + body + behind)

    def send_chat(
        self,
        fault: str = "",
        stream: bool = False,
        *,
        id: str = "",
        model: str | None = "m",
        behind: bytes = b"",
        **members: Any,
    ) -> str:
        """Send a chat request and return its id.

        :param fault: of the backend; empty for a good reply.
        :param model: without one, the gateway tries the backends in the order of the settings.
        :param members: more members of the body.
        """
        id = id or f"test-{next(_numbers)}"
        message = {"role": "user", "content": f"fault:{fault}" if fault else "hello"}
        body = {"model": model, "messages": [message], "stream": stream, **members}
        self.send(
            "POST", "/v1/chat/completions", json.dumps(body).encode(), behind=behind,
            X_Request_ID=id, Content_Type="application/json",
        )  # fmt: skip
        return id

    def chat(self, fault: str = "", stream: bool = False, **more: Any) -> Answer:
        """Send a chat request and read the answer to its end."""
        began = time.monotonic()
        return self.answer(self.send_chat(fault, stream, **more), began)

    def get(self, path: str) -> Answer:
        self.send("GET", path)
        return self.answer("")

    def answer(self, id: str, asked: float = 0.0) -> Answer:
        """Read an answer to its end, or to the end of the connection."""
        answer = Answer(id, asked or time.monotonic())
        while not answer.whole:
            self.more(answer)
            if answer.ended:
                break
        return answer

    def more(self, answer: Answer) -> None:
        """Read at least one byte or the end of the connection, and feed it to the answer."""
        try:
            data = self.sock.recv(1 << 18)
        except ConnectionResetError:
            answer.ended = "reset"
        else:
            if data:
                answer.feed(data)
            else:
                answer.ended = "closed"
        answer.last_at = time.monotonic()

    def finish(self) -> None:
        """Send a FIN, and go on reading."""
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with an RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


#: Seconds after which a blocking call of a client fails.
TIMEOUT = 20
_numbers = itertools.count(1)


def get(gateway: HasPort, path: str, token: str = "") -> Answer:
    """GET a path on a new connection."""
    with Client(gateway.port, token) as client:
        return client.get(path)


def ask(
    gateway: HasPort,
    fault: str = "",
    stream: bool = False,
    *,
    token: str = "",
    tls: ssl.SSLContext | None = None,
    **more: Any,
) -> Answer:
    """Send a chat request on a new connection, and read the answer to its end.

    :param more: as for :meth:`Client.send_chat`.
    """
    with Client(gateway.port, token, tls) as client:
        return client.chat(fault, stream, **more)


class Crowd:
    """Chats that run at the same time, each in a thread."""

    def __init__(self, gateway: HasPort, pool: ThreadPoolExecutor) -> None:
        self._gateway = gateway
        self._pool = pool
        self.ids: list[str] = []
        self._answers: list[Future[Answer]] = []

    def begin(self, count: int, name: str, fault: str, stream: bool, **more: Any) -> None:
        for number in range(count):
            id = f"{name}-{number}"
            self.ids.append(id)
            self._answers.append(
                self._pool.submit(ask, self._gateway, fault, stream, id=id, **more)
            )

    def answers(self) -> list[Answer]:
        """All answers, after the last request has ended."""
        return [answer.result(60) for answer in self._answers]


@contextmanager
def crowd(gateway: HasPort, size: int = 64) -> Iterator[Crowd]:
    with ThreadPoolExecutor(size) as pool:
        yield Crowd(gateway, pool)
