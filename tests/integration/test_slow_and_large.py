"""Clients that are slow, that send too much, or that are too many, on real sockets.

Requests that end by a clock are sent concurrently, in the background.
"""

from __future__ import annotations

import hashlib
import os
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import islice, repeat
from pathlib import Path

import attrs
import pytest

from tests.faultbackend import FaultBackend
from tests.integration.client import Client, ask
from tests.integration.expectations import check_duration, check_error, spread
from tests.integration.gateways import MIB, FastGateway, watched
from tests.integration.healthprobe import HealthProbe, stolen_seconds
from tests.integration.processes import AT_ONCE, wait_for
from tests.integration.raw import (
    BODY,
    CLOSE,
    CONTINUE,
    SMUGGLED,
    RawAnswers,
    chat,
    check_refused,
    chunked,
    get,
    post,
    request,
    send_raw,
    together,
)

HEAD, WHOLE_BODY, LINGER = 2.0, 4.0, 2.0
CHUNKED = b"Transfer-Encoding: chunked"
EXPECT = b"Expect: 100-continue"
MAX_BODY = MIB


@pytest.fixture(scope="module")
def gateway(sim: FaultBackend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastGateway]:
    folder = tmp_path_factory.mktemp("slow")
    with watched(FastGateway(folder, sim.url, timeouts_client_idle="3"), sim) as daemon:
        yield daemon
        assert "smuggled" not in daemon.lines()
        assert all(record.complete for record in sim.records)


# -- by the clock ----------------------------------------------------------------------------------


@attrs.frozen
class Slow:
    """
    :param pieces: one every 200 ms.
    :param expected: the refusal; empty if the connection just ends.
    :param at: seconds until it ends.
    """

    id: str
    pieces: Callable[[], Iterator[bytes]] = attrs.field(repr=False)
    expected: str
    at: float


def pieces(begin: bytes, each: bytes) -> Callable[[], Iterator[bytes]]:
    """The first piece once, then the second for ever."""

    def go_on() -> Iterator[bytes]:
        yield begin
        yield from repeat(each)

    return go_on


LATE = "408 request_timeout"
LENGTH = b"Content-Length: 100000"
SLOW = [
    Slow("slow-nothing", lambda: iter(()), "", HEAD),
    Slow("slow-one-byte", lambda: iter((b"G",)), LATE, HEAD),
    Slow("slow-all-but-one-byte", lambda: iter((get(b"/healthz")[:-1],)), LATE, HEAD),
    Slow("slow-head-byte-by-byte", pieces(b"GET /", b"a"), LATE, HEAD),
    Slow("slow-header-by-header", pieces(b"GET / HTTP/1.1\r\n", b"X-A: a\r\n"), LATE, HEAD),
    Slow("slow-body", pieces(post(LENGTH), b"x"), LATE, WHOLE_BODY),
    Slow("slow-no-body", pieces(post(LENGTH), b""), LATE, WHOLE_BODY),
    Slow("slow-chunked", pieces(post(CHUNKED), b"1\r\nx\r\n"), LATE, WHOLE_BODY),
    Slow("slow-endless-size", pieces(post(CHUNKED), b"0"), LATE, WHOLE_BODY),
    Slow("slow-no-100-waited-for", pieces(post(EXPECT, LENGTH), b""), LATE, WHOLE_BODY),
    Slow("idle-after-an-answer", lambda: iter((get(b"/healthz"),)), "", 3.0),
]  # fmt: skip


@pytest.fixture(scope="module")
def played(gateway: FastGateway) -> Iterator[dict[str, Future[RawAnswers]]]:
    with ThreadPoolExecutor(len(SLOW)) as pool:
        yield {row.id: pool.submit(play, gateway, row) for row in SLOW}


def play(gateway: FastGateway, row: Slow) -> RawAnswers:
    """Send for longer than the connection may last."""
    return send_raw(gateway.port, *islice(row.pieces(), int((row.at + 2) / 0.2)), every=0.2)


