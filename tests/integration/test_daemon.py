"""The daemon from the view of its operator: start, stop, reload, logs, metrics, TLS, systemd.

Measured times are printed at the end (``pytest -s``).
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest

from tests.certificates import certificate
from tests.faultbackend import FaultBackend
from tests.integration.client import Answer, Client, ask, crowd, get
from tests.integration.expectations import cancelled_at, check_error, is_whole, reached
from tests.integration.gateways import in_front_of, ini
from tests.integration.healthprobe import stolen_seconds
from tests.integration.processes import (
    AT_ONCE,
    BIN,
    Gateway,
    clean_environment,
    free_port,
    refuses,
    wait_for,
)
from tests.integration.reports import ends, log_lines, logged, metric
from tests.integration.systemd import ACTIVATE, activated, notices

TOKEN = {"sha256": sha256(b"good").hexdigest()}


@pytest.fixture(scope="module", autouse=True)
def figures() -> Iterator[dict[str, str]]:
    """Measured figures by name, printed at the end."""
    printed: dict[str, str] = {}
    yield printed
    for name, value in printed.items():
        print(f"\n{name}: {value}", end="")


# -- stop ----------------------------------------------------------------------------------------


def test_an_idle_daemon_stops_at_once_and_closes_idle_connections(
    tmp_path: Path, figures: dict[str, str]
) -> None:
    """A pid file next to it names a running process."""
    (tmp_path / "twistd.pid").write_text(str(os.getpid()))
    began = time.monotonic()
    with Gateway(folder=tmp_path) as gateway:
        figures["start until the first answer"] = f"{time.monotonic() - began:.2f} s"
        status = Path(f"/proc/{gateway.pid}/status").read_text()
        figures["idle"] = "RSS " + status.partition("VmRSS:")[2].split("\n")[0].strip()
        with Client(gateway.port) as used, Client(gateway.port) as unused:
            assert used.get("/healthz").status == 200
            signalled = time.monotonic()
            gateway.send(signal.SIGTERM)
            assert used.sock.recv(1) == unused.sock.recv(1) == b""
            assert gateway.wait() == 0
        figures["idle stop"] = f"{time.monotonic() - signalled:.3f} s"
        assert time.monotonic() - signalled < AT_ONCE
    assert (tmp_path / "twistd.pid").read_text() == str(os.getpid())


def test_a_drain_loses_nothing(tmp_path: Path, sim: FaultBackend, figures: dict[str, str]) -> None:
    """Reloads during a stop have no effect."""
    log = tmp_path / "access.log"
    with (
        Gateway(folder=tmp_path, config=in_front_of(sim, log)) as gateway,
        crowd(gateway) as clients,
        Client(gateway.port) as idle,
    ):
        assert idle.get("/readyz").status == 200
        clients.begin(20, "drain-json", "slow-first-byte:1", False)
        clients.begin(20, "drain-sse", "tokens:60:0.05", True)
        sim.wait_for(lambda: reached(sim, clients.ids))
        signalled = time.monotonic()
        gateway.send(signal.SIGTERM)
        assert idle.sock.recv(1) == b""
        gateway.ini.write_text("[gateway]\ndrain = 0\n")
        gateway.send(signal.SIGHUP)
        wait_for(lambda: refuses(gateway.port), 1, "a closed port")
        answers = clients.answers()
        ended = max(answer.last_at for answer in answers)
        assert gateway.wait() == 0
        assert time.monotonic() - ended < AT_ONCE
    lost = [answer for answer in answers if not is_whole(answer, sim)]
    figures["drain"] = f"{len(lost)} of 40 lost, {time.monotonic() - signalled:.1f} s"
    assert lost == []
    for answer in answers:
        if not answer.arrivals:  # of those whose head was still to come
            assert answer.header("connection") == ["close"]
    lines = log_lines(log)
    assert sorted(line["id"] for line in lines if line["id"] in clients.ids) == sorted(clients.ids)
    assert {line["end"] for line in lines} == {"complete"}


def test_a_request_longer_than_the_drain_gets_an_error_and_is_cancelled(
    tmp_path: Path, sim: FaultBackend
) -> None:
    log = tmp_path / "access.log"
    with (
        Gateway(folder=tmp_path, config=in_front_of(sim, log, drain=1)) as gateway,
        crowd(gateway) as clients,
    ):
        clients.begin(3, "cut-sse", "tokens:1000:0.05", True)
        clients.begin(3, "cut-json", "hang", False)
        sim.wait_for(lambda: reached(sim, clients.ids))
        signalled = time.monotonic()
        gateway.send(signal.SIGTERM)
        streams, others = clients.answers()[:3], clients.answers()[3:]
        assert gateway.wait() == 0
        assert 1 < time.monotonic() - signalled < 1 + AT_ONCE
    for answer in streams:
        assert (answer.status, answer.whole, answer.ended) == (200, False, "closed")
        *events, error = answer.payloads()
        (record,) = sim.records_for(answer.id)
        assert events == record.want_as(answer.id)[: len(events)]
        assert events and b"[DONE]" not in events
        check_error(error, "draining", "server_error")
    for answer in others:
        assert (answer.status, answer.whole) == (503, True)
        check_error(bytes(answer.body), "draining", "server_error")
        assert answer.header("x-should-retry") == ["false"]
        assert answer.header("connection") == ["close"]
    for id in clients.ids:
        (record,) = sim.records_for(id)
        assert wait_for(partial(cancelled_at, record), 1, "a cancel") - signalled < 1 + AT_ONCE
    assert ends(clients.ids, log) == ["drained"] * 6


def test_a_second_signal_ends_at_once(tmp_path: Path, sim: FaultBackend) -> None:
    log = tmp_path / "access.log"
    with (
        Gateway(folder=tmp_path, config=in_front_of(sim, log)) as gateway,
        crowd(gateway) as clients,
    ):
        clients.begin(3, "twice", "tokens:1000:0.05", True)
        sim.wait_for(lambda: reached(sim, clients.ids))
        gateway.send(signal.SIGTERM)
        wait_for(lambda: "gatewayd stops" in gateway.output, 2, "the stop")
        signalled = time.monotonic()
        gateway.send(signal.SIGTERM)
        assert gateway.wait() == 0
        assert time.monotonic() - signalled < AT_ONCE
        assert not any(answer.whole for answer in clients.answers())
    assert ends(clients.ids, log) == ["drained"] * 3


def test_a_gateway_killed_under_load_can_be_started_on_the_same_port(
    tmp_path: Path, sim: FaultBackend, figures: dict[str, str]
) -> None:
    port, over = free_port(), threading.Event()

    def insist(number: int) -> int:
        """Send about 12 requests per second, each until it is answered; return their number."""
        for n in itertools.count():
            while True:
                try:
                    answer = ask(first, id=f"killed-{number}-{n}")
                except OSError:
                    time.sleep(0.01)
                    continue
                if answer.status == 200 and answer.whole:
                    break
            if over.wait(0.08):
                return n
        raise AssertionError

    with Gateway("--backend-url", sim.url, folder=tmp_path, port=port) as first:
        with ThreadPoolExecutor(4) as pool:
            clients = [pool.submit(insist, number) for number in range(4)]
            try:
                sim.wait_for(lambda: sum("killed-" in str(r.request_id) for r in sim.records) > 20)
                first.kill()
                killed = time.monotonic()
                (tmp_path / "again").mkdir()
                second = Gateway(
                    "--backend-url", sim.url, folder=tmp_path / "again", port=port
                ).__enter__()
                figures["restart after SIGKILL"] = f"{time.monotonic() - killed:.2f} s"
                assert time.monotonic() - killed < 4
                sent = len(sim.records)
                sim.wait_for(lambda: len(sim.records) > sent + 20)
            finally:
                over.set()
        assert all(client.result() > 1 for client in clients)
        second.stop()


# -- reload --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other() -> Iterator[FaultBackend]:
    """A second backend."""
    with FaultBackend() as backend:
        yield backend


@pytest.fixture(scope="module")
def base(sim: FaultBackend, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The settings of :func:`gateway` at the start of each test."""
    log = tmp_path_factory.mktemp("log") / "access.log"
    return ini(log={"access": log}, backend__b={"url": sim.url, "models": "m"})


