"""The load generator: ``python -m benchmarks.load '{"kind": "json", "port": 8000, ...}'``.

One measurement in one process; the result is one JSON object on standard output. The keys of the
argument are the parameters of the function of that name below, and of :class:`Target`. The cost of
the program under load is read at both ends of the window in which its work is counted.
"""

from __future__ import annotations

import gc
import json
import os
import random
import re
import socket
import sys
from array import array
from collections.abc import Callable, Sequence
from time import monotonic, monotonic_ns, sleep
from typing import Any

from benchmarks import proc
from benchmarks.loop import Loop

STAMP = re.compile(rb'"@(\d{19})"')
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
#: Seconds within which opened streams must begin.
BEGIN_TIMEOUT = 20.0
#: Seconds within which the gateway must close its connection to the backend after a cancel.
CANCEL_TIMEOUT = 5.0

Result = dict[str, Any]


class Target:
    """The program under load.

    :param port: the port that it listens on.
    :param session: the session of its processes, see :mod:`benchmarks.proc`; 0 for none.
    :param mock: the port of the mock backend.
    :param headers: additional header lines of each request.
    """

    def __init__(
        self, port: int, session: int = 0, mock: int = 0, headers: Sequence[str] = ()
    ) -> None:
        self.port, self.session, self.mock = port, session, mock
        self._headers = "".join(f"{line}\r\n" for line in headers)

    def request(self, prompt: str, stream: bool = True) -> bytes:
        body = json.dumps(
            {
                "model": "m",
                "messages": [
                    {"role": "system", "content": "You are a helpful assistant."},
                    {"role": "user", "content": f"bench {prompt}"},
                ],
                "temperature": 0.7,
                "stream": stream,
            }
        )
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\n"
            f"Host: 127.0.0.1:{self.port}\r\n"
            "User-Agent: bench\r\nAccept: */*\r\nContent-Type: application/json\r\n"
            f"{self._headers}Content-Length: {len(body)}\r\n\r\n"
        )
        return (head + body).encode("ascii")

    def connect(self, receive_buffer: int = 0) -> socket.socket:
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.connect(("127.0.0.1", self.port))
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def cpu(self) -> float:
        return proc.cpu(self.session) if self.session else 0.0

    def rss(self) -> int:
        return proc.rss(self.session) if self.session else 0


def whole(reply: bytes) -> bool:
    """Whether a JSON reply has arrived whole.

    :raises RuntimeError: it is not a JSON reply.
    """
    head, end, body = reply.partition(b"\r\n\r\n")
    if not end:
        return False
    if b" 200 " not in head[:16]:
        raise RuntimeError(f"refused: {reply[:400]!r}")
    found = _LENGTH.search(head)
    return len(body) >= int(found[1]) if found else body.endswith(b"0\r\n\r\n")


class Caller:
    """One connection that sends the next request as soon as a reply has arrived.

    :param once: send one request only.
    """

    def __init__(
        self,
        loop: Loop,
        target: Target,
        request: bytes,
        answered: Callable[[int], None],
        once: bool = False,
    ) -> None:
        self.sock, self._request, self._answered = target.connect(), request, answered
        self._reply, self._once = b"", once
        loop.add(self.sock, self._ready)
        self._ask()

    def _ask(self) -> None:
        self._began = monotonic_ns()
        self.sock.send(self._request)

    def _ready(self, _: int) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise RuntimeError("a connection was closed")
        self._reply += data
        if whole(self._reply):
            self._reply = b""
            self._answered(monotonic_ns() - self._began)
            if not self._once:
                self._ask()


class Stream:
    """One streamed request on a connection of its own.

    :param seen: called with received bytes.
    """

    def __init__(
        self, loop: Loop, target: Target, request: bytes, seen: Callable[[bytes], None]
    ) -> None:
        self._loop, self._seen = loop, seen
        self.began = monotonic_ns()
        self.first = 0  # the time of the first event
        self.sock = target.connect()
        self.sock.send(request)
        loop.add(self.sock, self._ready)

    def _ready(self, _: int) -> None:
        try:
            data = self.sock.recv(262144)
        except ConnectionResetError:
            data = b""
        if not data:
            raise RuntimeError("a stream broke off")
        if not self.first:
            if b" 200 " not in data[:16] and data.startswith(b"HTTP/"):
                raise RuntimeError(f"refused: {data[:400]!r}")
            if b"data: " not in data:
                return
            self.first = monotonic_ns()
        self._seen(data)


def ms(nanoseconds: Sequence[int]) -> dict[str, float]:
    """Percentiles in milliseconds."""
    ordered = sorted(nanoseconds)
    if not ordered:
        return {}

    def at(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1e6, 4)

    return {"p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": at(1.0)}


