"""A backend that fails on purpose: an OpenAI-style server on real sockets, with one named fault per
request and a record of everything it received and sent.

The prompt of a request names its fault: ``fault:reset-mid-body:2``; faultbackend_faults.py lists
them all. Faults of the whole server (TLS, accepting, keep-alive) are arguments of
:class:`FaultBackend`, and :func:`blackhole` is a port that answers no SYN. By hand::

    python tests/faultbackend.py --port 9001

One thread with one asyncio loop serves all connections. It parses strictly: broken requests and
headers that must not be forwarded are in :attr:`Record.violations`. It never stops reading, so that
:attr:`Record.peer_left` is the time at which the peer disconnected. TLS runs over memory buffers,
so that the handshake and the close_notify can be withheld.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import json
import re
import socket
import ssl
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

if not __package__:  # started by hand
    sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.faultbackend_faults import CREATED, FAULTS, SLICE, Reply, apply, envelope
from tests.faultbackend_messages import MessageReply

T = TypeVar("T")

HEALTH = {
    "ok": (200, b'{"status":"ok"}'),
    "empty": (200, b""),
    "dead": (503, b""),
    "loading": (
        503,
        b'{"error":{"message":"Loading model","type":"unavailable_error","code":503}}',
    ),
}


# What tests read.


@dataclass
class Record:
    """One request, and the reply to it. Times are those of :func:`time.monotonic`.

    It exists from the end of the request's head; ``complete`` is set with the end of its body.
    """

    connection: int
    at: float
    method: str = ""
    path: str = ""
    head: bytes = field(default=b"", repr=False)
    headers: list[tuple[str, str]] = field(default_factory=list, repr=False)
    body: bytes = field(default=b"", repr=False)
    complete: bool = False
    request_id: str | None = None
    fault: str = ""
    stream: bool = False
    sim_id: str = ""  #: the ``id`` of the completion or of the chunks sent
    #: payloads sent as events, without [DONE]
    want: list[bytes] = field(default_factory=list, repr=False)
    #: the JSON body of the plan, even if it was not sent whole
    want_json: bytes | None = field(default=None, repr=False)
    sent: int = 0  #: events that were written whole, without [DONE]
    sent_bytes: int = 0  #: bytes of the reply, head and framing included
    #: one for each of ``sent``
    sent_times: list[float] = field(default_factory=list, repr=False)
    violations: list[str] = field(default_factory=list)
    killed: bool = False  #: the connection was ended at this request without a byte
    done: bool = False  #: the reply was sent whole
    peer_left: float | None = None  #: when the peer closed or reset before the reply was whole

    @property
    def body_sha256(self) -> str:
        return hashlib.sha256(self.body).hexdigest()

    def header(self, name: str) -> list[str]:
        """All values of one header, in order."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def want_as(self, identity: str) -> list[bytes]:
        """``want`` with `identity` as the top-level ``id`` of each payload."""
        return [self._renamed(payload, identity) for payload in self.want]

    def want_json_as(self, identity: str) -> bytes:
        return self._renamed(self.want_json or b"", identity)

    def _renamed(self, payload: bytes, identity: str) -> bytes:
        return payload.replace(b'"%b"' % self.sim_id.encode(), json.dumps(identity).encode(), 1)


@dataclass
class ConnectionRecord:
    """One accepted connection. `bytes_in` counts what came over TCP, a TLS handshake too."""

    number: int
    opened: float
    bytes_in: int = 0
    requests: int = 0
    secure: bool = False  #: the TLS handshake was completed
    closed: float | None = None
    peer_left: float | None = None  #: when the peer closed or reset it, if the peer was the first


# HTTP/1.1, the server's side, strict.


class Broken(Exception):
    """The peer sent something that is not HTTP/1.1."""


class Gone(Exception):
    """The connection is closed."""


HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*")
REQUEST = re.compile(rb"([A-Z]+) (/[!-~]*) HTTP/1\.1")
FORBIDDEN = {"te", "trailer", "upgrade", "keep-alive", "expect", "cookie", "forwarded"}
FORBIDDEN |= {"content-md5", "x-conversation-id"}