@pytest.fixture(scope="module")
def daemon(base: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with Gateway(folder=tmp_path_factory.mktemp("daemon"), config=base) as gateway:
        yield gateway


@pytest.fixture
def gateway(daemon: Gateway, base: str) -> Iterator[Gateway]:
    yield daemon
    if daemon.ini.is_dir():
        daemon.ini.rmdir()
    daemon.reload(base)


def log_of(base: str) -> Path:
    return Path(base.partition("access = ")[2].split("\n")[0])


def test_running_streams_keep_their_settings_and_new_requests_get_the_new_ones(
    gateway: Gateway, base: str, sim: FaultBackend, other: FaultBackend
) -> None:
    with crowd(gateway) as clients:
        clients.begin(20, "kept", "tokens:40:0.05", True)
        sim.wait_for(lambda: reached(sim, clients.ids))
        began = time.monotonic()
        gateway.reload(
            ini(
                log={"access": log_of(base)},
                limits={"request_body": "1 KiB"},
                backend__b={"url": other.url, "first_byte": "0.3"},
                token__alice=TOKEN,
            )
        )
        assert time.monotonic() - began < AT_ONCE
        assert ask(gateway, id="reload-no-token").status == 401
        assert ask(gateway, id="reload-token", token="good").status == 200
        assert [len(s.records_for("reload-token")) for s in (sim, other)] == [0, 1]
        assert ask(gateway, id="reload-big", token="good", user="x" * 2000).status == 413
        late = ask(gateway, "hang", id="reload-late", token="good")
        assert (late.status, late.seconds < AT_ONCE) == (504, True)
        assert all(is_whole(answer, sim) for answer in clients.answers())


def test_unchanged_backends_keep_their_connections(
    gateway: Gateway, base: str, sim: FaultBackend, other: FaultBackend
) -> None:
    more = base + ini(backend__c={"url": other.url, "models": "c"})
    gateway.reload(more)
    assert ask(gateway, id="kept-1").status == ask(gateway, id="kept-2", model="c").status == 200
    before = [len(sim.connections), len(other.connections)]
    gateway.reload(more + ini(token__alice=TOKEN, gateway={"drain": 7}, timeouts={"ping": 3}))
    for id in ("kept-3", "kept-4"):
        assert ask(gateway, id=id, token="good").status == 200
    assert ask(gateway, id="kept-5", token="good", model="c").status == 200
    assert [len(sim.connections), len(other.connections)] == before


def test_a_reload_storm_loses_nothing(
    gateway: Gateway, base: str, sim: FaultBackend, figures: dict[str, str]
) -> None:
    """A hundred reloads in a second, each with other settings, under load."""
    over = threading.Event()

    def run_client(number: int) -> list[Answer]:
        answers: list[Answer] = []
        with Client(gateway.port) as client:
            while not over.is_set():
                answers.append(client.chat("", number % 2 > 0, id=f"storm-{number}-{len(answers)}"))
        return answers

    with crowd(gateway) as clients, ThreadPoolExecutor(4) as pool:
        clients.begin(20, "storm", "tokens:40:0.05", True)
        sim.wait_for(lambda: reached(sim, clients.ids))
        asking = [pool.submit(run_client, number) for number in range(4)]
        before, began = gateway.output.count("reloaded:"), time.monotonic()
        for n in range(100):
            drain, kept = {"drain": n + 1}, n % 3 > 0
            changed = base if kept else base.replace("[backend b]", "[backend b]\nconnect = 3")
            new = gateway.ini.with_suffix(".new")
            new.write_text(changed + ini(gateway=drain))
            new.rename(gateway.ini)
            gateway.send(signal.SIGHUP)
            time.sleep(max(0.0, began + (n + 1) / 100 - time.monotonic()))
        took = time.monotonic() - began
        wait_for(lambda: "drain" in gateway.reload(base + ini(gateway={"drain": 9})) or True, 5, "")
        over.set()
        answers = clients.answers() + [answer for one in asking for answer in one.result()]
    lost = [answer for answer in answers if not is_whole(answer, sim)]
    done = gateway.output.count("reloaded:") - before
    figures["reload storm"] = (
        f"{len(lost)} of {len(answers)} lost over 100 signals in {took:.2f} s, {done} reloads"
    )
    assert lost == []
    assert done > 20  # signals that come faster than they are handled are one
    lines = logged([answer.id for answer in answers], log_of(base))
    assert len(lines) == len(answers)


BROKEN = {
    "a syntax error": ("[gateway\n", r"gatewayd\.ini:1: .+"),
    "an unknown section": ("[gatway]\n", r"gatewayd\.ini:1: .*gatway"),
    "an unknown key": ("[limits]\nin_fligt = 1\n", r"gatewayd\.ini:2: \[limits\] in_fligt: "),
    "a bad value": ("\n[gateway]\ndrain = soon\n", r"gatewayd\.ini:3: \[gateway\] drain: "),
    "a bad URL": ("[backend a]\nurl = gpu1\n", r"gatewayd\.ini:2: \[backend a\] url: "),
    "no URL": ("[backend a]\nmodels = m\n", r"gatewayd\.ini:1: \[backend a\] url: "),
    "a token's digest": ("[token a]\nsha256 = 12\n", r"gatewayd\.ini:2: \[token a\] sha256: "),
    "a key file that is gone": (
        "[backend a]\nurl = http://a\napi_key_file = /nonexistent\n",
        r"gatewayd\.ini:3: \[backend a\] api_key_file: ",
    ),
    "a certificate that is gone": (
        "[gateway]\ntls_certificate = /nonexistent\ntls_key = /nonexistent\n",
        r"gatewayd\.ini:2: \[gateway\] tls_certificate: ",
    ),
}


def test_broken_settings_change_nothing_and_are_named(
    gateway: Gateway, base: str, sim: FaultBackend
) -> None:
    gateway.reload(base + ini(token__alice=TOKEN))
    for name, (text, expected) in BROKEN.items():
        printed = gateway.reload(text)
        assert re.search(rf"error\] reload: \S*{expected}", printed), (name, printed)
        assert ask(gateway, id=f"broken-{name.replace(' ', '-')}", token="good").status == 200
        assert ask(gateway).status == 401
    gateway.ini.write_bytes(b"[gateway]\napi_title = \xff\xfe\n")
    assert "gatewayd.ini" in gateway.reload()
    gateway.ini.unlink()
    assert "gatewayd.ini" in gateway.reload()
    gateway.ini.mkdir()
    assert "gatewayd.ini" in gateway.reload()
    assert get(gateway, "/healthz").status == 200
    assert ask(gateway, token="good").status == 200


def test_bound_addresses_stay_and_the_log_says_so(gateway: Gateway, base: str) -> None:
    """A reload that changes a listening address logs this, and opens nothing."""
    bound = {"listen": "0.0.0.0", "workers": 3}
    printed = gateway.reload(base + ini(gateway=bound, metrics={"listen": "127.0.0.1:1"}))
    for name in ("[gateway] listen", "[gateway] workers", "[metrics] listen"):
        assert f"reload: {name} stays" in printed
    assert get(gateway, "/metrics").status == 200
    assert ask(gateway).status == 200


def test_the_level_of_the_error_log_follows_a_reload(gateway: Gateway, base: str) -> None:
    def reload(level: str, text: str) -> str:
        gateway.ini.write_text(text.replace("[log]", f"[log]\nlevel = {level}"))
        before = len(gateway.output)
        gateway.send(signal.SIGHUP)
        wait_for(lambda: get(gateway, "/healthz").header("server") == [level], 5, level)
        return gateway.output[before:]

    titled = base + "[gateway]\napi_title = "
    assert "reloaded:" not in reload("warn", titled + "warn\n")
    assert "reloaded:" in reload("info", titled + "info\n")


# -- the access log ------------------------------------------------------------------------------


def test_rotation_loses_and_doubles_no_line(gateway: Gateway, base: str) -> None:
    over, log = threading.Event(), log_of(base)

    def run_client(number: int) -> list[str]:
        ids: list[str] = []
        with Client(gateway.port) as client:
            while not over.is_set():
                ids.append(f"rotated-{number}-{len(ids)}")
                assert client.chat(id=ids[-1]).status == 200
        return ids

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(run_client, number) for number in range(3)]
        for n in range(5):
            log.rename(log.with_suffix(f".{n}"))
            gateway.reload()
            time.sleep(0.05)
        over.set()
        ids = [id for one in asking for id in one.result()]
    rotated = [log.with_suffix(f".{n}") for n in range(5)]
    assert len(logged(ids, log, *rotated)) == len(ids)
    assert all(file.stat().st_size for file in (log, *rotated[1:]))