class Window:
    """A period of measurement: its length, and the processor time of the target in it."""

    def __init__(self, loop: Loop, target: Target, seconds: float) -> None:
        began, cpu = monotonic(), target.cpu()
        own = proc.cpu_of_self()
        loop.run(began + seconds)
        self.cpu = target.cpu() - cpu
        self.seconds = monotonic() - began
        self.load = (proc.cpu_of_self() - own) / self.seconds

    def per(self, count: int) -> Result:
        """The result for ``count`` requests or events: microseconds for each, and cores in use."""
        return {
            "count": count,
            "per_second": round(count / self.seconds, 1),
            "cpu_us": round(self.cpu / count * 1e6, 2) if count and self.cpu else None,
            "cores": round(self.cpu / self.seconds, 3),
            "load_cores": round(self.load, 3),
        }


# -- the measurements: each is called with the rest of the argument ------------------------------


def json_replies(
    target: Target, connections: int = 32, seconds: float = 3, warm: float = 0.5
) -> Result:
    """Each connection sends one request after the other."""
    loop, times = Loop(), array("q")
    request = target.request("mode=json", stream=False)
    for _ in range(connections):
        Caller(loop, target, request, times.append)
    loop.run(monotonic() + warm)
    del times[:]
    window = Window(loop, target, seconds)
    return window.per(len(times)) | {"latency_ms": ms(times)}


def events(
    target: Target,
    streams: int,
    rate: float,
    seconds: float = 3,
    warm: float = 0.5,
    apart: float = 0.002,
    lost: bool = False,
) -> Result:
    """Streams at a steady pace, out of phase with each other: cost and delay of an event.

    :param apart: seconds between the openings of two streams.
    :param lost: let the streams end after the window, and count the events that have not come.
    """
    _call_once(target)
    loop, late = Loop(), array("q")
    memory, received = target.rss(), 0

    def seen(data: bytes) -> None:
        nonlocal received
        now, stamps = monotonic_ns(), STAMP.findall(data)
        received += len(stamps)
        for stamp in stamps:
            late.append(now - int(stamp))

    prompt = f"mode=events rate={rate:g}"
    lasts = streams * apart + 1 / rate + warm + seconds  # the first stream, until the window's end
    each = int(lasts * rate) + 2
    request = target.request(f"{prompt} events={each}" if lost else prompt)
    opened = _open(loop, target, streams, request, seen, 1 / rate, apart)
    loop.run(monotonic() + warm)
    del late[:]
    window = Window(loop, target, seconds)
    result = window.per(len(late)) | {
        "streams": streams,
        "offered": round(streams * rate, 1),
        "silent": _silent(opened),
        "late_ms": ms(late),
        "rss_each": (target.rss() - memory) / streams,
    }
    if lost:
        loop.run(monotonic() + lasts + BEGIN_TIMEOUT, lambda: received >= streams * each)
        result["lost"] = streams * each - received
    return result


def flood(
    target: Target, streams: int = 64, batch: int = 20, seconds: float = 3, warm: float = 0.5
) -> Result:
    """Streams at full speed. Many events in each segment keep the mock and the load cheap."""
    loop, count = Loop(), 0

    def seen(data: bytes) -> None:
        nonlocal count
        count += data.count(b"data: ")

    _open(loop, target, streams, target.request(f"mode=flood batch={batch}"), seen, 0)
    loop.run(monotonic() + warm)
    count = 0
    window = Window(loop, target, seconds)
    return window.per(count)


def first_event(target: Target, streams: int = 300, bursts: int = 3, pause: float = 0.5) -> Result:
    """Streams opened at once: the time from before the connect to the first event."""
    times, silent = array("q"), 0
    for _ in range(bursts):
        loop = Loop()
        request = target.request("mode=events rate=1")
        opened = [Stream(loop, target, request, lambda data: None) for _ in range(streams)]
        loop.run(monotonic() + BEGIN_TIMEOUT, _all_began(opened))
        silent += _silent(opened)
        times.extend(stream.first - stream.began for stream in opened if stream.first)
        for stream in opened:
            loop.close(stream.sock)
        sleep(pause)
        ask_mock(target.mock, "/reset")
    return {"ttft_ms": ms(times), "silent": silent}


def idle(target: Target, connections: int = 1000, settle: float = 1.0) -> Result:
    """Idle connections, each after one reply: the memory of each.

    The requests are sent one after the other; otherwise the memory would be that of a thousand
    concurrent requests. A slow target gets fewer connections.
    """
    for _ in range(50):
        _call_once(target)
    loop, times = Loop(), array("q")
    callers: list[Caller] = []
    memory, until = target.rss(), monotonic() + BEGIN_TIMEOUT
    request = target.request("mode=json", stream=False)
    while len(callers) < connections and monotonic() < until:
        callers.append(Caller(loop, target, request, times.append, once=True))
        loop.run(monotonic() + BEGIN_TIMEOUT, lambda: len(times) == len(callers))
    sleep(settle)
    return {"connections": len(callers), "rss_each": (target.rss() - memory) / len(callers)}