def parse_head(head: bytes) -> tuple[str, str, list[tuple[str, str]]]:
    """Method, target and headers of a head that ends with its empty line."""
    start, *lines = head[:-4].split(b"\r\n")
    line = REQUEST.fullmatch(start)
    if not line:
        raise Broken(f"request line {start[:80]!r}")
    headers = []
    for text in lines:
        header = HEADER.fullmatch(text)
        if not header:
            raise Broken(f"header {text[:80]!r}")
        headers.append((header[1].decode(), header[2].decode("latin-1")))
    return line[1].decode(), line[2].decode(), headers


def take_body(record: Record, buffer: bytearray) -> bytes | None:
    """Take the request's body from the buffer; None while it is not whole."""
    lengths, codings = record.header("Content-Length"), record.header("Transfer-Encoding")
    if len(lengths) + len(codings) > 1:
        raise Broken(f"Content-Length {lengths} and Transfer-Encoding {codings}")
    if codings:
        if codings != ["chunked"]:
            raise Broken(f"Transfer-Encoding {codings}")
        return take_chunks(record, buffer)
    if not re.fullmatch(r"\d{1,15}", "".join(lengths) or "0", re.ASCII):
        raise Broken(f"Content-Length {lengths}")
    length = int("".join(lengths) or "0")
    if len(buffer) < length:
        return None
    body = bytes(buffer[:length])
    del buffer[:length]
    return body


def take_chunks(record: Record, buffer: bytearray) -> bytes | None:
    body, at = bytearray(), 0
    while (end := buffer.find(b"\r\n", at)) >= 0:
        line = bytes(buffer[at:end])
        if not re.fullmatch(rb"[0-9A-Fa-f]{1,15}", line):
            raise Broken(f"chunk size {line[:80]!r}")
        length, at = int(line, 16), end + 2
        if length == 0:
            if len(buffer) < at + 2:
                return None
            if buffer[at : at + 2] != b"\r\n":
                raise Broken("trailers")
            del buffer[: at + 2]
            return bytes(body)
        if len(buffer) < at + length + 2:
            return None
        body += buffer[at : at + length]
        at += length + 2
        if buffer[at - 2 : at] != b"\r\n":
            raise Broken("chunk without its line end")
    return None


def violations(record: Record, backend: FaultBackend) -> list[str]:
    """What is wrong with a request: a sentence for each."""
    found = []
    for name, value in record.headers:
        lower = name.lower()
        if lower in FORBIDDEN or lower.startswith(("x-forwarded-", "proxy-")):
            found.append(f"{name} was forwarded")
        if lower == "connection" and value.lower() not in ("close", "keep-alive"):
            found.append(f"Connection: {value}")
        if lower == "accept-encoding" and value.lower() not in ("", "identity"):
            found.append(f"Accept-Encoding: {value}")
    hosts = record.header("Host")
    if len(hosts) != 1 or hosts[0] not in backend.authorities:
        found.append(f"Host is {hosts}")
    if len(record.header(backend.request_id_header)) > 1:
        found.append(f"several {backend.request_id_header}")
    if backend.api_key is not None:
        expected = [f"Bearer {backend.api_key}"] if backend.api_key else []
        if record.header("Authorization") != expected:
            found.append("Authorization is not the backend's own key")
    return found


def prompt_of(request: dict[str, Any]) -> str:
    """The text of the last user message."""
    messages = request.get("messages")
    for message in reversed(messages if isinstance(messages, list) else []):
        if isinstance(message, dict) and message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, list):
                texts = [part.get("text") for part in content if isinstance(part, dict)]
                return "\n".join(text for text in texts if isinstance(text, str))
            return content if isinstance(content, str) else ""
    return ""


def plan(reply: Reply) -> None:
    """Decide the reply: by path, and for a chat by the fault its prompt names."""
    record, backend = reply.record, reply.conn.backend
    path = record.path.partition("?")[0]
    if path == "/__sim/redirected":
        backend.redirect_hits += 1
    elif record.method in ("GET", "HEAD") and path == "/health":
        if backend.health == "hang":
            apply(reply, "hang")
        else:
            reply.answer(*HEALTH[backend.health])
    elif record.method in ("GET", "HEAD") and path == "/v1/models":
        models = [
            {"id": name, "object": "model", "created": CREATED, "owned_by": "sim"}
            for name in backend.models
        ]
        reply.answer(200, json.dumps({"object": "list", "data": models}).encode())
    elif record.method == "POST" and path in ("/v1/chat/completions", *MESSAGES):
        chat(reply)
    else:
        reply.answer(404, envelope(f"No such path: {path}", "invalid_request_error", "not_found"))