def test_each_request_has_one_line_however_it_ends(
    gateway: Gateway, base: str, sim: FaultBackend
) -> None:
    expected = {}
    for n in range(10):
        for name, (fault, stream, end) in {
            "whole": ("", False, "complete"),
            "stream": ("", True, "complete"),
            "cut": ("reset-mid-body:2", True, "backend_truncated"),
            "error": ("status:500", False, "backend_error"),
        }.items():
            id = f"line-{name}-{n}"
            ask(gateway, fault, stream, id=id)
            expected[id] = end
        with Client(gateway.port) as client:
            client.send_chat("hang", n % 2 > 0, id=f"line-left-{n}")
            sim.wait_for(partial(sim.records_for, f"line-left-{n}"))
        expected[f"line-left-{n}"] = "client_gone"
        assert ask(gateway, id=f"line-refused-{n}", model="unknown").status == 404
        expected[f"line-refused-{n}"] = "refused"
        with Client(gateway.port) as client:
            client.send("GET", "/nowhere", X_Request_ID=f"line-nowhere-{n}")
            assert client.answer("").status == 404
        expected[f"line-nowhere-{n}"] = "refused"
    lines = logged(expected, log_of(base))
    assert len(lines) == len(expected)
    assert {line["id"]: line["end"] for line in lines} == expected


