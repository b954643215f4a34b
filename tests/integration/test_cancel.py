"""Clients that leave, in every phase of their request: the backend sees its peer leave at once.

The backend runs in this process, so that both ends of each latency are read off one clock.
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
from tests.integration.faults import (
    MIB,
    Answer,
    Client,
    Daemon,
    Whole,
    play,
    spread,
    wait_for,
    watched,
)

#: Seconds until the backend must have seen its peer leave.
AT_ONCE = 0.25
#: How often each phase is played.
TIMES = 20

SETTINGS = {"limits_in_flight": "1000", "timeouts_first_byte": "30", "timeouts_idle": "30"}
LONG = {**SETTINGS, "timeouts_total": "60", "timeouts_client_write": "30"}


Summary = dict[str, list[float]]


@attrs.frozen
class Phase:
    """What a request is in when its client leaves.

    :param reached: whether it is there, by what the backend recorded and the client has read.
    :param behind: bytes that the client sends behind its request.
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
    """Whether the backend was stopped in its sending: nothing more for a quarter of a second."""

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
def gateway(sim: FaultBackend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with watched(Daemon(tmp_path_factory.mktemp("cancel"), sim.url, **LONG), sim) as daemon:
        yield daemon


@pytest.fixture(scope="module", autouse=True)
def summary() -> Iterator[Summary]:
    """Seconds from a client's leaving until its backend saw it, by phase; printed at the end."""
    latencies: Summary = {}
    yield latencies
    for name, samples in latencies.items():
        assert samples, f"{name} failed"
        print(f"\n{name:40} {spread(samples):>22} ms (p50 / p99 / max of {len(samples)})", end="")
    every = [sample for samples in latencies.values() for sample in samples]
    print(f"\nall phases: {spread(every)} ms (p50 / p99 / max of {len(every)})")


@attrs.frozen
class Caller:
    """A client and what it knows of its request."""

    client: Client
    answer: Answer

    @classmethod
    def asking(cls, stack: ExitStack, daemon: Daemon, phase: Phase) -> Caller:
        client = stack.enter_context(Client(daemon.port, phase.receive_buffer))
        id = client.ask(phase.fault, phase.stream, behind=phase.behind)
        return cls(client, Answer(id, time.monotonic()))

    def wait(self, sim: FaultBackend, phase: Phase) -> Record:
        """Until the phase is reached; return the backend's record."""
        while phase.reached is committed and len(self.answer.arrivals) < 2:
            self.client.more(self.answer)
        wait_for(lambda: sim.records_for(self.answer.id), 5, f"{phase.name} at the backend")
        (record,) = sim.records_for(self.answer.id)
        wait_for(lambda: phase.reached(record, self.answer), 5, phase.name)
        return record

    def leave(self, how: str) -> float:
        left = time.monotonic()
        self.client.finish() if how == "fin" else self.client.reset()
        return left


def left_at(record: Record) -> float | None:
    return record.peer_left


def closed_at(connection: ConnectionRecord) -> float | None:
    return connection.closed


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
def test_the_backend_is_left_at_once(
    gateway: Daemon, sim: FaultBackend, summary: Summary, phase: Phase, how: str
) -> None:
    with ExitStack() as stack:
        times = TIMES // 4 if phase.receive_buffer else TIMES
        callers = [Caller.asking(stack, gateway, phase) for _ in range(times)]
        records = [caller.wait(sim, phase) for caller in callers]
        latencies = summary[f"{phase.name} {how}"] = []
        for caller, record in zip(callers, records, strict=True):
            sent = record.sent
            left = caller.leave(how)
            seen = wait_for(partial(left_at, record), 5, f"{phase.name}: a cancel")
            latencies.append(seen - left)
            assert record.sent - sent < 3
            assert record.violations == []
    assert max(latencies) < AT_ONCE
    begun = phase.reached is committed or phase.receive_buffer
    for caller in callers:
        line = gateway.line(caller.answer.id)
        assert (line["end"], line["status"]) == ("client_gone", 200 if begun else 499)
    gateway.is_well()


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_leaving_while_connecting_abandons_the_connect(
    tmp_path: Path, summary: Summary, how: str
) -> None:
    with blackhole() as port:
        url = f"http://127.0.0.1:{port}"
        with watched(Daemon(tmp_path, url, timeouts_connect="20")) as daemon:
            latencies = summary[f"connecting {how}"] = []
            for stream in (False, True) * 5:
                with Client(daemon.port) as client:
                    id = client.ask("", stream)
                    wait_for(lambda: syn_sent(port, daemon.pid) == 1, 5, "a connect")
                    left = time.monotonic()
                    client.finish() if how == "fin" else client.reset()
                    line = daemon.line(id)
                    assert (line["end"], line["status"]) == ("client_gone", 499)
                    wait_for(lambda: syn_sent(port, daemon.pid) == 0, 5, "no connect")
                    latencies.append(time.monotonic() - left)
            assert max(latencies) < AT_ONCE


def syn_sent(port: int, pid: int) -> int:
    """How many sockets of a process are connecting to this port."""
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
def test_the_backend_is_left_over_tls(tmp_path: Path, summary: Summary, how: str) -> None:
    """The backend's side never answers a close_notify."""
    pair = certificate(tmp_path, "sim")
    with (
        FaultBackend(tls=pair, answer_close_notify=False, so_sndbuf=65536) as sim,
        watched(Daemon(tmp_path, sim.url, tls_ca=pair[0], **LONG), sim) as daemon,
    ):
        for phase in PHASES:
            if phase.behind or phase.receive_buffer:
                continue
            with ExitStack() as stack:
                callers = [Caller.asking(stack, daemon, phase) for _ in range(5)]
                records = [caller.wait(sim, phase) for caller in callers]
                latencies = summary[f"{phase.name} {how}, TLS"] = []
                for caller, record in zip(callers, records, strict=True):
                    left = caller.leave(how)
                    (connection,) = [c for c in sim.connections if c.number == record.connection]
                    closed = wait_for(partial(closed_at, connection), 5, f"{phase.name}, TLS")
                    latencies.append(closed - left)
            assert max(latencies) < AT_ONCE
        daemon.is_well()


def test_three_hundred_streams_at_once(
    gateway: Daemon, sim: FaultBackend, summary: Summary
) -> None:
    idle = gateway.descriptors() - sim.connections_open
    resident = gateway.memory()
    phase = Phase("300 streams", "tokens:1000:0.5", True, committed)
    with ExitStack() as stack:
        callers = [Caller.asking(stack, gateway, phase) for _ in range(300)]
        records = [caller.wait(sim, phase) for caller in callers]
        left = time.monotonic()
        for caller in callers:
            caller.client.reset()
    wait_for(lambda: all(record.peer_left for record in records), 5, "300 cancels")
    latencies = [record.peer_left - left for record in records if record.peer_left]
    summary["300 streams at once"] = latencies
    assert max(latencies) < 1.0
    wait_for(lambda: gateway.descriptors() - sim.connections_open <= idle, 2, "descriptors back")
    assert gateway.memory() - resident < 8 * MIB
    with ThreadPoolExecutor(20) as pool:
        for case in pool.map(lambda _: play(gateway, sim, "", True), range(50)):
            Whole().check(case)
    for caller in callers:
        assert gateway.line(caller.answer.id)["end"] == "client_gone"
    gateway.is_well()