def chat(reply: Reply) -> None:
    record = reply.record
    try:
        request = json.loads(record.body)
    except ValueError:
        request = None
    if not isinstance(request, dict):
        record.violations.append("the body is no JSON object")
        return reply.answer(400, envelope("Not a JSON object.", "invalid_request_error"))
    reply.request, reply.prompt = request, prompt_of(request)
    reply.stream = record.stream = request.get("stream") is True
    if named := re.search(r"^fault:(.+)$", reply.prompt, re.MULTILINE):
        record.fault = named[1].strip()
        try:
            apply(reply, record.fault)
        except (KeyError, TypeError, ValueError, AttributeError) as problem:
            record.violations.append(f"no such fault: {record.fault} ({problem!r})")
            reply.answer(400, envelope("No such fault.", "invalid_request_error", "no_fault"))


class Tls:
    """The server's side of TLS over memory buffers."""

    def __init__(self, context: ssl.SSLContext, send: Callable[[bytes], None]) -> None:
        self.incoming, self.outgoing, self.send = ssl.MemoryBIO(), ssl.MemoryBIO(), send
        self.object = context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        self.ready = False

    def receive(self, data: bytes) -> tuple[bytes, bool]:
        """Decrypt; return the data, and whether the peer sent its close_notify."""
        self.incoming.write(data)
        plain = bytearray()
        try:
            if not self.ready:
                self.object.do_handshake()
                self.ready = True
            while part := self.object.read(SLICE):
                plain += part
        except ssl.SSLWantReadError:
            return bytes(plain), False
        except ssl.SSLError:
            return bytes(plain), True
        finally:
            self.send(self.outgoing.read())
        return bytes(plain), True

    def encrypt(self, data: bytes) -> bytes:
        self.object.write(data)
        return self.outgoing.read()

    def close_notify(self) -> bytes:
        with suppress(ssl.SSLError):
            self.object.unwrap()
        return self.outgoing.read()