def test_a_full_disk_or_a_missing_folder_is_logged_once_and_affects_no_request(
    gateway: Gateway, base: str, tmp_path: Path
) -> None:
    log = log_of(base)
    for path in ("/dev/full", tmp_path / "later" / "access.log"):
        before = len(gateway.output)
        gateway.reload(base.replace(str(log), str(path)))
        with Client(gateway.port) as client:
            for n in range(20):
                answer = client.chat("", n % 2 > 0, id=f"full-{n}")
                assert (answer.status, answer.whole) == (200, True)
        assert gateway.output[before:].count(f"access log {path}: ") == 1
    (tmp_path / "later").mkdir()
    assert ask(gateway, id="there-again").status == 200
    wait_for((tmp_path / "later" / "access.log").exists, 2, "the log")
    there = wait_for(lambda: re.search(r"written again; (\d+) lines", gateway.output), 2, "that")
    logged(["there-again"], tmp_path / "later" / "access.log")
    assert int(there[1]) + len(log_lines(tmp_path / "later" / "access.log")) == 21


def test_lines_may_be_text(gateway: Gateway, base: str, tmp_path: Path) -> None:
    log = tmp_path / "access.txt"
    text = base.replace(str(log_of(base)), str(log)).replace("[log]", "[log]\nformat = text")
    gateway.reload(text)
    ask(gateway, id="as-text", model="m")
    ask(gateway, id="as-text-2", model='a "b"')
    wait_for(lambda: log.read_text().count("\n") == 2, 2, "two lines")
    first, second = log.read_text().splitlines()
    assert re.match(r"time=\S+ id=as-text client=127\.0\.0\.1 .*status=200 end=complete", first)
    assert r'model="a \"b\""' in second and "status=404 end=refused" in second


def test_in_the_foreground_lines_go_to_standard_output(tmp_path: Path) -> None:
    with Gateway(folder=tmp_path) as gateway:
        ids = [f"said-{n}" for n in range(20)]
        for id in ids:
            assert ask(gateway, id=id).status == 200
    lines = [line for line in gateway.output.splitlines() if line.startswith("{")]
    (tmp_path / "lines").write_text("\n".join([*lines, ""]))
    assert [line["id"] for line in log_lines(tmp_path / "lines")][-20:] == ids


