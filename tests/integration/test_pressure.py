"""Clients that do not read, too many clients, many requests: memory and descriptors are bounded."""

from __future__ import annotations

import asyncio
import random
import resource
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests import faultbackend_faults
from tests.certificates import certificate
from tests.faultbackend import FaultBackend, Record
from tests.integration.client import Answer, Client, ask
from tests.integration.expectations import check_error, play, spread
from tests.integration.gateways import (
    CLIENT_WRITE,
    MAX_IN_FLIGHT,
    MAX_REPLY,
    MIB,
    PATIENT,
    FastGateway,
    ini,
    watched,
)
from tests.integration.healthprobe import HealthProbe, stolen_seconds
from tests.integration.processes import Gateway, wait_for
from tests.integration.raw import post

KIB = 1024
RECEIVE_BUFFER = 16 * KIB
#: Bytes of memory that a stalled reader may cost.
EACH = 256 * KIB


@pytest.fixture(scope="module")
def sim() -> Iterator[FaultBackend]:
    # Bytes that the backend's own kernel still holds cannot be held back by the gateway.
    with FaultBackend(so_sndbuf=64 * KIB) as backend:
        yield backend


@pytest.fixture(scope="module")
def gateway(sim: FaultBackend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastGateway]:
    folder = tmp_path_factory.mktemp("pressure")
    with watched(FastGateway(folder, sim.url, **PATIENT), sim, growth=80 * MIB) as daemon:
        yield daemon


def check_delays(probe: HealthProbe) -> None:
    """The 100 ms of docs/protocol.rst, for a busy gateway."""
    print(f"\nneighbour: {spread(probe.delays)} ms")
    assert probe.at(0.9) < 0.1
    assert max(probe.delays) < 1


def stalled(stack: ExitStack, daemon: FastGateway, sim: FaultBackend, count: int) -> list[Record]:
    """Clients that request an endless stream and read nothing of it."""
    clients = [
        stack.enter_context(Client(daemon.port, receive_buffer=RECEIVE_BUFFER))
        for _ in range(count)
    ]
    ids = [client.send_chat("endless", True) for client in clients]
    wait_for(lambda: all(sim.records_for(id) for id in ids), 10, "all at the backend")
    return [sim.records_for(id)[0] for id in ids]


def plateau(records: list[Record]) -> list[int]:
    """Wait until the backend can send nothing more; return the number of bytes that it has sent."""
    sent: list[int] = []
    while sent != (sent := [record.sent_bytes for record in records]):
        time.sleep(0.4)
    return sent


@pytest.mark.parametrize("count", [1, 20])
def test_a_client_that_does_not_read_pauses_its_backend(
    gateway: FastGateway, sim: FaultBackend, count: int
) -> None:
    """Memory is bounded, then the client is disconnected."""
    with ExitStack() as stack, HealthProbe(gateway) as probe:
        with ExitStack() as once:  # what every first time costs
            plateau(stalled(once, gateway, sim, 1))
        resident = gateway.memory()
        began = time.monotonic()
        records = stalled(stack, gateway, sim, count)
        before = plateau(records)
        grown = gateway.memory() - resident
        print(f"\n{count} stalled readers: {grown / count / KIB:.0f} KiB each, backend sent "
              f"{max(before) / KIB:.0f} KiB at most")  # fmt: skip
        assert max(before) < 4 * MIB
        assert grown < count * EACH + MIB // 2
        wait_for(lambda: all(r.peer_left for r in records), CLIENT_WRITE + 5, "the end of them")
        left = [record.peer_left - began for record in records if record.peer_left]
        assert min(left) > CLIENT_WRITE - 0.5
        assert max(left) < CLIENT_WRITE + (1.0 if count == 1 else 4.0)
        for record in records:
            line = gateway.line(str(record.request_id))
            assert (line["end"], line["status"]) == ("client_gone", 200)
    check_delays(probe)
    gateway.check_health()