@pytest.mark.parametrize("row", SLOW, ids=lambda row: row.id)
def test_a_slow_client(
    gateway: FastGateway, played: dict[str, Future[RawAnswers]], row: Slow
) -> None:
    received = played[row.id].result()
    check_duration(received.seconds, row.at)
    if row.expected:
        check_refused(gateway, received.answers[-1], row.expected)
        assert received.answers[-1].header("connection") == ["close"]
    elif received.answers:
        assert received.answer.status == 200
    assert received.ended in ("closed", "reset")


def test_a_hundred_slow_heads_at_once(gateway: FastGateway) -> None:
    """Other clients are not delayed."""
    count = 100
    with ExitStack() as stack, HealthProbe(gateway) as probe:
        clients = [stack.enter_context(Client(gateway.port)) for _ in range(count)]
        began = time.monotonic()
        for byte in b"GET /v1/models HTTP/1.1\r\nX: abcdef"[: int(HEAD / 0.2) - 1]:
            together([(client, bytes([byte])) for client in clients])
            time.sleep(0.2)
        answers = [client.answer("", began) for client in clients]
        for client, answer in zip(clients, answers, strict=True):
            while not answer.ended:
                client.more(answer)
    for answer in answers:
        check_refused(gateway, answer, LATE)
        assert HEAD - 0.5 < answer.head_at - began < HEAD + 0.5
    print(f"\n{count} slow heads: probe {spread(probe.delays)} ms")
    assert probe.at(0.9) < 0.1


# -- too large -------------------------------------------------------------------------------------


def padded(size: int) -> bytes:
    """A good body of so many bytes."""
    head, tail = b'{"messages":[{"role":"user","content":"', b'"}]}'
    return head + b"a" * (size - len(head) - len(tail)) + tail


HUGE = b"Content-Length: 99999999999"
TOO_LARGE = {
    "large-announced": post(HUGE),
    "large-announced-with-expect": post(EXPECT, HUGE),
    "large-announced-19-digits": post(b"Content-Length: 9999999999999999999"),
    "large-announced-by-one": post(EXPECT, b"Content-Length: %d" % (MAX_BODY + 1)),
    "large-chunked": post(CHUNKED) + b"%x\r\n%b\r\n" % (MAX_BODY + 1, bytes(MAX_BODY + 1)),
    "large-many-chunks": post(CHUNKED) + (b"400\r\n%b\r\n" % bytes(1024)) * 1025,
    "large-expected": post(CHUNKED, EXPECT) + b"%x\r\n%b" % (2 << 30, bytes(MAX_BODY + 1)),
    "large-one-more": chat(padded(MAX_BODY + 1)),
}


@pytest.mark.parametrize("id", TOO_LARGE)
def test_a_body_that_is_too_large(gateway: FastGateway, sim: FaultBackend, id: str) -> None:
    """It is refused at once, before it has arrived, and without ``100 Continue``."""
    sim.reset()
    received = send_raw(gateway.port, TOO_LARGE[id], SMUGGLED)
    check_refused(gateway, received.answer, "413 request_too_large")
    assert received.answer.header("connection") == ["close"]
    assert received.answer.head_at - received.answer.asked < AT_ONCE
    assert sim.records == []