def test_a_full_standard_output_affects_no_request(tmp_path: Path) -> None:
    """The access log and the error log."""
    port = free_port()
    command = [str(BIN / "twistd"), "--nodaemon", "--pidfile=", "gatewayd", "--port", str(port)]
    with Path("/dev/full").open("wb") as full:
        process = subprocess.Popen(
            command, stdout=full, stderr=full, cwd=tmp_path, env=clean_environment()
        )
    try:
        wait_for(lambda: not refuses(port), 10, "the start")
        with socket.create_connection(("127.0.0.1", port)) as client:
            for _ in range(50):
                client.sendall(b"GET /healthz HTTP/1.1\r\nHost: gateway\r\n\r\n")
                assert client.recv(4096).startswith(b"HTTP/1.1 200")
        process.terminate()
        assert process.wait(5) == 0
    finally:
        process.kill()
        process.wait()


# -- a start that fails --------------------------------------------------------------------------

START_ERRORS = {
    "[gateway\n": r"\S+\.ini:1: ",
    "[gateway]\nprot = 1\n": r"\S+\.ini:2: \[gateway\] prot: ",
    "[gateway]\ndrain = abc\n": r"\S+\.ini:2: \[gateway\] drain: ",
    "[gateway]\nport = 70000\n": r"\S+\.ini:2: \[gateway\] port: ",
    "[timeouts]\nidle = -1\n": r"\S+\.ini:2: \[timeouts\] idle: ",
    "[backend a]\nurl = ftp://a\n": r"\S+\.ini:2: \[backend a\] url: ",
    "[token a]\nsha256 =\n": r"\S+\.ini:[12]: \[token a\] sha256: ",
    "[gateway]\ntls_certificate = /nonexistent\n": r"\S+\.ini:2: \[gateway\] tls_certificate: ",
}


def start(*arguments: str, before: tuple[str, ...] = ()) -> tuple[int, str, str]:
    """Start a daemon that must fail; return its status, standard output and standard error."""
    command = [*before, str(BIN / "twistd"), "--nodaemon", "--pidfile=", "gatewayd", *arguments]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            command, cwd=folder, env=clean_environment(), capture_output=True, text=True, timeout=15
        )
    return done.returncode, done.stdout, done.stderr


def test_mistakes_end_the_start_with_one_line_each(tmp_path: Path) -> None:
    files = []
    for number, text in enumerate([*START_ERRORS, "".join(START_ERRORS)]):
        files.append(tmp_path / f"{number}.ini")
        files[-1].write_text(text)
    files += [tmp_path, tmp_path / "missing.ini"]
    port = str(free_port())
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda file: start("--config", str(file), "--port", port), files))
    for file, (status, out, err) in zip(files, done, strict=True):
        assert (status, out) == (1, ""), (file, out, err)
        assert err.startswith(str(file)) and "Traceback" not in err
    for expected, (_, _, err) in zip(START_ERRORS.values(), done, strict=False):
        assert re.match(expected, err) and err.count("\n") == 1, err
    assert done[len(START_ERRORS)][2].count("\n") > 5  # all at once
    assert done[-1][2].count("\n") == done[-2][2].count("\n") == 1
    assert refuses(int(port))


#: Runs a command without the right to bind low ports, even as root. Root would regain the right
#: from the bounding set, and in some containers from the inheritable set.
UNPRIVILEGED = (
    sys.executable,
    "-c",
    "import ctypes, os, sys; libc = ctypes.CDLL(None); "
    "header, sets = (ctypes.c_uint * 2)(0x20080522, 0), (ctypes.c_uint * 6)(); "
    "libc.capget(header, sets); sets[2] = sets[5] = 0; libc.capset(header, sets); "
    "libc.prctl(24, 10, 0, 0, 0); "  # PR_CAPBSET_DROP
    "os.execv(sys.argv[1], sys.argv[1:])",
)


def test_an_address_that_cannot_be_bound_ends_the_start_with_a_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        reserved = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) - 1
        tries: list[tuple[tuple[str, ...], tuple[str, ...], str]] = [
            (("--port", port), (), f"127.0.0.1 port {port}: Address already in use"),
            (
                ("--listen", "192.0.2.1", "--port", "0"),
                (),
                "192.0.2.1 port 0: Cannot assign requested address",
            ),
        ]
        if reserved > 0:  # else everybody may
            printed = f"127.0.0.1 port {reserved}: Permission denied"
            tries.append((("--port", str(reserved)), UNPRIVILEGED, printed))
        with ThreadPoolExecutor(2) as pool:
            done = list(pool.map(lambda a: start(*a[0], before=a[1]), tries))
        for (_, _, expected), (status, out, err) in zip(tries, done, strict=True):
            assert status == 1
            assert f"gatewayd: cannot listen on {expected}\n" in out + err
            assert "Traceback" not in out + err
        background = subprocess.run(
            [BIN / "twistd", "--pidfile=x.pid", "--logfile=x.log", "gatewayd", "--port", port],
            cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, timeout=15,
        )  # fmt: skip
    assert background.returncode == 1
    assert f"cannot listen on 127.0.0.1 port {port}" in background.stdout + background.stderr
    wait_for(lambda: not (tmp_path / "x.pid").exists(), 2, "no pid file")