def test_a_slow_reader_is_not_disconnected(gateway: FastGateway, sim: FaultBackend) -> None:
    """It reads a little at intervals, for longer than ``client_write``."""
    with Client(gateway.port, receive_buffer=RECEIVE_BUFFER) as client:
        answer = Answer(client.send_chat("huge:1MB", True), time.monotonic())
        began = time.monotonic()
        while time.monotonic() - began < CLIENT_WRITE + 2 and not answer.whole:
            client.sock.settimeout(5)
            answer.feed(client.sock.recv(8192))
            time.sleep(0.05)
        while not answer.whole:
            client.more(answer)
            assert not answer.ended, answer
    (record,) = sim.records_for(answer.id)
    assert answer.payloads() == [*record.want_as(answer.id), b"[DONE]"]
    assert gateway.line(answer.id)["end"] == "complete"


def test_slow_readers_of_large_replies(gateway: FastGateway, sim: FaultBackend) -> None:
    """With 10 clients."""
    count = 10
    resident = gateway.memory()

    def read_late(_: int) -> Answer:
        with Client(gateway.port, receive_buffer=RECEIVE_BUFFER) as client:
            id = client.send_chat("huge:7MB", False)
            time.sleep(1.5)
            return client.answer(id)

    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(read_late, n) for n in range(count)]
        most = 0
        while not all(future.done() for future in futures):
            most = max(most, gateway.memory() - resident)
            time.sleep(0.02)
        for future in futures:
            answer = future.result()
            (record,) = sim.records_for(answer.id)
            assert bytes(answer.body) == record.want_json_as(answer.id)
    print(f"\nslow readers of 7 MiB: {most / count / MIB:.1f} MiB each")
    # Two more, because a reply is in memory twice while its parts are joined.
    assert most < (count + 2) * (MAX_REPLY + MIB)
    gateway.check_health()


