"""What the fault tests share: a gateway with short clocks, a client on a raw socket, and what must
hold after every request.

A test says what the backend shall do and what the client shall see of it (:class:`Whole`,
:class:`Err` or :class:`Cut`). That is compared with what the client saw, with the line in the
access log and with what the backend recorded, which must all tell the same story.
"""

from __future__ import annotations

import configparser
import itertools
import json
import os
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import attrs

from tests.faultbackend import ConnectionRecord, FaultBackend, Record
from tests.integration.processes import UNHANDLED, Gateway

T = TypeVar("T")

MIB = 1 << 20

# The clocks, in seconds, and limits of every gateway here.
CONNECT, FIRST_BYTE, IDLE, TOTAL, CLIENT_WRITE = 1.0, 3.0, 2.0, 10.0, 3.0
MAX_EVENT, MAX_REPLY, MAX_IN_FLIGHT = MIB, 8 * MIB, 200
SHORT = {
    "gateway_drain": "5",
    "timeouts_request_head": "2",
    "timeouts_request_body": "4",
    "timeouts_client_idle": "30",  # the tests keep connections longer than a client should
    "timeouts_client_write": f"{CLIENT_WRITE}",
    "timeouts_connect": f"{CONNECT}",
    "timeouts_first_byte": f"{FIRST_BYTE}",
    "timeouts_idle": f"{IDLE}",
    "timeouts_total": f"{TOTAL}",
    "timeouts_ping": "0",
    "limits_request_body": "1 MiB",
    "limits_event": f"{MAX_EVENT}",
    "limits_reply": f"{MAX_REPLY}",
    "limits_connections": "2000",
    "limits_in_flight": f"{MAX_IN_FLIGHT}",
}

#: The backend's clocks where much is done at once: clients and backend are one process.
PATIENT = dict.fromkeys(
    ("timeouts_connect", "timeouts_first_byte", "timeouts_idle", "timeouts_total"), "60"
)

#: What no message for a client may hold: names of hosts, paths, keys, Python.
TELLING = re.compile(
    rb"127\.0\.0\.1|localhost|internal-host|/srv/|/site-packages|\.py\b|sk-sim|Traceback|twisted"
    rb"|Errno|\w(Error|Exception|Failure)\b",
)

#: The loopback answers at once; this is for a machine with better things to do.
AT_ONCE = 1.0


def wait_for(predicate: Callable[[], T | None], timeout: float, what: str) -> T:
    """Block until ``predicate`` is true and return what it returned."""
    end = time.monotonic() + timeout
    while not (result := predicate()):
        assert time.monotonic() < end, f"not within {timeout} s: {what}"
        time.sleep(0.002)
    return result


# The gateway.


