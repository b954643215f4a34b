"""``workers = 2``: workers that hang or die, files that change, signals at a bad moment."""

from __future__ import annotations

import glob
import os
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.certificates import certificate
from tests.faultbackend import FaultBackend
from tests.integration.client import ask, get
from tests.integration.gateways import ini
from tests.integration.processes import BIN, TWISTD, Gateway, clean_environment, free_port, wait_for
from tests.integration.systemd import activated

TWO = {"workers": 2}
REQUEST = b"GET /healthz HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n"


def replaced(gateway: Gateway, pid: int) -> bool:
    return len(gateway.workers()) == 2 and pid not in gateway.workers()


def both_serve_again(gateway: Gateway, times: int) -> None:
    """Wait until so many workers have been started in total."""
    message = "gatewayd 0.1.0 listens on"
    wait_for(lambda: gateway.output.count(message) == times, 15, "the next one")


def test_a_worker_that_hangs_is_noticed_and_replaced(tmp_path: Path, sim: FaultBackend) -> None:
    config = ini(backend__b={"url": sim.url}, gateway=TWO)
    with Gateway(folder=tmp_path, config=config) as gateway:
        gateway.wait_for_workers()
        hung, _ = gateway.workers()
        os.kill(hung, signal.SIGSTOP)
        wait_for(lambda: "hangs" in gateway.output, 20, "that it is noticed")
        wait_for(lambda: replaced(gateway, hung), 5, "another one")
        both_serve_again(gateway, 3)
        assert all(ask(gateway).seconds < 1 for _ in range(40))


def test_a_second_stop_ends_a_worker_that_hangs(tmp_path: Path) -> None:
    with Gateway(folder=tmp_path, config=ini(gateway=TWO)) as gateway:
        gateway.wait_for_workers()
        os.kill(gateway.workers()[0], signal.SIGSTOP)
        began = time.monotonic()
        gateway.send(signal.SIGTERM)
        wait_for(lambda: "gatewayd stops" in gateway.output, 2, "the stop")
        gateway.send(signal.SIGTERM)
        assert gateway.wait() == 0
        assert time.monotonic() - began < 5


def test_a_worker_that_is_started_again_reads_no_file(tmp_path: Path, sim: FaultBackend) -> None:
    """Settings with a mistake or with TLS, and a key file without permission, change nothing."""
    key = tmp_path / "key"
    key.write_text("the-key")
    key.chmod(0o600)
    config = ini(backend__b={"url": sim.url, "api_key_file": key}, gateway=TWO)
    with Gateway(folder=tmp_path, config=config) as gateway:
        gateway.wait_for_workers()
        key.unlink()
        for number, text in enumerate(("[gateway\n", "[gateway]\ntls_certificate = /x\n"), 1):
            gateway.ini.write_text(text)
            assert "stay as they were" in gateway.reload()
            killed = gateway.workers()[0]
            os.kill(killed, signal.SIGKILL)
            wait_for(lambda pid=killed: replaced(gateway, pid), 10, "another one")  # type: ignore[misc]
            both_serve_again(gateway, 2 + number)
            assert {ask(gateway).status for _ in range(20)} == {200}
        assert gateway.output.count(" ended: ") == 2


def test_a_worker_that_is_started_again_has_the_certificate_that_was_accepted(
    tmp_path: Path,
) -> None:
    files = certificate(tmp_path, "own")
    config = ini(gateway=TWO | {"tls_certificate": files[0], "tls_key": files[1]})
    trust = ssl.create_default_context(cafile=files[0])
    with Gateway(folder=tmp_path, config=config, trust=trust) as gateway:
        gateway.wait_for_workers()
        for file in files:
            Path(file).write_text("nothing")
        assert "stay as they were" in gateway.reload()
        killed = gateway.workers()[0]
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda: replaced(gateway, killed), 10, "another one")
        both_serve_again(gateway, 3)
        assert {ask(gateway, tls=trust).status for _ in range(20)} == {200}
        assert gateway.output.count(" ended: ") == 1


def test_workers_of_a_daemon_in_another_folder_serve(tmp_path: Path) -> None:
    """``--rundir``, with a file and a search path that are relative to the first folder."""
    port, rundir = free_port(), tmp_path / "rundir"
    rundir.mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "gatewayd.ini").write_text(ini(gateway={"workers": 2, "port": port}))
    runner = (*TWISTD, "--rundir", str(rundir))
    with Gateway(
        "--config", "gatewayd.ini",
        folder=tmp_path, runner=runner, environment={"PYTHONPATH": "here"},
    ) as gateway:  # fmt: skip
        gateway.wait_for_workers()
        assert ask(gateway).status == 200
        assert "ended" not in gateway.output