# -- metrics -------------------------------------------------------------------------------------

NAMES = {
    "gatewayd_requests_total",
    "gatewayd_ends_total",
    "gatewayd_request_duration_seconds_bucket",
    "gatewayd_time_to_first_token_seconds_bucket",
    "gatewayd_inter_token_latency_seconds_bucket",
    "gatewayd_tokens_total",
    "gatewayd_events_total",
    "gatewayd_failovers_total",
    "gatewayd_requests_in_flight",
    "gatewayd_connections",
    "gatewayd_backend_usable",
    "gatewayd_backend_requests_in_flight",
    "gatewayd_event_loop_lag_seconds",
    "gatewayd_log_lines_lost_total",
    "gatewayd_build_info",
    "process_resident_memory_bytes",
    "process_cpu_seconds_total",
    "process_open_fds",
    "process_max_fds",
    "process_start_time_seconds",
}


def series(page: bytes) -> set[str]:
    lines = page.decode().splitlines()
    return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}


def test_the_metrics_count_successes_failures_and_disconnects(
    gateway: Gateway, sim: FaultBackend
) -> None:
    def page() -> bytes:
        answer = get(gateway, "/metrics")
        (media_type,) = answer.header("content-type")
        assert (answer.status, media_type.partition(";")[0]) == (200, "text/plain")
        return bytes(answer.body)

    before = page()
    ask(gateway, "usage:always", True, id="metrics-stream")
    ask(gateway, "status:500", id="metrics-500")
    with Client(gateway.port) as client:
        client.send_chat("hang", id="metrics-hang")
        sim.wait_for(lambda: sim.records_for("metrics-hang"))
        during = page()
    wait_for(lambda: metric(page(), "gatewayd_requests_in_flight") == 1, 2, "the client gone")
    after = page()
    assert {name.partition("{")[0] for name in series(after)} >= NAMES

    def counted(name: str, **labels: str) -> float:
        return metric(after, name, **labels) - metric(before, name, **labels)

    route = "/v1/chat/completions"
    for status, end in (("200", "complete"), ("500", "backend_error"), ("499", "client_gone")):
        labels = {"route": route, "status": status, "end": end, "backend": "b", "model": "m"}
        assert counted("gatewayd_requests_total", **labels) == 1, labels
        assert counted("gatewayd_ends_total", end=end, backend="b") == 1
    assert counted("gatewayd_request_duration_seconds_count", route=route) == 3
    assert counted("gatewayd_time_to_first_token_seconds_count", model="m") == 1
    assert counted("gatewayd_tokens_total", kind="completion", backend="b") > 0
    assert counted("gatewayd_events_total", backend="b") > 0
    assert metric(during, "gatewayd_requests_in_flight") == 2  # it, and the one for the metrics
    assert metric(during, "gatewayd_backend_requests_in_flight", backend="b") == 1
    assert metric(after, "gatewayd_backend_requests_in_flight", backend="b") == 0
    assert metric(after, "gatewayd_backend_usable", backend="b") == 1


def test_clients_cannot_make_series(gateway: Gateway) -> None:
    def run_client(n: int) -> None:
        with Client(gateway.port) as client:
            client.chat(id=f"series-{n}", model=f"model-{n}")
            client.get(f"/nowhere/{n}")
            client.get(f"/v1/models/model-{n}")
            client.send(f"M{n}" if n % 2 else "PUT", f"/v1/{n}")
            client.answer("")

    run_client(0)
    run_client(1)
    before = series(bytes(get(gateway, "/metrics").body))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run_client, range(2, 100)))
    after = bytes(get(gateway, "/metrics").body)
    assert series(after) == before
    assert b"model-" not in after and b"nowhere" not in after


def test_a_backend_that_a_reload_removed_is_no_longer_in_the_metrics(
    gateway: Gateway, base: str, other: FaultBackend
) -> None:
    gateway.reload(base + ini(backend__gone={"url": other.url}))
    assert b'gatewayd_backend_usable{backend="gone"} 1.0' in get(gateway, "/metrics").body
    gateway.reload(base)
    assert b'gatewayd_backend_usable{backend="gone"}' not in get(gateway, "/metrics").body


def test_beyond_loopback_the_metrics_need_a_token_unless_they_have_their_own_port(
    tmp_path: Path,
) -> None:
    (tmp_path / "own").mkdir()
    open_port = free_port()
    everywhere = {"listen": "0.0.0.0"}
    config = ini(gateway=everywhere, token__prometheus=TOKEN)
    own = config + ini(metrics={"listen": f"127.0.0.1:{open_port}"})
    with (
        Gateway(folder=tmp_path, config=config) as gateway,
        Gateway(folder=tmp_path / "own", config=own) as with_own,
    ):
        assert get(gateway, "/healthz").status == 200
        assert get(gateway, "/metrics").status == get(gateway, "/metrics", "bad").status == 401
        assert get(gateway, "/metrics", "good").status == 200
        assert ask(with_own, id="own", token="good").status == 200
        assert get(with_own, "/metrics", "good").status == 404
        with_own.port = open_port
        page = get(with_own, "/metrics")
        assert metric(bytes(page.body), "gatewayd_requests_total", end="complete") > 0
        assert get(with_own, "/healthz").status == 404