class Daemon(Gateway):
    """A gateway in front of these backends, and what can be seen of it from outside.

    :param settings: in place of :data:`SHORT`, by section and key: ``timeouts_ping="0.5"``.
    """

    def __init__(self, folder: Path, *urls: str, tls_ca: str = "", **settings: str) -> None:
        self._log = folder / "access.log"
        self._lines: dict[str, list[dict[str, Any]]] = {}
        self._read = 0
        ini = configparser.ConfigParser(interpolation=None)
        for name, value in {**SHORT, "log_access": str(self._log), **settings}.items():
            section, _, key = name.partition("_")
            ini.setdefault(section, {})
            ini[section][key] = value
        for number, url in enumerate(urls):
            ini[f"backend b{number}"] = {"url": url}
            if tls_ca:
                ini[f"backend b{number}"]["tls_ca"] = tls_ca
        with (folder / "gatewayd.ini").open("w") as file:
            ini.write(file)
        super().__init__("--config", str(folder / "gatewayd.ini"), folder=folder)
        self.port = int(self.url.rpartition(":")[2])
        self.pid = self._process.pid

    def memory(self, which: str = "VmRSS") -> int:
        """Resident bytes; the most there were since :meth:`forget_peak` with ``VmHWM``."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition(f"{which}:")[2].split()[0]) * 1024

    def forget_peak(self) -> int:
        """Begin to measure ``VmHWM`` anew; return what is resident now."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        return self.memory()

    def cpu_seconds(self) -> float:
        """The processor time that it has used."""
        words = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def descriptors(self) -> int:
        """How many file descriptors it has open."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def lines(self) -> dict[str, list[dict[str, Any]]]:
        """The access log until now, by request id."""
        with self._log.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        new = new[: new.rfind(b"\n") + 1]
        self._read += len(new)
        for line in map(json.loads, new.splitlines()):
            self._lines.setdefault(line["id"], []).append(line)
        return self._lines

    def line(self, identity: str) -> dict[str, Any]:
        """The one line of this request."""
        (line,) = wait_for(lambda: self.lines().get(identity), 2, f"a log line of {identity}")
        return line

    def is_well(self) -> None:
        """It lives, serves at once, and has no error to tell of."""
        assert self._process.poll() is None, self.output
        began = time.monotonic()
        with Client(self.port) as client:
            client.sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: gateway\r\n\r\n")
            assert client.answer("").status == 200
        assert time.monotonic() - began < AT_ONCE
        assert not UNHANDLED.search(self.output), self.output


@contextmanager
def watched(
    daemon: Daemon, *sims: FaultBackend, growth: int = 24 * MIB, warm: bool = True
) -> Iterator[Daemon]:
    """Run a gateway; when all is done, nothing that it was given may be left with it.

    :param warm: begin with some requests, so that what is made once is there.
    :param growth: bytes by which it may be larger after the tests than after the first requests.
    """
    with daemon:
        for stream in (False, True) * 20 if sims and warm else ():
            ask(daemon, "", stream)
        descriptors = daemon.descriptors() - sum(sim.connections_open for sim in sims)
        resident = daemon.memory()
        yield daemon
        daemon.is_well()
        wait_for(
            lambda: daemon.descriptors() - sum(sim.connections_open for sim in sims) <= descriptors,
            10,
            f"back to {descriptors} descriptors",
        )
        assert daemon.memory() - resident < growth
        several = {key: lines for key, lines in daemon.lines().items() if len(lines) > 1}
        assert not {key for key in several if not key.startswith("same-")}, several
        for sim in sims:
            assert [r for r in sim.records if r.violations] == []


# The client.


@attrs.define
class Answer:
    """What came back, and when. Times are of :func:`time.monotonic`."""

    id: str
    asked: float
    status: int = 0
    headers: list[tuple[str, str]] = attrs.field(factory=list)
    body: bytearray = attrs.field(factory=bytearray, repr=lambda body: repr(bytes(body[-600:])))
    head_at: float = 0.0
    #: When the last byte came, or the connection's end where that came later.
    last_at: float = 0.0
    #: When each empty line of an event stream came.
    arrivals: list[float] = attrs.field(factory=list, repr=False)
    whole: bool = False  #: as its framing says: the last chunk is here, or all of its length
    ended: str = ""  #: ``closed`` or ``reset``; the connection is still open without it
    surplus: bytes = b""  #: what came behind a whole answer
    _buffer: bytearray = attrs.field(factory=bytearray, repr=False)
    _left: int = 0  # of the length, or of this chunk and its line end
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
        """Take bytes of the body; the last ``behind`` of what is left are none."""
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

    # The body as what it is.

    def json(self) -> Any:
        return json.loads(self.body)

    def frames(self) -> list[bytes]:
        """The frames of an event stream, which must all be whole: comments or one line of data."""
        *frames, rest = bytes(self.body).split(b"\n\n")
        assert rest == b""
        for frame in frames:
            assert frame == b": ping" or re.fullmatch(rb"data: [^\r\n]+", frame), frame
        return frames

    def payloads(self) -> list[bytes]:
        return [frame[6:] for frame in self.frames() if frame.startswith(b"data: ")]


class Client:
    """One connection to a gateway.

    :param receive_buffer: bytes that the kernel takes before the test reads them.
    """

    def __init__(self, port: int, receive_buffer: int = 0) -> None:
        self.sock = socket.socket()
        self.sock.settimeout(TOTAL * 2)
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.connect(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def ask(
        self,
        prompt: str = "",
        stream: bool = False,
        *,
        id: str = "",
        model: str | None = "m",
        behind: bytes = b"",
    ) -> str:
        """Send a chat request and return its id; ``prompt`` names a fault.

        :param model: with None several backends are asked in the order of the settings.
        :param behind: sent in the same segments behind the request.
        """
        id = id or f"test-{next(_numbers)}"
        content = f"fault:{prompt}" if prompt else "hello"
        messages = [{"role": "user", "content": content}]
        chat = {"model": model, "messages": messages, "stream": stream}
        body = json.dumps(chat).encode()
        self.sock.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nX-Request-ID: {id}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
            + behind
        )
        return id

    def answer(self, id: str, asked: float = 0.0) -> Answer:
        """Read an answer to its end, or to the connection's."""
        answer = Answer(id, asked or time.monotonic())
        while not answer.whole:
            self.more(answer)
            if answer.ended:
                break
        return answer

    def more(self, answer: Answer) -> None:
        """Read what is there, at least a byte or the end."""
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
        """Send a FIN, and go on reading as clients do that wait for the other's."""
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with an RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


