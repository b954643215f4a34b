"""A gateway with few file descriptors: clients use none that backends need."""

from __future__ import annotations

import re
import resource
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from gatewayd.daemon.descriptors import FEWEST, RESERVE
from tests.faultbackend import FaultBackend
from tests.integration.client import Client
from tests.integration.expectations import is_whole
from tests.integration.gateways import ini
from tests.integration.processes import Gateway


def limited(soft: int, hard: int) -> list[str]:
    """A command that runs its arguments with these limits."""
    script = (
        "import os, resource, sys; "
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard})); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    return [sys.executable, "-c", script]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_limit_is_raised_as_far_as_the_system_allows(tmp_path: Path, workers: int) -> None:
    config = ini(gateway={"workers": workers})
    with Gateway(folder=tmp_path, config=config, before=limited(128, 2000)) as gateway:
        if workers == 2:
            gateway.wait_for_workers()
        for pid in (gateway.pid, *gateway.workers()):
            limits = Path(f"/proc/{pid}/limits").read_text()
            assert re.search(r"Max open files +2000 +2000 ", limits)
        message = "connections: 10000 do not fit into 2000 open files (ulimit -n, LimitNOFILE=), "
        assert gateway.output.count(message) == 1


def test_a_sufficient_limit_causes_no_warning(tmp_path: Path) -> None:
    config = ini(limits={"connections": 300, "in_flight": 200})
    with Gateway(folder=tmp_path, config=config, before=limited(700, 700)) as gateway:
        assert "do not fit" not in gateway.output


def test_too_few_descriptors_end_the_start_with_a_sentence(tmp_path: Path) -> None:
    gateway = Gateway(folder=tmp_path, before=limited(40, FEWEST - 1))
    assert gateway.wait() == 1
    assert f"at most {FEWEST - 1} open files are allowed, at least {FEWEST}" in gateway.output
    assert "Traceback" not in gateway.output


def test_surplus_clients_get_a_503_and_the_others_reach_their_backend(
    tmp_path: Path, sim: FaultBackend
) -> None:
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 1000
    hard = 256
    config = ini(backend__b={"url": sim.url}, timeouts={"client_idle": 60, "request_head": 60})
    with (
        Gateway(folder=tmp_path, config=config, before=limited(hard, hard)) as gateway,
        ExitStack() as stack,
    ):
        served = (hard - RESERVE) // 2
        held = [stack.enter_context(Client(gateway.port)) for _ in range(served)]
        assert held[-1].get("/healthz").status == 200
        # All at once, as after a network failure.
        surplus = []
        for _ in range(2 * hard):
            client = socket.socket()
            stack.enter_context(client)
            client.settimeout(10)
            client.connect(("127.0.0.1", gateway.port))
            surplus.append(client)
        assert {client.recv(4096)[:12] for client in surplus} == {b"HTTP/1.1 503"}

        def run_client(number: int) -> bool:
            answer = held[number].chat("slow-first-byte:1", id=f"held-{number}")
            return is_whole(answer, sim)

        with ThreadPoolExecutor(served) as pool:
            assert all(pool.map(run_client, range(served)))
        assert "Too many open files" not in gateway.output