def stalled(target: Target, readers: int = 20, seconds: float = 3) -> Result:
    """Clients that stop reading while the backend streams without end: the memory of each.

    Kernel buffers do not count as memory of the target. They are small, so that they fill soon.
    """
    _call_once(target)
    memory = target.rss()
    sockets = [target.connect(receive_buffer=4096) for _ in range(readers)]
    for sock in sockets:
        sock.send(target.request("mode=flood batch=20"))
    sleep(seconds)
    return {"rss_each": (target.rss() - memory) / readers}


def cancel(target: Target, streams: int = 50) -> Result:
    """Clients that disconnect: seconds until the backend's connection closes.

    Measured while the backend is silent and while it streams. ``never`` counts backend connections
    that were still open after :data:`CANCEL_TIMEOUT`.
    """
    result: Result = {}
    for phase, prompt in (("silent", "mode=hold"), ("streaming", "mode=events rate=20")):
        loop, opened = Loop(), {}
        for number in range(streams):
            name = f"{os.getpid()}{phase}{number}"  # unique over all runs
            request = target.request(f"{prompt} id={name}")
            opened[name] = Stream(loop, target, request, lambda data: None)
        # A client must not disconnect before the backend has its request.
        until = monotonic() + BEGIN_TIMEOUT
        running = opened.keys() & ask_mock(target.mock, "/running")
        while len(running) < streams and monotonic() < until:
            loop.run(monotonic() + 0.1)
            running = opened.keys() & ask_mock(target.mock, "/running")
        loop.run(monotonic() + 0.5)
        left: dict[str, float] = {}
        for name, stream in opened.items():
            loop.run(monotonic() + 0.005)
            left[name] = monotonic()
            loop.close(stream.sock)
        heard: dict[str, float] = {}
        until = monotonic() + CANCEL_TIMEOUT
        while len(heard) < len(running) and monotonic() < until:
            sleep(0.1)
            told = ask_mock(target.mock, "/left")
            heard |= {name: when for name, when in told.items() if name in running}
        late = [int((when - left[name]) * 1e9) for name, when in heard.items()]
        result[phase] = {"ms": ms(late), "of": len(running), "never": len(running) - len(late)}
    return result


# -- what they share -----------------------------------------------------------------------------


def _open(
    loop: Loop,
    target: Target,
    count: int,
    request: bytes,
    seen: Callable[[bytes], None],
    within: float,
    apart: float = 0.002,
) -> list[Stream]:
    """Open streams one after the other, each delayed by a random time up to ``within`` seconds."""
    opened: list[Stream] = []
    moments, began = random.Random(count), monotonic()
    for number in range(count):
        when = began + number * apart + moments.random() * within
        loop.at(when, lambda: opened.append(Stream(loop, target, request, seen)))
    loop.run(began + count * apart + within)
    loop.run(monotonic() + BEGIN_TIMEOUT, _all_began(opened))
    return opened


def _all_began(opened: Sequence[Stream]) -> Callable[[], bool]:
    begun = 0

    def done() -> bool:  # it is called after each event, so it does not look at all streams
        nonlocal begun
        while begun < len(opened) and opened[begun].first:
            begun += 1
        return begun == len(opened)

    return done


def _silent(opened: Sequence[Stream]) -> int:
    """How many streams did not begin, because the target is overloaded."""
    return sum(not stream.first for stream in opened)


def _call_once(target: Target) -> None:
    loop, times = Loop(), array("q")
    request = target.request("mode=json", stream=False)
    caller = Caller(loop, target, request, times.append, once=True)
    loop.run(monotonic() + BEGIN_TIMEOUT, lambda: bool(times))
    loop.close(caller.sock)


def ask_mock(port: int, path: str) -> dict[str, float]:
    """GET a path of the mock; the paths are in :mod:`benchmarks.mock`."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: mock\r\n\r\n".encode("ascii"))
        reply = b""
        while not whole(reply):
            reply += sock.recv(65536)
    answer: dict[str, float] = json.loads(reply.partition(b"\r\n\r\n")[2])
    return answer


KINDS: dict[str, Callable[..., Result]] = {
    "json": json_replies,
    "events": events,
    "flood": flood,
    "ttft": first_event,
    "idle": idle,
    "stalled": stalled,
    "cancel": cancel,
}


def main() -> None:
    proc.raise_file_limit()
    gc.disable()
    given = json.loads(sys.argv[1])
    kind = KINDS[given.pop("kind")]
    where = {key: given.pop(key) for key in ("port", "session", "mock", "headers") if key in given}
    try:
        result = kind(Target(**where), **given)
    except (RuntimeError, OSError) as e:
        result = {"error": str(e)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