_numbers = itertools.count(1)


def ask(
    daemon: Daemon,
    prompt: str = "",
    stream: bool = False,
    *,
    id: str = "",
    model: str | None = "m",
) -> Answer:
    """Ask on a new connection, and read the answer to its end."""
    with Client(daemon.port) as client:
        began = time.monotonic()
        return client.answer(client.ask(prompt, stream, id=id, model=model), began)


# What must hold.


@attrs.frozen
class Case:
    """One request that was played, and who took part in it."""

    daemon: Daemon
    sim: FaultBackend
    stream: bool
    answer: Answer

    @property
    def records(self) -> list[Record]:
        return self.sim.records_for(self.answer.id)

    @property
    def record(self) -> Record:
        """What the backend saw last of this request."""
        return self.records[-1]


class Expectation(Protocol):
    """What the client shall see."""

    @property
    def at(self) -> float:
        """The seconds that this must take; 0 if that does not matter."""

    def check(self, case: Case) -> str:
        """Compare; return the name of the End that the log must tell."""


def play(daemon: Daemon, sim: FaultBackend, fault: str, stream: bool) -> Case:
    return Case(daemon, sim, stream, ask(daemon, fault, stream))


def check(case: Case, expected: Expectation, attempts: int = 1) -> None:
    """Compare what was expected with what everybody saw, and look that all is well.

    :param attempts: how many times the backend must have seen the request.
    """
    answer, daemon = case.answer, case.daemon
    end = expected.check(case)
    assert answer.header("x-request-id") == [answer.id]
    assert answer.surplus == b""
    line = daemon.line(answer.id)
    assert (line["status"], line["end"], line["stream"]) == (answer.status, end, case.stream), line
    assert [record.violations for record in case.records] == [[]] * attempts
    for record in case.records:
        (connection,) = [c for c in case.sim.connections if c.number == record.connection]
        # What has not been sent whole leaves a connection of no further use. After a [DONE] the
        # gateway waits up to 1 s for the body's end.
        wait_for(partial(ended, record, connection), 2, f"the end of {connection}")
    if expected.at:
        assert case.records == [] or case.record.done or case.record.peer_left
        if case.records and case.record.peer_left:
            assert case.record.peer_left - answer.last_at < 0.25
    daemon.is_well()


def ended(record: Record, connection: ConnectionRecord) -> bool:
    return record.done or connection.closed is not None


def check_duration(seconds: float, at: float) -> None:
    assert at - 0.1 < seconds < at + 0.6, f"{seconds:.3f} s instead of {at} s"


