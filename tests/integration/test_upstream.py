"""Backend connections and the kernel: addresses, descriptors, early answers, unexpected bytes, and
an event loop that was blocked."""

from __future__ import annotations

import json
import resource
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.certificates import certificate
from tests.faultbackend import FaultBackend
from tests.integration.client import Answer, Client, ask
from tests.integration.gateways import CONNECT, PATIENT, FastGateway, watched
from tests.integration.processes import Gateway, wait_for

#: Seconds: far less than any clock, far more than an answer takes.
SOON = 1.5


@contextmanager
def held_up(daemon: FastGateway) -> Iterator[None]:
    """Block the event loop of the gateway meanwhile."""
    daemon.send(signal.SIGSTOP)
    try:
        stat = Path(f"/proc/{daemon.pid}/stat")
        wait_for(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", 2, "its stop")
        yield
    finally:
        daemon.send(signal.SIGCONT)


# -- where a backend is ----------------------------------------------------------------------------


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_backend_at_an_address(tmp_path: Path, host: str, secure: bool) -> None:
    pair = certificate(tmp_path, "backend", host=host) if secure else None
    with FaultBackend(host=host, tls=pair) as sim:
        config = f"[backend b]\nurl = {sim.url}/v1\nhealth = /health\n"
        if pair is not None:
            config += f"tls_ca = {pair[0]}\n"
        with Gateway(folder=tmp_path, config=config) as gateway:
            for _ in range(2):
                with Client(gateway.port) as client:
                    assert client.chat(stream=True).whole
            assert listed(gateway.port) == ["sim-model"]
            assert [record.violations for record in sim.records if record.violations] == []


@pytest.mark.parametrize("trusted", [True, False])
def test_without_tls_ca_a_backend_is_trusted_as_the_system_trusts_it(
    tmp_path: Path, trusted: bool
) -> None:
    pair = certificate(tmp_path, "backend")
    store = {"SSL_CERT_FILE": pair[0]} if trusted else None
    with (
        FaultBackend(tls=pair) as sim,
        Gateway("--backend-url", sim.url, folder=tmp_path, environment=store) as gateway,
        Client(gateway.port) as client,
    ):
        answer = client.chat()
        assert answer.status == (200 if trusted else 502)
        assert len(sim.records) == trusted


def test_backends_at_names_with_an_underscore_start_and_take_nothing_from_others(
    tmp_path: Path,
) -> None:
    """No resolver knows these names; the answer is a 502, not a fault of the gateway."""
    with FaultBackend() as sim:
        config = f"""
            [backend good]
            url = {sim.url}
            models = sim-model
            [backend plain]
            url = http://no_such_host.invalid:1
            models = plain
            health = /health
            [backend secure]
            url = https://no_such_host.invalid:1
            models = secure
            """
        config = "\n".join(map(str.strip, config.splitlines()))
        with Gateway(folder=tmp_path, config=config) as gateway, Client(gateway.port) as client:
            assert listed(gateway.port) == ["sim-model", "plain", "secure"]
            for model in ("plain", "secure") * 2:
                answer = client.chat(model=model)
                assert (answer.status, answer.json()["error"]["code"]) == (502, "upstream_dns")


def listed(port: int) -> list[str]:
    with Client(port) as client:
        client.sock.sendall(b"GET /v1/models HTTP/1.1\r\nHost: gateway\r\n\r\n")
        answer = client.answer("")
    assert answer.status == 200, answer
    return [entry["id"] for entry in answer.json()["data"]]


# -- descriptors -----------------------------------------------------------------------------------


@contextmanager
def no_descriptor_left(daemon: FastGateway) -> Iterator[None]:
    """The gateway can open no further descriptor."""
    number = resource.RLIMIT_NOFILE
    soft, hard = resource.prlimit(daemon.pid, number)
    resource.prlimit(daemon.pid, number, (daemon.descriptors(), hard))
    try:
        yield
    finally:
        resource.prlimit(daemon.pid, number, (soft, hard))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
def test_without_a_free_descriptor_the_gateway_reports_its_own_overload(
    tmp_path: Path, host: str, secure: bool
) -> None:
    pair = certificate(tmp_path, "backend") if secure else None
    with FaultBackend(tls=pair, close_after_reply=True) as sim:
        url = sim.url.replace("127.0.0.1", host)
        with (
            FastGateway(tmp_path, url, tls_ca=pair[0] if pair else "") as daemon,
            Client(daemon.port) as client,
        ):
            client.sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: gateway\r\n\r\n")
            assert client.answer("").status == 200
            descriptors = daemon.descriptors()
            secure_by_name = secure and host == "localhost"  # its certificate is for the address
            first = client.chat()
            assert first.status == (502 if secure_by_name else 200)
            wait_for(lambda: daemon.descriptors() <= descriptors, 2, "no connection to it")
            with no_descriptor_left(daemon):
                for _ in range(6):
                    answer = client.chat()
                    assert (answer.status, answer.json()["error"]["code"]) == (503, "overloaded")
                    assert "open files" in daemon.line(answer.id)["detail"]
                    assert daemon.line(answer.id)["end"] == "refused"
            if not secure_by_name:
                assert client.chat().status == 200


# -- what a connection still holds -----------------------------------------------------------------


@pytest.mark.parametrize("size", [5_000_000, 300_000], ids=["in the gateway", "in the kernel"])
def test_a_connection_whose_backend_answered_before_it_had_the_request_is_not_used_again(
    tmp_path: Path, size: int
) -> None:
    with (
        FaultBackend(on_accept="early", so_rcvbuf=4096) as sim,
        FastGateway(tmp_path, sim.url, limits_request_body="8 MiB") as daemon,
    ):
        for _ in range(3):
            began = time.monotonic()
            answer = post_large(daemon.port, size)
            assert answer.status == 429 and time.monotonic() - began < SOON
        assert sim.connections_total == 3
        sim.on_accept = "serve"
        assert ask(daemon).status == 200


def post_large(port: int, size: int) -> Answer:
    content = "a" * size
    body = json.dumps({"messages": [{"role": "user", "content": content}]}).encode()
    with Client(port) as client:
        client.sock.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        client.sock.sendall(body)
        return client.answer("")


def test_bytes_after_a_reply_do_not_reach_the_next_client(tmp_path: Path) -> None:
    """They arrive while the loop is blocked, after the next request, which is read first."""
    with (
        FaultBackend() as sim,
        watched(FastGateway(tmp_path, sim.url, **PATIENT), sim, warm=False) as daemon,
        Client(daemon.port) as client,
    ):
        assert client.chat("surplus:0.3").whole
        with held_up(daemon):
            second = client.send_chat()
            time.sleep(0.6)  # the surplus comes
        answer = client.answer(second)
        assert b"stolen" not in answer.body and answer.json()["object"] == "chat.completion"
        (first, record) = sim.records[-2:]
        assert record.connection != first.connection


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
def test_a_connection_that_its_backend_has_closed_already_is_not_tried_first(
    tmp_path: Path, secure: bool
) -> None:
    """A request is not sent twice if the connection is seen to be closed before it is sent."""
    pair = certificate(tmp_path, "backend") if secure else None
    with (
        FaultBackend(keep_alive_seconds=0.3, tls=pair) as sim,
        watched(
            FastGateway(tmp_path, sim.url, tls_ca=pair[0] if pair else "", **PATIENT),
            sim,
            warm=False,
        ) as daemon,
        Client(daemon.port) as client,
    ):
        assert client.chat().whole
        with held_up(daemon):
            second = client.send_chat()
            time.sleep(0.6)  # it is closed
        assert client.answer(second).whole
        assert len(sim.records_for(second)) == 1


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
def test_a_connection_whose_reply_had_to_wait_for_its_client_serves_the_next_one(
    tmp_path: Path, secure: bool
) -> None:
    """The last bytes of the reply may or may not be read while the client is slow."""
    pair = certificate(tmp_path, "backend") if secure else None
    with (
        FaultBackend(tls=pair) as sim,
        watched(
            FastGateway(tmp_path, sim.url, tls_ca=pair[0] if pair else "", **PATIENT),
            sim,
            warm=False,
        ) as daemon,
    ):
        for size in range(100, 500, 25):
            with Client(daemon.port, receive_buffer=4096) as slow:
                id = slow.send_chat(f"huge:{size}KB+no-done", stream=True)
                wait_for(partial(sim.records_for, id), 2, "the request")
                time.sleep(0.05)  # its socket is full
                assert slow.answer(id).whole
            began = time.monotonic()
            assert ask(daemon).status == 200 and time.monotonic() - began < SOON


# -- a loop that was held up -----------------------------------------------------------------------


def test_a_connection_that_was_established_while_the_loop_was_blocked_is_used(
    tmp_path: Path,
) -> None:
    """When the loop runs again, ``connect`` seconds are over and the connection is established."""
    with (
        full_listener() as (listener, fillers),
        FastGateway(tmp_path, f"http://127.0.0.1:{listener.getsockname()[1]}") as daemon,
        Client(daemon.port) as client,
    ):
        asked = client.send_chat()
        time.sleep(CONNECT / 4)  # the SYN is dropped; the kernel sends it again after a second
        with held_up(daemon):
            connection = accept(listener, fillers)
            time.sleep(CONNECT / 2)
        with connection:
            connection.settimeout(5)
            assert connection.recv(65536).startswith(b"POST /v1/chat/completions ")
            connection.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n" % len(COMPLETION) + COMPLETION
            )
            assert client.answer(asked).status == 200
        assert daemon.line(asked)["connect_ms"] > CONNECT * 1000


COMPLETION = b'{"object":"chat.completion","choices":[{"index":0,"finish_reason":"stop"}]}'


@contextmanager
def full_listener() -> Iterator[tuple[socket.socket, list[socket.socket]]]:
    """A port that answers no SYN while these sockets fill its queue (Linux)."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        try:
            yield listener, fillers
        finally:
            for filler in fillers:
                filler.close()


def accept(listener: socket.socket, fillers: list[socket.socket]) -> socket.socket:
    """Empty the queue, and return the first connection that is not one of these sockets."""
    ports = [filler.getsockname()[1] for filler in fillers]
    for filler in fillers:
        filler.close()
    listener.settimeout(10)
    while True:
        connection, (_, port) = listener.accept()
        if port not in ports:
            return connection
        connection.close()