# -- TLS -----------------------------------------------------------------------------------------


def trust_in(file: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=file)


def test_a_certificate_is_renewed_under_running_streams(tmp_path: Path, sim: FaultBackend) -> None:
    old, new = certificate(tmp_path, "old"), certificate(tmp_path, "new")
    pair = {"tls_certificate": tmp_path / "now.crt", "tls_key": tmp_path / "now.key"}

    def use(files: tuple[str, str]) -> None:
        for file, now in zip(files, pair.values(), strict=True):
            shutil.copy(file, now)

    use(old)
    config = ini(gateway=pair, backend__b={"url": sim.url})
    trust_old, trust_new = trust_in(old[0]), trust_in(new[0])
    with (
        Gateway(folder=tmp_path, config=config, trust=trust_old) as gateway,
        crowd(gateway) as clients,
    ):
        with pytest.raises(ssl.SSLCertVerificationError):
            Client(gateway.port, tls=trust_new)
        weak = trust_in(old[0])
        with pytest.warns(DeprecationWarning):
            weak.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            Client(gateway.port, tls=weak)
        clients.begin(10, "tls", "tokens:20:0.05", True, tls=trust_old)
        sim.wait_for(lambda: reached(sim, clients.ids))
        use(new)
        gateway.reload()
        assert is_whole(ask(gateway, id="tls-new", tls=trust_new), sim)
        with pytest.raises(ssl.SSLCertVerificationError):
            Client(gateway.port, tls=trust_old)
        (tmp_path / "now.key").write_text("broken")
        assert "[gateway] tls_key: " in gateway.reload()
        assert "TLS cannot be switched" in gateway.reload(ini(backend__b={"url": sim.url}))
        assert is_whole(ask(gateway, id="tls-still", tls=trust_new), sim)
        assert all(is_whole(answer, sim) for answer in clients.answers())
        # A client may close its connection without a TLS close_notify.
        client = Client(gateway.port, tls=trust_new)
        client.send_chat("tokens:1000:0.05", True, id="tls-left")
        sim.wait_for(lambda: reached(sim, ["tls-left"]))
        client.sock.shutdown(socket.SHUT_RDWR)
        client.sock.close()
        (record,) = sim.records_for("tls-left")
        wait_for(partial(cancelled_at, record), 2, "a cancel")
        with socket.create_connection(("127.0.0.1", gateway.port)) as plain:
            plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: gateway\r\n\r\n")
            assert not plain.recv(4096).startswith(b"HTTP/")


def test_another_tls_ca_under_its_old_name_is_trusted_after_a_reload(tmp_path: Path) -> None:
    old, new = certificate(tmp_path, "old"), certificate(tmp_path, "new")
    trusted = tmp_path / "ca.pem"
    trusted.write_bytes(Path(old[0]).read_bytes())
    with FaultBackend(tls=new) as backend:
        config = ini(backend__b={"url": backend.url, "tls_ca": "ca.pem"})
        with Gateway(folder=tmp_path, config=config) as gateway:
            refused = ask(gateway, id="ca-old")
            assert refused.status == 502
            check_error(bytes(refused.body), "upstream_tls", "upstream_error")
            trusted.write_bytes(Path(new[0]).read_bytes())
            gateway.reload()
            assert is_whole(ask(gateway, id="ca-new"), backend)


def test_a_backend_that_is_the_same_server_keeps_its_connection_whatever_else_changes(
    gateway: Gateway, base: str, sim: FaultBackend
) -> None:
    assert ask(gateway, id="left-1").status == 200
    before = len(sim.connections)
    changed = base.replace("models = m", "models = m, n = m\nin_flight = 5\nfirst_byte = 9")
    gateway.reload(changed + ini(limits={"reply": "1 MiB", "request_head": "8 KiB"}))
    assert ask(gateway, id="left-2", model="n").status == 200
    assert len(sim.connections) == before


# -- systemd -------------------------------------------------------------------------------------


def test_systemd_gets_the_state_and_the_watchdog_messages(tmp_path: Path, base: str) -> None:
    with notices() as received:
        environment = {"NOTIFY_SOCKET": received.path, "WATCHDOG_USEC": "200000"}
        gateway = Gateway(folder=tmp_path, config=base, environment=environment)
        ready = received.next()
        assert not refuses(gateway.port)  # it listens by then
        assert ready["READY"] == "1" and f"port {gateway.port}" in ready["STATUS"]
        with gateway:
            received.next(ignored="READY")
            began, waited = time.monotonic(), stolen_seconds(gateway.pid)
            for _ in range(3):
                assert received.next(ignored="READY") == {"WATCHDOG": "1"}
            seconds = time.monotonic() - began
            assert seconds < 0.6 + stolen_seconds(gateway.pid) - waited
            before = time.monotonic_ns() // 1000
            for text in (base, "[broken"):
                gateway.reload(text)
                reloading = received.next()
                assert reloading["RELOADING"] == "1"
                assert before <= int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
                assert received.next()["READY"] == "1"
            gateway.send(signal.SIGTERM)
            assert received.next()["STOPPING"] == "1"