class Connection(asyncio.Protocol):
    """One connection: takes requests one after the other and runs the plan of each."""

    transport: asyncio.Transport

    def __init__(self, backend: FaultBackend) -> None:
        self.backend = backend
        self.buffer = bytearray()
        self.record: Record | None = None
        self.task: asyncio.Task[None] | None = None
        self.tls: Tls | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.can_write = asyncio.Event()
        self.can_write.set()
        self.writes = 0
        self.kill_next = ""
        self.announced = False
        self.ended = False

    # Called by asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=0)
        self.socket: socket.socket = transport.get_extra_info("socket")
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.info = self.backend.opened(self)
        self.mode = self.backend.on_accept
        if self.backend.context and self.mode in ("serve", "mute"):
            self.tls = Tls(self.backend.context, self.send_raw)
        if self.mode in ("reset", "close"):
            self.end(self.mode)
        elif self.mode == "ssh-banner":
            self.send_raw(b"SSH-2.0-OpenSSH_9.6\r\n")
        elif self.mode == "garbage":
            self.send_raw(bytes(range(256)))
        elif self.mode == "early":
            self.transport.pause_reading()
            self.send_raw(EARLY_ANSWER)
        self.idle()

    def data_received(self, data: bytes) -> None:
        self.info.bytes_in += len(data)
        if self.mode in ACCEPT_ANSWERS:
            self.send_raw(ACCEPT_ANSWERS[self.mode])
            self.end("close")
        left = False
        if self.tls:
            data, left = self.tls.receive(data)
            self.info.secure = self.tls.ready
        if self.mode == "serve" and not self.ended:
            self.buffer += data
            if self.task is None:
                self.advance()
            elif data and self.record and EARLY not in self.record.violations:
                self.record.violations.append(EARLY)
        if left and self.tls and self.backend.answer_close_notify:
            self.send_raw(self.tls.close_notify())
            self.peer_gone()

    def eof_received(self) -> None:
        self.peer_gone()

    def connection_lost(self, exc: Exception | None) -> None:
        self.peer_gone()
        self.cancel_timer()
        self.backend.closed(self)

    def pause_writing(self) -> None:
        self.can_write.clear()

    def resume_writing(self) -> None:
        self.can_write.set()

    # Requests.

    def advance(self) -> None:
        """Take one whole request from the buffer, if it is there, and begin its reply."""
        try:
            if self.record is None:
                if (end := self.buffer.find(b"\r\n\r\n")) < 0:
                    if b"\n\n" in self.buffer:
                        raise Broken("bare line feeds")
                    return
                head = bytes(self.buffer[: end + 4])
                del self.buffer[: end + 4]
                self.begin(head)
            assert self.record is not None
            body = take_body(self.record, self.buffer)
            if body is None:
                return
        except Broken as problem:
            record = self.record or self.begin(b"")
            record.violations.append(f"broken HTTP: {problem}")
            self.send_now(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
            return self.end("close")
        record = self.record
        record.body, record.complete = body, True
        if self.buffer:
            record.violations.append("bytes behind the request")
        if self.kill_next:
            record.killed = True
            if self.announced:
                record.violations.append("request on a connection announced as closed")
            return self.end(self.kill_next)
        self.task = asyncio.get_running_loop().create_task(self.serve(record))

    def begin(self, head: bytes) -> Record:
        self.cancel_timer()
        self.info.requests += 1
        self.record = record = Record(self.info.number, time.monotonic(), head=head)
        self.backend.began(record)
        if head:
            record.method, record.path, record.headers = parse_head(head)
            record.request_id = next(iter(record.header(self.backend.request_id_header)), None)
            record.violations += violations(record, self.backend)
        return record

    async def serve(self, record: Record) -> None:
        messages = record.path.partition("?")[0] in MESSAGES
        reply = (MessageReply if messages else Reply)(self, record)
        try:
            plan(reply)
            await reply.send()
        except Gone:
            return
        except Exception as problem:
            self.backend.errors.append(problem)
            return self.end("reset")
        if self.ended:
            return
        self.task = self.record = None
        if reply.close or self.backend.close_after_reply:
            return self.end("close")
        self.idle()
        if self.buffer:
            self.advance()

    @property
    def last_request(self) -> bool:
        """Whether this reply closes its connection."""
        asked = self.record.header("Connection") if self.record else []
        return "close" in map(str.lower, asked) or self.info.requests == self.backend.max_requests

    # Sending and ending.

    async def write(self, data: bytes) -> None:
        """Send in slices; each waits until the one before was passed to the kernel."""
        for start in range(0, len(data), SLICE):
            self.send_now(data[start : start + SLICE])
            self.writes += 1
            if self.writes % 16 == 0:
                await asyncio.sleep(0)
            await self.can_write.wait()

    def send_now(self, data: bytes) -> None:
        if self.transport.is_closing():
            raise Gone
        if self.record:
            self.record.sent_bytes += len(data)
        self.send_raw(self.tls.encrypt(data) if self.tls else data)

    def send_raw(self, data: bytes) -> None:
        if data:
            self.transport.write(data)

    async def cut(self, how: str) -> None:
        """End the connection after all sent bytes have arrived."""
        await asyncio.sleep(0.02)
        self.end(how)

    def end(self, how: str) -> None:
        self.ended = True
        if self.transport.is_closing():
            return
        if how == "reset":
            # Closing with a linger of 0 seconds sends RST.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
        else:
            if self.tls and self.tls.ready:
                self.send_raw(self.tls.close_notify())
            self.transport.close()

    def peer_gone(self) -> None:
        """The peer closed, half-closed or reset: note the time, and stop the reply."""
        if not self.ended:
            self.ended = True
            self.info.peer_left = time.monotonic()
            if self.record and not self.record.done:
                self.record.peer_left = self.info.peer_left
        if self.task:
            self.task.cancel()
        self.transport.abort()

    # Time.

    def idle(self) -> None:
        if self.backend.keep_alive_seconds is not None and self.mode == "serve":
            self.timer = self.later(self.backend.keep_alive_seconds, partial(self.end, "close"))

    def later(self, seconds: float, function: Callable[[], None]) -> asyncio.TimerHandle:
        def run() -> None:
            with suppress(Gone):
                function()

        return asyncio.get_running_loop().call_later(seconds, run)

    def cancel_timer(self) -> None:
        if self.timer:
            self.timer.cancel()


MESSAGES = ("/v1/messages", "/v1/messages/count_tokens")
EARLY = "bytes before the reply was whole"
EARLY_ANSWER = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\n\r\n{}"
ACCEPT_ANSWERS = {
    "ssh-banner": b"Invalid SSH identification string.\r\n",
    "tls-garbage": b"\x15\x03\x00\x00\x02\x02\x28 not TLS at all \xff\xfe",
    "plain-http": b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
}
ACCEPT_MODES = {"serve", "reset", "close", "mute", "garbage", "early", "tls-stall"}
ACCEPT_MODES |= {*ACCEPT_ANSWERS}


class FaultBackend:
    """The server in a thread of its own. All arguments are attributes and may be changed later;
    they hold for connections and requests that come afterwards.

    :param port: 0 for any free one; it is kept over :meth:`stop` and :meth:`start`.
    :param tls: certificate and key file, or a context.
    :param api_key: what requests must carry; "" for no Authorization at all, None for any.
    :param on_accept: serve; reset or close at once; mute (read, never answer; after the TLS
        handshake where there is TLS); tls-stall (the same, without handshake); ssh-banner, garbage
        (unasked); early (a whole answer, keeping the connection, and never a byte is read);
        tls-garbage, plain-http (in answer to the first bytes, then the end).
    :param so_rcvbuf: bytes that the kernel takes before they are read.
    :param answer_close_notify: False: a close_notify is not answered and TCP stays open.
    :param keep_alive_seconds: an idle connection is closed after this, unannounced.
    :param max_requests: replies per connection; the last one says ``Connection: close``.
    :param close_after_reply: each reply is followed by FIN, unannounced.
    :param advertise_keep_alive: adds ``Keep-Alive: timeout=N, max=M``.
    :param health: ok, empty, loading, dead or hang.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        host: str = "127.0.0.1",
        tls: tuple[str, str] | ssl.SSLContext | None = None,
        api_key: str | None = None,
        on_accept: str = "serve",
        answer_close_notify: bool = True,
        keep_alive_seconds: float | None = None,
        max_requests: int = 0,
        close_after_reply: bool = False,
        advertise_keep_alive: bool = False,
        health: str = "ok",
        models: tuple[str, ...] = ("sim-model",),
        request_id_header: str = "X-Request-ID",
        so_sndbuf: int = 0,
        so_rcvbuf: int = 0,
    ) -> None:
        assert on_accept in ACCEPT_MODES, on_accept
        self.port, self.host, self.api_key, self.on_accept = port, host, api_key, on_accept
        self.answer_close_notify, self.keep_alive_seconds = answer_close_notify, keep_alive_seconds
        self.max_requests, self.close_after_reply = max_requests, close_after_reply
        self.advertise_keep_alive, self.health, self.models = advertise_keep_alive, health, models
        self.request_id_header, self.so_sndbuf = request_id_header, so_sndbuf
        self.so_rcvbuf = so_rcvbuf
        self.context = tls if isinstance(tls, ssl.SSLContext) else None
        if isinstance(tls, tuple):
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.context.load_cert_chain(*tls)
        self.errors: list[Exception] = []  #: exceptions in the backend itself; stop() raises them
        self.flaky_seen: Counter[str] = Counter()
        self.redirect_hits = 0
        self._lock = threading.Lock()
        self._records: list[Record] = []
        self._connections: list[ConnectionRecord] = []
        self._numbers = itertools.count(1)
        self._open: set[Connection] = set()
        self._thread: threading.Thread | None = None

    # Life.

    def start(self) -> FaultBackend:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listener = socket.socket(family)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self.so_sndbuf:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.so_sndbuf)
            if self.so_rcvbuf:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.so_rcvbuf)
            listener.bind((self.host, self.port))
            listener.listen(2048)
        except OSError:
            listener.close()
            raise
        self.port = listener.getsockname()[1]
        ready = threading.Event()
        run = partial(asyncio.run, self._main(listener, ready))
        self._thread = threading.Thread(target=run, name="faultbackend", daemon=True)
        self._thread.start()
        assert ready.wait(5), "the backend does not start"
        return self

    async def _main(self, listener: socket.socket, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        server = await self._loop.create_server(
            partial(Connection, self), sock=listener, backlog=2048
        )
        ready.set()
        await self._stop.wait()
        server.close()
        for connection in list(self._open):
            connection.end("close")
            connection.peer_gone()
        while self._open:
            await asyncio.sleep(0)

    def stop(self) -> None:
        """Close the port and all connections; raise exceptions of the fault backend itself."""
        if self._thread:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(5)
            assert not self._thread.is_alive(), "the backend does not stop"
            self._thread = None
        if self.errors:
            raise ExceptionGroup("the fault backend failed", self.errors)

    def __enter__(self) -> FaultBackend:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.context else 'http'}://{host}:{self.port}"

    @property
    def authorities(self) -> set[str]:
        """What a request's Host may be."""
        names = ("localhost", "127.0.0.1", "[::1]", self.host)
        return {f"{name}:{self.port}" for name in names}

    # Records.

    @property
    def records(self) -> list[Record]:
        """All requests so far, in the order of their heads; each goes on changing."""
        with self._lock:
            return list(self._records)

    @property
    def connections(self) -> list[ConnectionRecord]:
        with self._lock:
            return list(self._connections)

    @property
    def connections_open(self) -> int:
        with self._lock:
            return len(self._open)

    @property
    def connections_total(self) -> int:
        """Connections accepted since the start or the last :meth:`reset`."""
        with self._lock:
            return len(self._connections)

    def records_for(self, request_id: str) -> list[Record]:
        return [record for record in self.records if record.request_id == request_id]

    def wait_for(self, predicate: Callable[[], T | None], timeout: float = 5.0) -> T:
        """Block until `predicate` is true and return what it returned."""
        end = time.monotonic() + timeout
        while not (result := predicate()):
            assert time.monotonic() < end, f"not within {timeout} s; records: {self.records}"
            time.sleep(0.002)
        return result

    def reset(self) -> None:
        """Forget records, counts and flaky requests; connections stay open."""
        with self._lock:
            self._records.clear()
            self._connections.clear()
            self.flaky_seen.clear()
            self.redirect_hits = 0

    # Called by connections.

    def opened(self, connection: Connection) -> ConnectionRecord:
        with self._lock:
            info = ConnectionRecord(next(self._numbers), time.monotonic())
            self._connections.append(info)
            self._open.add(connection)
        return info

    def closed(self, connection: Connection) -> None:
        with self._lock:
            connection.info.closed = time.monotonic()
            self._open.discard(connection)

    def began(self, record: Record) -> None:
        with self._lock:
            self._records.append(record)
            record.sim_id = f"chatcmpl-sim-{next(self._numbers)}"


@contextmanager
def blackhole() -> Iterator[int]:
    """A port of 127.0.0.1 that answers no SYN: a listener whose queue is full (Linux)."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        try:
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(listener.getsockname())
            yield listener.getsockname()[1]
        finally:
            for filler in fillers:
                filler.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="An OpenAI-style backend that fails on purpose.")
    parser.add_argument("--port", type=int, default=9001)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--tls", nargs=2, metavar=("CERTIFICATE", "KEY"))
    parser.add_argument("--on-accept", choices=sorted(ACCEPT_MODES), default="serve")
    parser.add_argument("--keep-alive-seconds", type=float)
    options = parser.parse_args()
    backend = FaultBackend(
        port=options.port,
        host=options.host,
        tls=tuple(options.tls) if options.tls else None,
        on_accept=options.on_accept,
        keep_alive_seconds=options.keep_alive_seconds,
    )
    with backend, suppress(KeyboardInterrupt):
        print(f"{backend.url}  faults: {' '.join(sorted(FAULTS))}", flush=True)
        shown = 0
        while True:
            time.sleep(0.2)
            for record in backend.records[shown:]:
                shown += 1
                print(record.method, record.path, record.fault, *record.violations, flush=True)


if __name__ == "__main__":
    main()