@attrs.frozen
class Whole:
    """The reply, all of it, byte for byte.

    :param spaced: line ends between the JSON's tokens may have become spaces.
    """

    spaced: bool = False
    at: float = 0.0

    def check(self, case: Case) -> str:
        answer = case.answer
        assert (answer.status, answer.whole) == (200, True), answer
        if not case.stream:
            assert answer.header("content-type") == ["application/json"]
            assert bytes(answer.body) == case.record.want_json_as(answer.id)
            return "complete"
        check_stream_head(answer)
        want = case.record.want_as(answer.id)
        assert want
        if self.spaced:
            want = [payload.replace(b"\n", b" ") for payload in want]
        assert answer.payloads() == [*want, b"[DONE]"]
        assert answer.frames() == [b"data: " + payload for payload in [*want, b"[DONE]"]]
        if self.at:
            check_duration(answer.seconds, self.at)
        return "complete"


@attrs.frozen
class Err:
    """An HTTP error, and not a byte of any reply.

    :param code: of the envelope; several with ``|`` between them.
    :param passed: it is the backend's own envelope.
    :param ran: the backend may have begun the work, so that nobody should try again unasked.
    """

    status: int
    code: str
    end: str = "backend_error"
    at: float = 0.0
    passed: bool = False
    ran: bool = True

    def check(self, case: Case) -> str:
        answer = case.answer
        assert (answer.status, answer.whole) == (self.status, True), answer
        assert answer.header("content-type") == ["application/json"]
        assert answer.header("content-length") == [f"{len(answer.body)}"]
        assert answer.header("x-should-retry") == ["false"] * self.ran
        assert answer.header("location") == answer.header("set-cookie") == []
        if self.passed:
            assert bytes(answer.body) == case.record.want_json
        else:
            check_error(bytes(answer.body), self.code)
        if self.at:
            check_duration(answer.seconds, self.at)
        return self.end


@attrs.frozen
class Cut:
    """The events that there were, an error event, and the end without the last chunk.

    :param events: how many; None for any number of those that the backend sent.
    :param at: seconds after the last event; after the request where ``events`` is None.
    :param passed: the error is the backend's own.
    """

    events: int | None
    code: str
    end: str = "backend_truncated"
    at: float = 0.0
    passed: bool = False

    def check(self, case: Case) -> str:
        answer = case.answer
        assert (answer.status, answer.whole, answer.ended) == (200, False, "closed"), answer
        check_stream_head(answer)
        *events, error = answer.payloads()
        want = case.record.want_as(answer.id)
        if self.events is None:
            assert events == want[: len(events)]
        else:
            assert len(events) == self.events
            assert events == want[: self.events]
        if self.passed:
            assert json.loads(error)["error"]["message"] == "sim failed on the way"
        else:
            check_error(error, self.code)
        if self.at:
            since = answer.arrivals[-2] if self.events else answer.asked
            check_duration(answer.last_at - since, self.at)
        return self.end


def check_stream_head(answer: Answer) -> None:
    assert answer.header("content-type") == ["text/event-stream"]
    assert answer.header("cache-control") == ["no-cache"]
    assert answer.header("transfer-encoding") == ["chunked"]


def check_error(body: bytes, code: str, kind: str = "upstream_error") -> None:
    """It is an envelope of the gateway's own with this code, fit for a stranger's eyes."""
    error = json.loads(body)["error"]
    assert json.loads(body).keys() == {"error"}
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"] and error["type"] == kind and error["code"] in code.split("|"), error
    assert not TELLING.search(body), body


# Certificates.


def spread(samples: list[float]) -> str:
    """``p50 / p99 / max`` of some seconds, in milliseconds."""
    ordered = sorted(samples)
    at = [ordered[int((len(ordered) - 1) * q)] * 1000 for q in (0.5, 0.99, 1)]
    return " / ".join(f"{value:.1f}" for value in at)


def attempts_of(sim: FaultBackend) -> Counter[str]:
    """How many times the backend saw each request id."""
    return Counter(str(record.request_id) for record in sim.records)
