"""``workers = 2``: a supervisor with two workers that serve one port.

Measured times are printed at the end (``pytest -s``).
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.faultbackend import FaultBackend
from tests.integration.client import Client, ask, crowd, get
from tests.integration.expectations import cancelled_at, check_error, is_whole, reached
from tests.integration.gateways import in_front_of, ini
from tests.integration.processes import AT_ONCE, Gateway, free_port, wait_for
from tests.integration.reports import ends, log_lines, logged, metric
from tests.integration.systemd import activated, notices

TWO = {"workers": 2}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "access.log"


@pytest.fixture(scope="module")
def base(sim: FaultBackend, log: Path) -> str:
    backend = {"url": sim.url, "models": "m"}
    return ini(backend__b=backend, log={"access": log}, gateway=TWO)


@pytest.fixture(scope="module")
def gateway(base: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with Gateway(folder=tmp_path_factory.mktemp("workers"), config=base) as gateway:
        gateway.wait_for_workers()
        yield gateway


def clients_of(worker: int, gateway: Gateway) -> int:
    """The number of client connections of a worker."""
    sockets = set()
    for link in Path(f"/proc/{worker}/fd").iterdir():
        if link.is_symlink():
            sockets.add(link.readlink().name)
    count = 0
    for line in Path(f"/proc/{worker}/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        ours = int(words[1].partition(":")[2], 16) == gateway.port and words[3] == "01"
        count += ours and f"socket:[{words[9]}]" in sockets
    return count


def settled(gateway: Gateway, clients: int) -> None:
    """Wait until the workers have so many clients; earlier connections may still be closing."""
    wait_for(
        lambda: sum(clients_of(worker, gateway) for worker in gateway.workers()) == clients,
        5,
        f"{clients} clients",
    )


def reload(gateway: Gateway, config: str) -> None:
    """Reload, and wait until both workers have reported it."""
    before = gateway.output.count("reloaded:")
    gateway.reload(config)
    wait_for(lambda: gateway.output.count("reloaded:") >= before + 2, 5, "both reloads")


def servers(gateway: Gateway) -> set[str]:
    """The Server headers on several connections."""
    answers = [get(gateway, "/healthz") for _ in range(20)]
    return {answer.header("server")[0] for answer in answers}


def test_both_get_work_and_the_metrics_are_those_of_both(
    gateway: Gateway, sim: FaultBackend
) -> None:
    def page() -> bytes:
        return bytes(get(gateway, "/metrics").body)

    with crowd(gateway) as clients:
        clients.begin(40, "both", "tokens:40:0.05", True)
        sim.wait_for(lambda: reached(sim, clients.ids))
        settled(gateway, 40)
        assert all(clients_of(worker, gateway) for worker in gateway.workers())
        # Each worker reports its figures every second.
        wait_for(lambda: metric(page(), "gatewayd_requests_in_flight") >= 40, 5, "40 in flight")
        assert all(is_whole(answer, sim) for answer in clients.answers())
    counted = {"route": "/v1/chat/completions", "end": "complete", "model": "m"}
    wait_for(lambda: metric(page(), "gatewayd_requests_total", **counted) == 40, 2, "40 counted")
    assert metric(page(), "gatewayd_events_total", backend="b") >= 40 * 40
    assert metric(page(), "gatewayd_backend_usable", backend="b") == 1
    assert "pid=" not in page().decode()


def test_a_reload_reaches_both_and_broken_settings_change_neither(
    gateway: Gateway, base: str
) -> None:
    reload(gateway, base + "api_title = second\n")
    assert servers(gateway) == {"second"}
    printed = gateway.reload(base + "api_titel = third\n")
    assert printed.count("api_titel") == printed.count("stay as they were") == 1
    assert servers(gateway) == {"second"}
    reload(gateway, base)
    assert servers(gateway) == {"gatewayd"}


def test_rotation_loses_and_doubles_no_line(gateway: Gateway, base: str, log: Path) -> None:
    over = threading.Event()

    def run_client(number: int) -> list[str]:
        ids: list[str] = []
        while not over.is_set():
            ids.append(f"rotated-{number}-{len(ids)}")
            assert ask(gateway, id=ids[-1]).status == 200
        return ids

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(run_client, number) for number in range(4)]
        for n in range(3):
            log.rename(log.with_suffix(f".{n}"))
            reload(gateway, base)
        over.set()
        ids = [id for one in asking for id in one.result()]
    assert len(logged(ids, log, *(log.with_suffix(f".{n}") for n in range(3)))) == len(ids)


def test_workers_that_stop_lose_no_counts(base: str, tmp_path: Path) -> None:
    with Gateway(folder=tmp_path, config=base) as gateway:
        gateway.wait_for_workers()
        assert [ask(gateway).status for _ in range(40)] == [200] * 40
        stopped = gateway.workers()
        for pid in stopped:
            os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not {*stopped} & {*gateway.workers()}, 5, "the end of both")
        gateway.wait_for_workers()
        page = bytes(get(gateway, "/metrics").body)
        chats = {"route": "/v1/chat/completions", "end": "complete"}
        assert metric(page, "gatewayd_requests_total", **chats) == 40
        name = "gatewayd_request_duration_seconds_count"
        assert metric(page, name, route=chats["route"]) == 40


def test_only_the_streams_of_a_worker_that_is_killed_end_and_they_end_with_a_cut(
    gateway: Gateway, sim: FaultBackend, base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = metric(bytes(get(gateway, "/metrics").body), "gatewayd_requests_total")
    with crowd(gateway) as clients:
        clients.begin(40, "killed", "tokens:60:0.05", True)
        sim.wait_for(lambda: reached(sim, clients.ids))
        first, second = gateway.workers()
        settled(gateway, 40)
        its, others = clients_of(first, gateway), clients_of(second, gateway)
        assert its and others
        os.kill(first, signal.SIGKILL)
        killed = time.monotonic()
        # A reload reaches the new worker while it starts, and does not end it.
        wait_for(
            lambda: len(gateway.workers()) == 2 and first not in gateway.workers(), 5, "a new one"
        )
        restarted = time.monotonic() - killed
        gateway.reload(base + "api_title = reloaded\n")
        answers = clients.answers()
    cut = [answer for answer in answers if not is_whole(answer, sim)]
    assert len(cut) == its
    for answer in cut:
        assert answer.status == 200 and not answer.whole and answer.ended
        assert b"[DONE]" not in answer.body
        (record,) = sim.records_for(answer.id)
        assert wait_for(partial(cancelled_at, record), 1, "a cancel")
    (new,) = set(gateway.workers()) - {second}
    wait_for(lambda: servers(gateway) == {"reloaded"}, 5, "the reload")
    assert gateway.output.count("ended: ") == 1
    with ExitStack() as stack:

        def one_more() -> bool:
            stack.enter_context(Client(gateway.port))
            return clients_of(new, gateway) > 0

        wait_for(one_more, 10, "work for the new one")
    with crowd(gateway) as clients:
        clients.begin(40, "next", "", True)
        assert all(is_whole(answer, sim) for answer in clients.answers())

    # The counters of the dead worker are kept; its requests in flight are not.
    def page() -> bytes:
        return bytes(get(gateway, "/metrics").body)

    wait_for(lambda: metric(page(), "gatewayd_requests_in_flight") == 1, 5, "nothing in flight")
    least = before + others + 40
    wait_for(lambda: metric(page(), "gatewayd_requests_total") >= least, 2, "all counted")
    reload(gateway, base)
    with capsys.disabled():
        print(
            f"\nworker killed: {its} of 40 streams cut, a new one after {restarted:.2f} s", end=""
        )


def test_a_stop_signal_to_all_processes_drains_both(tmp_path: Path, sim: FaultBackend) -> None:
    """As with Ctrl-C or systemd: the workers get the signal too, and again from the supervisor."""
    log = tmp_path / "access.log"
    with (
        Gateway(folder=tmp_path, config=in_front_of(sim, log, **TWO)) as gateway,
        crowd(gateway) as clients,
        Client(gateway.port) as idle,
    ):
        gateway.wait_for_workers()
        assert idle.get("/readyz").status == 200
        clients.begin(20, "drained-json", "slow-first-byte:1", False)
        clients.begin(20, "drained-sse", "tokens:40:0.05", True)
        sim.wait_for(lambda: reached(sim, clients.ids))
        assert all(clients_of(worker, gateway) for worker in gateway.workers())
        for pid in (*gateway.workers(), gateway.pid):
            os.kill(pid, signal.SIGTERM)
        assert idle.sock.recv(1) == b""
        answers = clients.answers()
        ended = max(answer.last_at for answer in answers)
        assert gateway.wait() == 0
        assert time.monotonic() - ended < AT_ONCE
    assert [answer for answer in answers if not is_whole(answer, sim)] == []
    for answer in answers:
        if not answer.arrivals:
            assert answer.header("connection") == ["close"]
    ids = [line["id"] for line in log_lines(log) if line["id"] in clients.ids]
    assert sorted(ids) == sorted(clients.ids)


def test_the_drain_has_an_end_and_a_second_signal_ends_it_at_once(
    tmp_path: Path, sim: FaultBackend
) -> None:
    folders = {"drain": tmp_path / "drain", "again": tmp_path / "again"}
    for folder in folders.values():
        folder.mkdir()

    def config(name: str, drain: int) -> str:
        return in_front_of(sim, folders[name] / "access.log", **TWO, drain=drain)

    with (
        Gateway(folder=folders["drain"], config=config("drain", 1)) as drain,
        Gateway(folder=folders["again"], config=config("again", 30)) as again,
        crowd(drain) as some,
        crowd(again) as others,
    ):
        for gateway, clients, name in ((drain, some, "some"), (again, others, "others")):
            gateway.wait_for_workers()
            clients.begin(10, f"late-{name}", "tokens:1000:0.05", True)
            sim.wait_for(partial(reached, sim, clients.ids))
            gateway.send(signal.SIGTERM)
        signalled = time.monotonic()
        wait_for(lambda: again.output.count("gatewayd stops") == 2, 2, "the stop")
        again.send(signal.SIGTERM)
        assert again.wait() == 0
        assert time.monotonic() - signalled < AT_ONCE
        assert drain.wait() == 0
        assert time.monotonic() - signalled < 1 + AT_ONCE
        for answer in some.answers():
            assert not answer.whole
            check_error(answer.payloads()[-1], "draining", "server_error")
        assert not any(answer.whole for answer in others.answers())
    for folder, clients in ((folders["drain"], some), (folders["again"], others)):
        assert ends(clients.ids, folder / "access.log") == ["drained"] * 10


def test_workers_do_not_outlive_a_supervisor_that_is_killed(
    tmp_path: Path, sim: FaultBackend
) -> None:
    """The port is free for the next gateway."""
    port = free_port()
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    config = ini(backend__b={"url": sim.url}, gateway=TWO | {"drain": 0})
    with Gateway(folder=tmp_path / "first", config=config, port=port) as first:
        first.wait_for_workers()
        orphans = first.workers()
        first.kill()
        with Gateway(folder=tmp_path / "second", config=config, port=port) as second:
            second.wait_for_workers()  # one of the first may have answered until then
            assert ask(second).status == 200
            assert not any(runs(pid) for pid in orphans)


def runs(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


def test_systemd_gets_the_state_of_both_workers_and_both_serve_its_socket(
    tmp_path: Path, sim: FaultBackend
) -> None:
    """READY is sent when both workers serve."""
    with notices() as received, socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        environment = {
            "NOTIFY_SOCKET": received.path,
            "WATCHDOG_USEC": "200000",
            "GATEWAYD_GATEWAY_WORKERS": "2",
            "BACKEND_URL": sim.url,
        }
        with activated(listening, tmp_path / "x", environment=environment) as gateway:
            assert received.next()["READY"] == "1"
            assert len(gateway.workers()) == 2
            with crowd(gateway) as clients:
                clients.begin(20, "given", "tokens:10:0.05", True)
                sim.wait_for(lambda: reached(sim, clients.ids))
                settled(gateway, 20)
                assert all(clients_of(worker, gateway) for worker in gateway.workers())
                assert all(is_whole(answer, sim) for answer in clients.answers())
            gateway.send(signal.SIGHUP)
            assert received.next()["RELOADING"] == "1"
            assert received.next()["READY"] == "1"
            gateway.send(signal.SIGTERM)
            assert received.next()["STOPPING"] == "1"