def test_too_many_at_once_are_refused_at_once(
    gateway: FastGateway, sim: FaultBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = threading.Event()

    async def until_told() -> None:
        while not stopped.is_set():
            await asyncio.sleep(0.01)

    def held(reply: faultbackend_faults.Reply) -> None:
        reply.before.append(until_told)

    monkeypatch.setitem(faultbackend_faults.FAULTS, "held", held)

    def one(client: Client, number: int) -> Answer:
        began = time.monotonic()
        return client.answer(client.send_chat("held", number % 2 == 0), began)

    def refuse(client: Client, number: int) -> Answer:
        waited = stolen_seconds(gateway.pid)
        answer = one(client, number)
        answer.asked += stolen_seconds(gateway.pid) - waited
        return answer

    sim.reset()
    surplus = 100
    with ExitStack() as stack, HealthProbe(gateway) as probe:
        clients = [stack.enter_context(Client(gateway.port)) for _ in range(MAX_IN_FLIGHT)]
        later = [stack.enter_context(Client(gateway.port)) for _ in range(surplus)]
        with ThreadPoolExecutor(MAX_IN_FLIGHT) as pool:
            first = [pool.submit(one, client, n) for n, client in enumerate(clients)]
            wait_for(lambda: len(sim.records) == MAX_IN_FLIGHT, 5, "a full gateway")
            refused = [refuse(client, number) for number, client in enumerate(later)]
            stopped.set()
            served = [future.result() for future in first]
    assert [(answer.status, answer.whole) for answer in served] == [(200, True)] * MAX_IN_FLIGHT
    assert [answer.status for answer in refused] == [503] * surplus
    for answer in refused:
        check_error(bytes(answer.body), "overloaded", "server_error")
        assert answer.header("retry-after") and not sim.records_for(answer.id)
        assert gateway.line(answer.id)["end"] == "refused"
    waited = [answer.seconds for answer in refused]
    print(f"\nrefused after {spread(waited)} ms")
    assert max(waited) < 0.05 + 0.1
    check_delays(probe)
    assert ask(gateway).status == 200


MIXED = (
    *("", "", "", "", "coalesce", "crlf", "utf8", "tools", "tokens:20", "no-done", "eof-body"),
    *("reset-mid-body", "close-mid-body", "chunked-truncated", "bad-chunk", "end-after:2"),
    *("error-event:1", "error-event:0", "not-json:1", "empty-stream", "done-early:2", "surplus"),
    *("garbage", "http09", "reset-mid-headers", "close-after-request", "switch", "1xx:103:3"),
    *("status:400", "status:500:html", "status:503", "redirect:302", "json-body:text", "gzip"),
    *("huge-header:64KB", "stale-next:rst", "stale-next:fin", "huge:200KB", "after-done"),
    *("leave", "leave"),
)


def test_thousands_of_mixed_requests_leave_nothing_behind(
    gateway: FastGateway, sim: FaultBackend
) -> None:
    """With 3,000 requests."""
    rng = random.Random(10)

    def one(fault: str, stream: bool) -> None:
        if fault == "leave":
            with Client(gateway.port) as client:
                id = client.send_chat("stall-after:1", stream)
                wait_for(lambda: sim.records_for(id), 5, "a request")
                client.reset()
            return
        answer = ask(gateway, fault, stream)
        assert answer.status in (200, 400, 500, 502, 503), (fault, answer)
        assert answer.header("x-request-id") == [answer.id]
        assert answer.whole or b'"error"' in answer.body

    def thousand() -> tuple[int, int]:
        with ThreadPoolExecutor(16) as pool:
            jobs = [(rng.choice(MIXED), rng.random() < 0.5) for _ in range(1000)]
            for future in [pool.submit(one, *job) for job in jobs]:
                future.result()
        assert [record for record in sim.records if record.violations] == []
        sim.reset()
        wait_for(lambda: sim.connections_open <= 16, 5, "connections closed")
        return gateway.memory(), gateway.descriptors() - sim.connections_open

    (_, descriptors), (first, _), (second, after) = thousand(), thousand(), thousand()
    print(f"\nRSS grew by {(second - first) / KIB:.0f} KiB in the last 1000 of 3000 requests")
    assert after <= descriptors
    assert second - first < MIB
    gateway.check_health()
    ends = {line["end"] for lines in gateway.lines().values() for line in lines}
    assert ends >= {"complete", "backend_error", "backend_truncated", "client_gone", "refused"}
    assert "internal" not in ends
    assert play(gateway, sim, "", True).answer.whole


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("count", [1, 8])
def test_a_client_that_does_not_read_gets_no_further_answers(
    tls: bool, count: int, tmp_path: Path
) -> None:
    """Clients send thousands of pipelined requests and read no byte of an answer."""
    pair = certificate(tmp_path, "gateway")
    section = {"tls_certificate": pair[0], "tls_key": pair[1]} if tls else {}
    trust = ssl.create_default_context(cafile=pair[0]) if tls else None
    with Gateway(folder=tmp_path, config=ini(gateway=section), trust=trust) as echo:
        body = b'{"messages":[{"role":"user","content":"%b"}]}' % (b"x" * 20 * KIB)
        data = post(b"Content-Length: %d" % len(body), body=body)
        with ExitStack() as stack:
            clients = [stack.enter_context(Client(echo.port, tls=trust)) for _ in range(count)]
            for client in clients:  # what every first time costs
                client.sock.sendall(data)
                client.more(Answer("", 0.0))
                client.sock.settimeout(0.01)
            before, end = resident(echo.pid), time.monotonic() + 3
            left = [data] * count
            while time.monotonic() < end:
                for number, client in enumerate(clients):
                    with suppress(OSError):  # it is full
                        left[number] = left[number][client.sock.send(left[number]) :] or data
            grown = resident(echo.pid) - before
            print(f"\n{count} that only send: {grown / count / KIB:.0f} KiB each")
            assert grown < count * MIB // 2 + 4 * MIB


def resident(pid: int) -> int:
    """Resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