@pytest.mark.parametrize("count", [1, 2])
def test_a_stop_answers_all_clients_that_wait_to_be_accepted(tmp_path: Path, count: int) -> None:
    with (
        Gateway(folder=tmp_path, config=ini(gateway={"workers": count})) as gateway,
        ExitStack() as stack,
    ):
        if count == 2:
            gateway.wait_for_workers()
        serving = gateway.workers() or [gateway.pid]
        for pid in serving:
            os.kill(pid, signal.SIGSTOP)
        clients = []
        for _ in range(400):
            clients.append(socket.create_connection(("127.0.0.1", gateway.port), 10))
            stack.enter_context(clients[-1])
            clients[-1].sendall(REQUEST)
        gateway.send(signal.SIGTERM)
        for pid in serving:
            os.kill(pid, signal.SIGCONT)
        answers = [client.recv(4096) for client in clients]
        assert [answer[:12] for answer in answers] == [b"HTTP/1.1 200"] * 400
        assert gateway.wait() == 0


@pytest.mark.parametrize("count", [1, 2])
def test_all_sockets_of_systemd_are_served(tmp_path: Path, count: int) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as first,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as second,
        socket.socket(socket.AF_UNIX) as third,
    ):
        third.bind(str(tmp_path / "s"))
        third.listen()
        environment = {"GATEWAYD_GATEWAY_WORKERS": str(count)}
        with activated(
            first, tmp_path / "x", environment=environment, more=[second, third]
        ) as gateway:
            if count == 2:
                gateway.wait_for_workers()
            assert get(gateway, "/healthz").status == 200
            for family, address in (
                (socket.AF_INET6, second.getsockname()),
                (socket.AF_UNIX, third.getsockname()),
            ):
                with socket.socket(family) as client:
                    client.settimeout(10)
                    client.connect(address)
                    client.sendall(REQUEST)
                    assert client.recv(4096).startswith(b"HTTP/1.1 200")
            for message in (f"::1 port {second.getsockname()[1]}", third.getsockname()):
                assert message in gateway.output


@pytest.mark.parametrize("count", [1, 2])
def test_a_socket_of_systemd_that_cannot_be_served_ends_the_start(
    tmp_path: Path, count: int
) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as first,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as second,
    ):
        environment = {"GATEWAYD_GATEWAY_WORKERS": str(count)}
        gateway = activated(first, tmp_path / "x", environment=environment, more=[second])
        assert gateway.wait() == 1
        assert "gatewayd: descriptor 4 was handed over and is no listening" in gateway.output
        assert "Traceback" not in gateway.output


def test_a_supervisor_that_is_killed_leaves_nothing_to_the_next(tmp_path: Path) -> None:
    def folders() -> set[str]:
        return set(glob.glob(f"{tmp_path}/gatewayd-*"))

    environment = {"TMPDIR": str(tmp_path)}
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    config = ini(gateway=TWO)
    with Gateway(folder=tmp_path / "first", config=config, environment=environment) as gateway:
        gateway.wait_for_workers()
        (left,) = folders()
        orphans = gateway.workers()
        gateway.kill()
    wait_for(lambda: not any(Path(f"/proc/{pid}/fd/3").exists() for pid in orphans), 10, "the end")
    with Gateway(folder=tmp_path / "second", config=config, environment=environment) as gateway:
        gateway.wait_for_workers()
        (new,) = folders()
        assert new != left
    assert folders() == set()


def test_lines_of_workers_reach_the_log_of_a_daemon_at_every_level(tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "x.log"
    config = tmp_path / "gatewayd.ini"
    access = tempfile.mkdtemp(dir=tmp_path)  # a folder cannot be written to
    text = ini(gateway={"workers": 2, "port": port}, log={"level": "error", "access": access})
    config.write_text(text)
    command = [str(BIN / "twistd"), "--pidfile=x.pid", "--logfile=x.log", "gatewayd"]
    subprocess.run(
        [*command, "--config", "gatewayd.ini"],
        cwd=tmp_path, env=clean_environment(), check=True, timeout=30,
    )  # fmt: skip
    pid = int((tmp_path / "x.pid").read_text())
    try:
        wait_for(lambda: log.read_text().count(f"access log {access}") == 2, 30, "both")
        config.write_text("[gateway\n")
        os.kill(pid, signal.SIGHUP)
        wait_for(lambda: "stay as they were" in log.read_text(), 10, "the mistake")
        assert " listens on " not in log.read_text()
    finally:
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not Path(f"/proc/{pid}").exists(), 10, "the end")