def test_too_large_bodies_cost_no_memory_and_no_file(gateway: FastGateway) -> None:
    data, resident = (
        post(CHUNKED) + b"%x\r\n" % (64 * MIB) + bytes(16 * MIB),
        gateway.reset_peak_memory(),
    )
    with ThreadPoolExecutor(4) as pool:
        all_received = list(pool.map(lambda _: send_raw(gateway.port, data), range(4)))
    grown = gateway.memory("VmHWM") - resident
    print(f"\n4 x 16 MiB refused: {grown / MIB:.1f} MiB")
    assert {received.answer.status for received in all_received} == {413}
    assert grown < 4 * (MAX_BODY * 4)
    files = []
    for link in Path(f"/proc/{gateway.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # a connection that was closed meanwhile
            files.append(os.readlink(link))
    assert not [name for name in files if name.endswith("(deleted)")]


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_small_chunks_cost_no_more_than_large_ones(gateway: FastGateway, size: int) -> None:
    """Bodies that lack their last byte, on open connections."""
    count = 4
    data = post(CHUNKED) + (b"%x\r\n%b\r\n" % (size, b"a" * size)) * ((MAX_BODY - 1) // size)
    resident = gateway.memory()
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(Client(gateway.port)).sock.sendall(data)
        wait_for(lambda: idle(gateway), 10, "all read")
        grown = gateway.memory() - resident
    print(f"\nchunks of {size}: {grown / count / MAX_BODY:.1f} bytes for each")
    assert grown < count * 4 * MAX_BODY


def idle(daemon: FastGateway) -> bool:
    """Whether it uses no processor time for a while."""
    before = daemon.cpu_seconds() + stolen_seconds(daemon.pid)
    time.sleep(0.1)
    return daemon.cpu_seconds() + stolen_seconds(daemon.pid) - before < 0.03


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_body_of_just_the_limit(gateway: FastGateway, sim: FaultBackend, framing: str) -> None:
    body = padded(MAX_BODY)
    data = chat(body) if framing == "length" else post(CHUNKED, CLOSE, body=chunked(body, 60_000))
    received = send_raw(gateway.port, data)
    assert received.answer.status == 200
    (record,) = sim.records_for(*received.answer.header("x-request-id"))
    assert record.body_sha256 == hashlib.sha256(body).hexdigest()


def test_a_client_that_waits_for_a_100_gets_it(gateway: FastGateway, sim: FaultBackend) -> None:
    with Client(gateway.port) as client:
        length = b"Content-Length: %d" % len(BODY)
        client.sock.sendall(post(EXPECT, length, CLOSE))
        assert client.sock.recv(99) == CONTINUE
        client.sock.sendall(BODY)
        answer = client.answer("")
    assert answer.status == 200
    (record,) = sim.records_for(*answer.header("x-request-id"))
    assert record.header("expect") == [] and record.violations == []


@pytest.mark.parametrize("how", ["finish", "reset"])
@pytest.mark.parametrize("framing", [b"Content-Length: 27", CHUNKED], ids=["length", "chunked"])
def test_a_client_that_disconnects_within_a_body(
    gateway: FastGateway, sim: FaultBackend, framing: bytes, how: str
) -> None:
    sim.reset()
    id = f"left-{how}-{framing[0:1].decode()}"
    with Client(gateway.port) as client:
        begun = b"1b\r\n0123456789" if framing == CHUNKED else b"0123456789"
        client.sock.sendall(post(framing, b"X-Request-ID: " + id.encode(), body=begun))
        time.sleep(0.05)
        getattr(client, how)()
        line = gateway.line(id)
    assert (line["status"], line["end"]) == (499, "client_gone")
    assert sim.records == []


def test_many_pipelined_requests_do_not_delay_other_clients(gateway: FastGateway) -> None:
    """The event loop runs other work between many requests of one segment."""
    count = 3000
    with (
        HealthProbe(gateway, every=0.002) as probe,
        Client(gateway.port) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        sent = pool.submit(client.sock.sendall, get(b"/healthz") * count)
        answers = 0
        while answers < count:
            answers += client.sock.recv(1 << 20).count(b"HTTP/1.1 ")
        sent.result()
    print(f"\n{count} pipelined requests: probe {spread(probe.delays)} ms")
    assert max(probe.delays) < 0.2


# -- what HTTP says --------------------------------------------------------------------------------

OTHER = "404 unknown_url"
METHOD = "405 method_not_allowed"
ANY = "400|404|405 bad_http|unknown_url|method_not_allowed"
METHODS = ["GET, HEAD, POST, OPTIONS"]
NO_TYPE = chat().replace(b"Content-Type", b"X-Type")
MEDIA = "415 unsupported_media_type"
REFUSED = {
    "method-get-on-chat": (get(b"/v1/chat/completions", CLOSE), METHOD, ["POST"]),
    "method-options-on-chat": (chat().replace(b"POST ", b"OPTIONS "), METHOD, ["POST"]),
    "method-post-on-healthz": (request(b"POST /healthz HTTP/1.1", CLOSE), METHOD, ["GET, HEAD"]),
    "method-delete": (request(b"DELETE /v1/models HTTP/1.1", CLOSE), METHOD, ["GET, HEAD"]),
    "method-unknown-path": (get(b"/v1/nothing", CLOSE), OTHER, []),
    "method-unknown-method": (request(b"BREW /healthz HTTP/1.1"), METHOD, METHODS),
    "method-lower-case-method": (request(b"get /healthz HTTP/1.1"), METHOD, METHODS),
    "method-connect": (request(b"CONNECT gateway:80 HTTP/1.1", CLOSE), ANY, None),
    "method-options-star": (request(b"OPTIONS * HTTP/1.1", CLOSE), ANY, None),
    "method-trace": (request(b"TRACE /healthz HTTP/1.1", CLOSE, b"X-Secret: echo"), METHOD, None),
    "type-none": (NO_TYPE, MEDIA, []),
    "type-text": (chat(media_type=b"text/plain"), MEDIA, []),
    "type-form": (chat(media_type=b"application/x-www-form-urlencoded"), MEDIA, []),
    "type-multipart": (chat(media_type=b"multipart/form-data"), MEDIA, []),
    "type-garbage": (chat(media_type=b"\xff;;="), MEDIA, []),
    "type-empty": (chat(media_type=b""), MEDIA, []),
    "type-twice": (chat(BODY, b"Content-Type: text/plain"), MEDIA, []),
    "type-list": (chat(media_type=b"application/json, text/plain"), MEDIA, []),
    "type-json-seq": (chat(media_type=b"application/json-seq"), MEDIA, []),
    "coding-gzip": (chat(BODY, b"Content-Encoding: gzip"), MEDIA, []),
    "coding-br": (chat(BODY, b"Content-Encoding: br"), MEDIA, []),
    "expect-other": (chat(BODY, b"Expect: 200-ok"), "417 bad_http", []),
}  # fmt: skip


@pytest.mark.parametrize("id", REFUSED)
def test_refusals_that_http_defines(gateway: FastGateway, sim: FaultBackend, id: str) -> None:
    sim.reset()
    data, expected, allow = REFUSED[id]
    received = send_raw(gateway.port, data)
    check_refused(gateway, received.answer, expected)
    assert allow is None or received.answer.header("allow") == allow
    assert b"echo" not in received.answer.body and sim.records == []


TAKEN = {
    "type-charset": chat(media_type=b"application/json; charset=utf-8"),
    "type-upper-case": chat(media_type=b"APPLICATION/JSON"),
    "coding-identity": chat(BODY, b"Content-Encoding: identity"),
    "coding-accept-html": chat(BODY, b"Accept: text/html"),
    "coding-accept-gzip": chat(BODY, b"Accept-Encoding: gzip, br"),
}


@pytest.mark.parametrize("id", TAKEN)
def test_requests_that_are_accepted(gateway: FastGateway, sim: FaultBackend, id: str) -> None:
    received = send_raw(gateway.port, TAKEN[id])
    assert received.answer.status == 200 and received.answer.header("content-encoding") == []
    (record,) = sim.records_for(*received.answer.header("x-request-id"))
    assert bytes(received.answer.body) == record.want_json_as(record.request_id or "")
    assert record.header("accept-encoding") in ([], ["identity"])


@pytest.mark.parametrize("path", ["/healthz", "/v1/models", "/v1/nothing", "/v1/chat/completions"])
def test_head_has_no_body(gateway: FastGateway, path: str) -> None:
    """The answer is a head only, and the connection stays usable."""
    with Client(gateway.port) as client:
        client.sock.sendall(f"HEAD {path} HTTP/1.1\r\nHost: gateway\r\n\r\n".encode())
        client.sock.sendall(get(b"/healthz", CLOSE))
        data = b""
        while more := client.sock.recv(65536):
            data += more
    head, health, empty = data.split(b"\r\n\r\n")[0], *data.rpartition(b"\r\n\r\n")[::2]
    assert head.lower().count(b"x-request-id: ") == 1 and b"Content-Length: " in head
    assert health.count(b"HTTP/1.1 ") == 2 and empty == b'{"status": "ok"}'
    assert data.count(b"\r\n\r\n") == 2


# -- too many --------------------------------------------------------------------------------------


class Limited(FastGateway):
    """A gateway with so many file descriptors."""

    def __init__(self, folder: Path, descriptors: int, *urls: str, **settings: str) -> None:
        super().__init__(folder, *urls, **settings)
        resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (descriptors, descriptors))


def test_thousands_of_idle_connections(
    sim: FaultBackend, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """5,000 connections, of which the last 100 are too many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = min(5600, 5600 if hard == resource.RLIM_INFINITY else hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(room, soft), hard))
    count = room - 600
    daemon = Limited(
        tmp_path_factory.mktemp("idle"), room, sim.url,
        limits_connections=f"{count - 100}", timeouts_request_head="60", timeouts_client_idle="60",
    )  # fmt: skip
    try:
        with watched(daemon, sim, growth=100 * MIB), ExitStack() as stack:
            alone = quick(daemon, 50)
            resident = daemon.memory()
            for _ in range(count - 200):
                stack.enter_context(Client(daemon.port))
            wait_for(lambda: daemon.descriptors() > count - 200, 20, "all accepted")
            grown = daemon.memory() - resident
            among = quick(daemon, 100)
            print(f"\n{count - 200} idle connections: {grown / (count - 200):.0f} bytes each; "
                  f"alone {spread(alone)}, among them {spread(among)} ms")  # fmt: skip
            assert grown < 100 * MIB
            assert spread_of(among) < max(2 * spread_of(alone), 0.1)
            surplus = [stack.enter_context(Client(daemon.port)) for _ in range(300)]
            received = [client.answer("") for client in surplus[-100:]]
            for answer in received:
                assert answer.status == 503 and answer.header("retry-after") == ["1"]
                assert len(answer.header("x-request-id")) == 1
                check_error(bytes(answer.body), "overloaded", "server_error")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def quick(daemon: FastGateway, count: int) -> list[float]:
    """Requests one after another, 100 in a second."""
    delays = []
    for _ in range(count):
        began = time.monotonic()
        assert ask(daemon).status == 200
        delays.append(time.monotonic() - began)
        time.sleep(max(0.0, 0.01 - delays[-1]))
    return delays


def spread_of(samples: list[float]) -> float:
    """The 99th percentile."""
    return sorted(samples)[int((len(samples) - 1) * 0.99)]


def test_a_lack_of_descriptors_costs_no_processor_time(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """It runs, is idle, and serves again."""
    settings = {"timeouts_request_head": "30", "timeouts_client_idle": "30"}
    daemon = Limited(tmp_path_factory.mktemp("few"), 256, **settings)
    with watched(daemon, warm=False):
        with ExitStack() as stack:
            for _ in range(400):
                stack.enter_context(Client(daemon.port))
            before, cpu, lines = time.monotonic(), daemon.cpu_seconds(), daemon.output.count("\n")
            time.sleep(2)
            used = (daemon.cpu_seconds() - cpu) / (time.monotonic() - before)
            lines = daemon.output.count("\n") - lines
        print(f"\nwithout descriptors: {used:.0%} of a processor, {lines} lines of log in 2 s")
        began = time.monotonic()
        with Client(daemon.port) as client:
            client.sock.sendall(get(b"/healthz"))
            assert client.answer("").status == 200
        assert time.monotonic() - began < AT_ONCE
        assert used < 0.5
        assert lines <= 3
