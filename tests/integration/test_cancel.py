"""Clients that disconnect in each phase of a request: the backend connection is closed at once.

The backend runs in this process, so that one clock measures both ends of each latency.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import attrs
import pytest

from tests.certificates import certificate
from tests.faultbackend import ConnectionRecord, FaultBackend, Record, blackhole
from tests.integration.client import Answer, Client
from tests.integration.expectations import Whole, cancelled_at, play, spread
from tests.integration.gateways import MIB, FastGateway, watched
from tests.integration.processes import wait_for

#: Seconds within which the backend must see the end of its connection.
AT_ONCE = 0.25
#: How often each phase is played.
TIMES = 20

SETTINGS = {"limits_in_flight": "1000", "timeouts_first_byte": "30", "timeouts_idle": "30"}
LONG = {**SETTINGS, "timeouts_total": "60", "timeouts_client_write": "30"}


Summary = dict[str, list[float]]


@attrs.frozen
class Phase:
    """The phase of a request in which its client disconnects.

    :param reached: whether the phase is reached, by the backend's record and the client's answer.
    :param behind: bytes that the client sends after its request.
    """

    name: str
    fault: str
    stream: bool
    reached: Callable[[Record, Answer], bool] = lambda record, answer: record.complete
    behind: bytes = b""
    receive_buffer: int = 0


def committed(record: Record, answer: Answer) -> bool:
    return len(answer.arrivals) >= 2


def half_sent(record: Record, answer: Answer) -> bool:
    return record.sent_bytes > 300


class Plateau:
    """Whether the backend is blocked: it could send nothing for a quarter of a second."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[int, float]] = {}

    def __call__(self, record: Record, answer: Answer) -> bool:
        now = time.monotonic()
        sent, since = self.seen.get(id(record), (-1, now))
        if sent != record.sent_bytes:
            self.seen[id(record)] = record.sent_bytes, now
        return bool(sent) and sent == record.sent_bytes and now - since > 0.25


PIPELINED = b"x" * 20_000

PHASES = [
    Phase("json-waiting-for-the-head", "hang", False),
    Phase("sse-waiting-for-the-head", "hang", True),
    Phase("json-half-a-head", "stall-mid-headers", False, lambda r, a: r.sent_bytes > 0),
    Phase("sse-half-a-head", "stall-mid-headers", True, lambda r, a: r.sent_bytes > 0),
    Phase("json-mid-body", "stall-mid-body", False, half_sent),
    Phase("json-dripping", "drip:2:0.05", False, lambda r, a: r.sent_bytes > 0),
    Phase("sse-mid-stream", "tokens:1000:0.05", True, committed),
    Phase("sse-silent", "stall-after:2", True, committed),
    Phase("sse-silent-mid-event", "stall-mid-body:2", True, committed),
    Phase("json-slow-first-byte", "slow-first-byte:20", False),
    Phase("sse-slow-first-byte", "slow-first-byte:20", True),
    Phase("sse-comments-only", "head-immediately:20:0.1", True, lambda r, a: r.sent_bytes > 250),
    Phase("json-pipelined", "hang", False, behind=PIPELINED),
    Phase("sse-pipelined", "hang", True, behind=PIPELINED),
    Phase("sse-mid-stream-pipelined", "stall-after:2", True, committed, behind=PIPELINED),
    Phase("sse-paused", "endless", True, Plateau(), receive_buffer=16384),
]  # fmt: skip


@pytest.fixture(scope="module")
def sim() -> Iterator[FaultBackend]:
    with FaultBackend(so_sndbuf=65536) as backend:
        yield backend


@pytest.fixture(scope="module")
def gateway(sim: FaultBackend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastGateway]:
    with watched(FastGateway(tmp_path_factory.mktemp("cancel"), sim.url, **LONG), sim) as daemon:
        yield daemon


@pytest.fixture(scope="module", autouse=True)
def summary() -> Iterator[Summary]:
    """Seconds from each disconnect until the backend saw it, by phase; printed at the end."""
    latencies: Summary = {}
    yield latencies
    for name, samples in latencies.items():
        assert samples, f"{name} failed"
        print(f"\n{name:40} {spread(samples):>22} ms (p50 / p99 / max of {len(samples)})", end="")
    every = [sample for samples in latencies.values() for sample in samples]
    print(f"\nall phases: {spread(every)} ms (p50 / p99 / max of {len(every)})")


@attrs.frozen
class Request:
    """A client and the answer to its request."""

    client: Client
    answer: Answer

    @classmethod
    def sent(cls, stack: ExitStack, daemon: FastGateway, phase: Phase) -> Request:
        client = stack.enter_context(Client(daemon.port, receive_buffer=phase.receive_buffer))
        id = client.send_chat(phase.fault, phase.stream, behind=phase.behind)
        return cls(client, Answer(id, time.monotonic()))

    def wait(self, sim: FaultBackend, phase: Phase) -> Record:
        """Wait until the phase is reached; return the backend's record."""
        while phase.reached is committed and len(self.answer.arrivals) < 2:
            self.client.more(self.answer)
        wait_for(lambda: sim.records_for(self.answer.id), 5, f"{phase.name} at the backend")
        (record,) = sim.records_for(self.answer.id)
        wait_for(lambda: phase.reached(record, self.answer), 5, phase.name)
        return record

    def disconnect(self, how: str) -> float:
        disconnected = time.monotonic()
        self.client.finish() if how == "fin" else self.client.reset()
        return disconnected


