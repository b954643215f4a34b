"""The mock backend behind each peer: ``python -m benchmarks.mock [PORT]``.

The prompt says what to reply (``bench mode=events rate=50 events=500``), because every gateway
passes a prompt on unchanged:

``mode=json``
    A completion, immediately.
``mode=events``
    A stream of ``events`` chunks, ``rate`` a second, then ``[DONE]``. The content of each is ``@``
    and the time it was sent, in nanoseconds of the machine's monotonic clock.
``mode=flood``
    A stream without end, ``batch`` chunks in each write, as fast as the peer reads.
``mode=hold``
    No reply.

``id=N`` names a request. ``GET /left`` returns when the gateway closed the connection of each named
request, and forgets these times; ``GET /running`` returns the named requests whose connection is
open. ``GET /reset`` closes all streams: some gateways go on reading after their client has
disconnected, and that must not count in the next measurement.
"""

from __future__ import annotations

import gc
import json
import re
import socket
import sys
from collections.abc import Callable
from time import monotonic, monotonic_ns

from benchmarks import proc
from benchmarks.loop import IN, OUT, Loop

COMPLETION = json.dumps(
    {
        "id": "chatcmpl-0123456789abcdef",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "The quick brown fox jumps. " * 4},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 21, "completion_tokens": 28, "total_tokens": 49},
    },
    separators=(",", ":"),
).encode()
MODELS = b'{"object":"list","data":[{"id":"m","object":"model","created":1,"owned_by":"bench"}]}'
EVENT_HEAD = (
    b'data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk",'
    b'"created":1700000000,"model":"m","choices":[{"index":0,"delta":{"content":"@'
)
EVENT_TAIL = b'"},"logprobs":null,"finish_reason":null}]}\n\n'
LAST = (
    b'data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk",'
    b'"created":1700000000,"model":"m","choices":[{"index":0,"delta":{},"logprobs":null,'
    b'"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
)
STAMP = b"%019d"
_SIZE = len(EVENT_HEAD) + 19 + len(EVENT_TAIL)
CHUNK = b"%x\r\n%s%s%s\r\n" % (_SIZE, EVENT_HEAD.replace(b"%", b"%%"), STAMP, EVENT_TAIL)
CHUNK_LAST = b"%x\r\n%s\r\n0\r\n\r\n" % (len(LAST), LAST)
STREAM = (
    b"HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\nServer: mock\r\n"
    b"Content-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


def whole(body: bytes) -> bytes:
    return (
        b"HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\nServer: mock\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    )


REPLY = whole(COMPLETION)
MAX_PENDING = 1 << 20  #: bytes kept for a peer that does not read; beyond it events are dropped

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_WORDS = re.compile(rb"(\w+)=(\w+)")


class Mock:
    """The listening socket, and what the connections share."""

    def __init__(self, port: int = 0) -> None:
        self.loop = Loop()
        self.left: dict[str, float] = {}
        self.streams: set[Connection] = set()
        self._listening = socket.create_server(("127.0.0.1", port), backlog=4096)
        self._listening.setblocking(False)
        self.port: int = self._listening.getsockname()[1]
        self.loop.add(self._listening, self._accept)

    def _accept(self, _: int) -> None:
        for _ in range(64):
            try:
                sock = self._listening.accept()[0]
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(self, sock)
            self.loop.add(sock, connection.ready)


class Connection:
    __slots__ = (
        "_blob",
        "_closed",
        "_interval",
        "_left",
        "_mock",
        "_next",
        "_pending",
        "_received",
        "_send",
        "_sock",
        "id",
    )

    def __init__(self, mock: Mock, sock: socket.socket) -> None:
        self._mock, self._sock = mock, sock
        self._send: Callable[[bytes], int] = sock.send
        self._received = b""
        self._pending = b""  # written, but not taken yet
        self._blob = b""  # of a flood
        self.id = ""
        self._left = 0  # events still to be sent
        self._interval = self._next = 0.0
        self._closed = False

    def ready(self, mask: int) -> None:
        if mask & OUT:
            self._flush()
        if mask & ~OUT and not self._closed:
            try:
                data = self._sock.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if data:
                self._received += data
                self._read()
            else:
                self._close()

    def _close(self) -> None:
        if self.id:
            self._mock.left[self.id] = monotonic()
        self._closed = True
        self._mock.streams.discard(self)
        self._mock.loop.close(self._sock)

    def break_off(self) -> None:
        self.id = ""
        self._close()

    # -- requests ------------------------------------------------------------------------------

    def _read(self) -> None:
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        found = _LENGTH.search(head)
        if found is not None:
            if len(rest) < int(found[1]):
                return
        elif b"chunked" in head.lower() and not rest.endswith(b"0\r\n\r\n"):
            return
        self._received = b""
        if rest:
            self._answer(rest)
        elif head.startswith(b"GET /left"):
            self._write(whole(json.dumps(self._mock.left).encode()))
            self._mock.left.clear()
        elif head.startswith(b"GET /running"):
            running = [stream.id for stream in self._mock.streams if stream.id]
            self._write(whole(json.dumps(dict.fromkeys(running, 0.0)).encode()))
        elif head.startswith(b"GET /reset"):
            for stream in list(self._mock.streams):
                stream.break_off()
            self._write(whole(b"{}"))
        else:
            self._write(whole(MODELS))

    def _answer(self, body: bytes) -> None:
        if b"mode=json" in body:
            self._write(REPLY)
            return
        self._mock.streams.add(self)
        words = dict(_WORDS.findall(body[body.find(b"bench mode=") :]))
        self.id = words.get(b"id", b"").decode()
        mode = words.get(b"mode")
        if mode == b"events":
            self._interval = 1 / float(words[b"rate"])
            self._left = int(words.get(b"events", b"1000000000"))
            self._next = monotonic()
            self._write(STREAM)
            self._tick()
        elif mode == b"flood":
            stamped = CHUNK % monotonic_ns()
            event = stamped.partition(b"\r\n")[2][:-2] * int(words.get(b"batch", b"1"))
            self._blob = b"%x\r\n%s\r\n" % (len(event), event)
            self._write(STREAM)
            self._mock.loop.change(self._sock, IN | OUT)

    def _tick(self) -> None:
        if self._closed:
            return
        if self._left == 0:
            self._write(CHUNK_LAST)
            self.id = ""
            self._mock.streams.discard(self)
            return
        self._left -= 1
        if len(self._pending) < MAX_PENDING:
            self._write(CHUNK % monotonic_ns())
        self._next += self._interval
        self._mock.loop.at(self._next, self._tick)

    # -- writing -------------------------------------------------------------------------------

    def _write(self, data: bytes) -> None:
        if self._pending:
            self._pending += data
            return
        try:
            sent = self._send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # the loop will tell
        if sent < len(data):
            self._pending = data[sent:]
            self._mock.loop.change(self._sock, IN | OUT)

    def _flush(self) -> None:
        data = self._pending or self._blob
        try:
            self._pending = data[self._send(data) :]
        except BlockingIOError:
            self._pending = data
        except OSError:
            return
        if not self._pending and not self._blob:
            self._mock.loop.change(self._sock, IN)


def main() -> None:
    proc.raise_file_limit()
    mock = Mock(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    print(mock.port, flush=True)
    gc.disable()
    mock.loop.run(float("inf"))


if __name__ == "__main__":
    main()