@pytest.mark.parametrize("workers", [1, 2])
def test_the_reload_command_reports_whether_the_settings_were_accepted(
    tmp_path: Path, workers: int
) -> None:
    def reload(daemon: Gateway) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / "gatewayd"), "reload", str(daemon.pid)]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    good = ini(gateway={"workers": workers})
    with Gateway(folder=tmp_path, config=good) as daemon:
        for _ in range(2):
            daemon.ini.write_text("[broken")
            failed = reload(daemon)
            assert failed.returncode == 1 and "stay as they were" in failed.stderr
            assert "gatewayd.ini:1: " in daemon.output
            daemon.ini.write_text(good)
            done = reload(daemon)
            assert (done.returncode, done.stderr) == (0, ""), daemon.output


def test_with_a_socket_of_systemd_a_restart_refuses_no_connection(
    tmp_path: Path, sim: FaultBackend, figures: dict[str, str]
) -> None:
    over = threading.Event()

    def run_client(number: int) -> list[Answer]:
        answers: list[Answer] = []
        while not over.is_set():
            answers.append(ask(first, "", number % 2 > 0, id=f"restart-{number}-{len(answers)}"))
        return answers

    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        options = ("--backend-url", sim.url)
        first = activated(listening, tmp_path / "first", *options).__enter__()
        with ThreadPoolExecutor(3) as pool:
            asking = [pool.submit(run_client, number) for number in range(3)]
            try:
                sim.wait_for(lambda: reached(sim, ["restart-0-5"]))
                first.stop()
                second = activated(listening, tmp_path / "second", *options).__enter__()
                time.sleep(0.1)
            finally:
                over.set()
            answers = [answer for one in asking for answer in one.result()]
        second.stop()
    lost = [answer for answer in answers if not is_whole(answer, sim)]
    longest = max(answer.seconds for answer in answers)
    figures["restart with a socket of systemd's"] = (
        f"{len(lost)} of {len(answers)} lost, the longest wait {longest:.2f} s"
    )
    assert lost == []


def test_systemd_socket_activate_starts_it_with_a_socket_that_has_no_name(tmp_path: Path) -> None:
    """The environment that ``systemd-socket-activate`` makes, without that tool."""
    tool, port = shutil.which("systemd-socket-activate"), free_port()
    if tool:
        before = [tool, "-l", f"127.0.0.1:{port}"]
        gateway = Gateway(folder=tmp_path, port=port, before=before)
        with gateway:
            assert ask(gateway).status == 200
        return
    with socket.create_server(("127.0.0.1", port)) as listening:
        nameless = ACTIVATE.replace(", LISTEN_FDNAMES=names", "")
        before = [sys.executable, "-c", nameless, str(listening.fileno())]
        with Gateway(
            folder=tmp_path, port=port, before=before, descriptors=[listening.fileno()]
        ) as gateway:
            assert ask(gateway).status == 200


def test_the_metrics_need_a_token_on_a_public_socket_of_systemd(tmp_path: Path) -> None:
    """The address in the settings is still a loopback address there."""
    with socket.create_server(("0.0.0.0", 0)) as listening:
        config = tmp_path / "gatewayd.ini"
        config.write_text(ini(token__alice=TOKEN))
        with activated(listening, tmp_path / "x", "--config", str(config)) as gateway:
            assert get(gateway, "/metrics").status == 401
            assert "stays" not in gateway.reload()
            assert get(gateway, "/metrics").status == 401
            assert get(gateway, "/metrics", "good").status == 200


def test_a_start_with_broken_settings_answers_clients_that_wait_in_the_socket(
    tmp_path: Path,
) -> None:
    """Each start by systemd does this, so no client hangs while the settings have a mistake."""
    config = tmp_path / "gatewayd.ini"
    config.write_text("[gateway\n")
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening, ExitStack() as stack:
        clients = []
        for number in range(20):
            clients.append(socket.create_connection(listening.getsockname(), 20))
            stack.enter_context(clients[-1])
            if number:  # one has not sent its request yet
                clients[-1].sendall(b"POST / HTTP/1.1\r\nHost: g\r\nContent-Length: 9\r\n\r\n")
        options = ("--config", str(config))
        check = activated(listening, tmp_path / "check", *options, "--check")
        assert check.wait() == 1
        began = time.monotonic()
        gateway = activated(listening, tmp_path / "start", *options)
        for client in clients:
            answer = b"".join(iter(lambda client=client: client.recv(4096), b""))  # type: ignore[misc]
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1" in head
            check_error(body, "not_started", "server_error")
            client.close()
        assert gateway.wait() == 1
        assert time.monotonic() - began < 10
        assert f"{config}:1: " in gateway.output
        assert "Traceback" not in gateway.output