def closed_at(connection: ConnectionRecord) -> float | None:
    return connection.closed


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
def test_the_backend_request_is_cancelled_at_once(
    gateway: FastGateway, sim: FaultBackend, summary: Summary, phase: Phase, how: str
) -> None:
    with ExitStack() as stack:
        times = TIMES // 4 if phase.receive_buffer else TIMES
        requests = [Request.sent(stack, gateway, phase) for _ in range(times)]
        records = [request.wait(sim, phase) for request in requests]
        latencies = summary[f"{phase.name} {how}"] = []
        for request, record in zip(requests, records, strict=True):
            sent = record.sent
            disconnected = request.disconnect(how)
            seen = wait_for(partial(cancelled_at, record), 5, f"{phase.name}: a cancel")
            latencies.append(seen - disconnected)
            assert record.sent - sent < 3
            assert record.violations == []
    assert max(latencies) < AT_ONCE
    begun = phase.reached is committed or phase.receive_buffer
    for request in requests:
        line = gateway.line(request.answer.id)
        assert (line["end"], line["status"]) == ("client_gone", 200 if begun else 499)
    gateway.check_health()


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_a_disconnect_while_connecting_cancels_the_connect(
    tmp_path: Path, summary: Summary, how: str
) -> None:
    with blackhole() as port:
        url = f"http://127.0.0.1:{port}"
        with watched(FastGateway(tmp_path, url, timeouts_connect="20")) as daemon:
            latencies = summary[f"connecting {how}"] = []
            for stream in (False, True) * 5:
                with Client(daemon.port) as client:
                    id = client.send_chat("", stream)
                    wait_for(lambda: syn_sent(port, daemon.pid) == 1, 5, "a connect")
                    disconnected = time.monotonic()
                    client.finish() if how == "fin" else client.reset()
                    line = daemon.line(id)
                    assert (line["end"], line["status"]) == ("client_gone", 499)
                    wait_for(lambda: syn_sent(port, daemon.pid) == 0, 5, "no connect")
                    latencies.append(time.monotonic() - disconnected)
            assert max(latencies) < AT_ONCE


def syn_sent(port: int, pid: int) -> int:
    """The number of sockets of a process that are connecting to this port."""
    sockets = {path.readlink().name for path in links(pid)}
    connecting = 0
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[3] == "02" and int(words[2].partition(":")[2], 16) == port:
            connecting += f"socket:[{words[9]}]" in sockets
    return connecting


def links(pid: int) -> Iterator[Path]:
    for path in Path(f"/proc/{pid}/fd").iterdir():
        if path.is_symlink():
            yield path


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_a_backend_request_over_tls_is_cancelled(
    tmp_path: Path, summary: Summary, how: str
) -> None:
    """The backend never answers a close_notify."""
    pair = certificate(tmp_path, "sim")
    with (
        FaultBackend(tls=pair, answer_close_notify=False, so_sndbuf=65536) as sim,
        watched(FastGateway(tmp_path, sim.url, tls_ca=pair[0], **LONG), sim) as daemon,
    ):
        for phase in PHASES:
            if phase.behind or phase.receive_buffer:
                continue
            with ExitStack() as stack:
                requests = [Request.sent(stack, daemon, phase) for _ in range(5)]
                records = [request.wait(sim, phase) for request in requests]
                latencies = summary[f"{phase.name} {how}, TLS"] = []
                for request, record in zip(requests, records, strict=True):
                    disconnected = request.disconnect(how)
                    (connection,) = [c for c in sim.connections if c.number == record.connection]
                    closed = wait_for(partial(closed_at, connection), 5, f"{phase.name}, TLS")
                    latencies.append(closed - disconnected)
            assert max(latencies) < AT_ONCE
        daemon.check_health()


def test_three_hundred_streams_at_once(
    gateway: FastGateway, sim: FaultBackend, summary: Summary
) -> None:
    idle = gateway.descriptors() - sim.connections_open
    resident = gateway.memory()
    phase = Phase("300 streams", "tokens:1000:0.5", True, committed)
    with ExitStack() as stack:
        requests = [Request.sent(stack, gateway, phase) for _ in range(300)]
        records = [request.wait(sim, phase) for request in requests]
        disconnected = time.monotonic()
        for request in requests:
            request.client.reset()
    wait_for(lambda: all(record.peer_left for record in records), 5, "300 cancels")
    latencies = [record.peer_left - disconnected for record in records if record.peer_left]
    summary["300 streams at once"] = latencies
    assert max(latencies) < 1.0
    wait_for(lambda: gateway.descriptors() - sim.connections_open <= idle, 2, "descriptors back")
    assert gateway.memory() - resident < 8 * MIB
    with ThreadPoolExecutor(20) as pool:
        for case in pool.map(lambda _: play(gateway, sim, "", True), range(50)):
            Whole().check(case)
    for request in requests:
        assert gateway.line(request.answer.id)["end"] == "client_gone"
    gateway.check_health()
