"""WebSockets on real sockets, with the ``websockets`` library and the openai SDK."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.sync.connection import Connection

from tests.callers import ALICE, HASHES
from tests.certificates import certificate
from tests.integration.client import get
from tests.integration.gateways import MIB, FastGateway, ini
from tests.integration.processes import wait_for
from tests.integration.realtimeserver import FLOOD, RealtimeServer
from tests.websocket import BINARY, HANDSHAKE, TEXT, frame

REALTIME = "/v1/realtime"


@pytest.fixture(scope="module")
def server() -> Iterator[RealtimeServer]:
    with RealtimeServer() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(server: RealtimeServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A gateway with short clocks, and one megabyte as the largest message of a client."""
    with FastGateway(tmp_path_factory.mktemp("ws"), server.url, timeouts_total="0") as running:
        yield running
        running.check_health()


def opened(
    gateway: FastGateway, identity: str, path: str = REALTIME, **more: Any
) -> ClientConnection:
    headers = {"X-Request-ID": identity, **more.pop("headers", {})}
    return connect(
        f"ws{gateway.url.removeprefix('http')}{path}",
        additional_headers=headers,
        proxy=None,
        max_size=8 * MIB,
        **more,
    )


def code_of(client: Connection) -> int:
    """Read up to the end; return the status code that the gateway sent (1006: none)."""
    try:
        while True:
            client.recv(timeout=10)
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd is not None else 1006


@pytest.mark.parametrize("path", [REALTIME, "/v1/responses"])
@pytest.mark.parametrize("compression", [None, "deflate"])
def test_messages_of_every_kind_cross(
    gateway: FastGateway, server: RealtimeServer, path: str, compression: str | None
) -> None:
    name = f"kinds-{path[4:]}-{compression}"
    with opened(gateway, name, path, compression=compression) as client:
        assert client.response is not None
        assert client.response.headers["X-Request-ID"] == name
        session = server.session(name)
        assert bool(client.protocol.extensions) is session.compressed is bool(compression)
        for message in ("text", b"\0binary\xff", "", b"", "é" * 1000, b"x" * (MIB - 64)):
            client.send(message)
            assert client.recv(timeout=10) == message
        client.send(iter(["in ", "frag", "ments"]))
        assert client.recv(timeout=10) == "in fragments"
        assert client.ping().wait(5)
    line = gateway.line(name)
    assert (line["end"], line["status"], line["code"]) == ("complete", 101, None)
    assert line["bytes"] > 0 and line["bytes_in"] > 0
    if compression is None:
        assert line["bytes"] > MIB and line["bytes_in"] > MIB


def test_the_status_codes_of_both_sides_cross(gateway: FastGateway, server: RealtimeServer) -> None:
    with opened(gateway, "code-server") as client:
        client.send("do:close:4242")
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(timeout=10)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4242, "as ordered")
    assert gateway.line("code-server")["end"] == "complete"
    client = opened(gateway, "code-client")
    client.close(4001, "mine")
    assert gateway.line("code-client")["end"] == "complete"
    assert server.session("code-client").end()[0] == 4001


def test_promise_3_a_backend_that_breaks_off_is_1011(gateway: FastGateway) -> None:
    with opened(gateway, "die") as client:
        client.send("do:die")
        assert code_of(client) == 1011
    assert gateway.line("die")["end"] == "backend_truncated"
    with opened(gateway, "half") as client:
        client.send("do:half")
        assert code_of(client) == 1006
    assert gateway.line("half")["end"] == "backend_truncated"


def test_promise_4_a_client_that_vanishes_is_left_at_once(
    gateway: FastGateway, server: RealtimeServer
) -> None:
    client = opened(gateway, "vanish")
    client.send("hello")
    client.recv(timeout=5)
    began = time.monotonic()
    client.socket.shutdown(socket.SHUT_RDWR)
    code, ended = server.session("vanish").end()
    assert code == 1001 and ended - began < 0.1
    assert gateway.line("vanish")["end"] == "client_gone"


def test_promise_5_a_slow_client_slows_the_backend(
    gateway: FastGateway, server: RealtimeServer
) -> None:
    before = gateway.memory()
    with opened(gateway, "slow-client", compression=None, max_queue=1) as client:
        client.send("do:flood:512")
        session = server.session("slow-client")
        wait_for(lambda: session.sent > 10, 5, "some messages")
        time.sleep(1)
        reached = session.sent
        assert reached < 400
        time.sleep(0.5)
        assert session.sent == reached
        assert gateway.memory() - before < 8 * MIB
        for _ in range(512):
            assert client.recv(timeout=10) == FLOOD
    line = gateway.line("slow-client")
    assert line["end"] == "complete" and line["bytes"] > 512 * 65536


def test_promise_5_a_slow_backend_slows_the_client(gateway: FastGateway) -> None:
    before = gateway.memory()
    with opened(gateway, "slow-backend", compression=None) as client:
        client.send("do:sleep:1.5")
        client.socket.settimeout(0.5)
        sent = 0
        try:
            while sent < 1000:
                client.send(FLOOD)
                sent += 1
        except (TimeoutError, ConnectionClosedError):
            pass
        assert sent < 1000
        assert gateway.memory() - before < 8 * MIB


def test_promise_4_a_client_that_vanishes_while_it_is_not_read_is_left_at_once(
    gateway: FastGateway,
) -> None:
    fields = {**HANDSHAKE, "Host": "g", "X-Request-ID": "vanish-unread"}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    whole = frame(BINARY, bytes(65536), masked=True)
    with socket.create_connection(("127.0.0.1", gateway.port)) as client:
        client.sendall(f"GET {REALTIME} HTTP/1.1\r\n{head}\r\n".encode())
        assert client.recv(4096).startswith(b"HTTP/1.1 101 ")
        client.sendall(frame(TEXT, b"do:sleep:4", masked=True))
        data, full = whole, 0
        while full < 30:  # the kernel takes no more, and the gateway does not read
            try:
                sent = client.send(data, socket.MSG_DONTWAIT)
                data, full = data[sent:] or whole, 0
            except BlockingIOError:
                full += 1
                time.sleep(0.01)
        assert "vanish-unread" not in gateway.lines()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    began = time.monotonic()
    assert gateway.line("vanish-unread")["end"] == "client_gone"
    assert time.monotonic() - began < 0.3


def test_promise_9_pings_do_not_keep_an_idle_tunnel_open(gateway: FastGateway) -> None:
    with opened(gateway, "idle") as client:
        client.send("do:pings:6")
        began = time.monotonic()
        assert code_of(client) == 1011
        assert 1.5 < time.monotonic() - began < 4
    line = gateway.line("idle")
    assert (line["end"], line["code"]) == ("backend_timeout", "upstream_timeout")


def test_a_message_above_the_limit_is_1009(gateway: FastGateway) -> None:
    with opened(gateway, "large", compression=None) as client:
        client.send(b"x" * (MIB + 1))
        assert code_of(client) == 1009
    assert gateway.line("large")["code"] == "request_too_large"


def test_a_refusal_of_the_backend_crosses(gateway: FastGateway) -> None:
    with pytest.raises(InvalidStatus) as refused:
        opened(gateway, "refused", f"{REALTIME}?model=refused")
    response = refused.value.response
    assert response.status_code == 422 and b"not this one" in response.body
    assert gateway.line("refused")["end"] == "refused"


def test_tokens_models_aliases_and_origins(server: RealtimeServer, tmp_path: Path) -> None:
    text = ini(
        backend__voice={"url": server.url, "models": "voice = real"},
        token__alice={"sha256": HASHES["token_alice_sha256"], "models": "voice"},
    )
    with FastGateway(tmp_path) as gateway:
        gateway.ini.write_text(gateway.ini.read_text() + text)
        gateway.send(signal.SIGHUP)
        wait_for(lambda: "reloaded:" in gateway.output, 10, "the reload")

        def answer_to(path: str, identity: str, **more: Any) -> int:
            try:
                with opened(gateway, identity, path, **more):
                    return 101
            except InvalidStatus as refused:
                status: int = refused.response.status_code
                return status

        bearer = {"Authorization": f"Bearer {ALICE}"}
        path = f"{REALTIME}?model=voice"
        assert answer_to(path, "no-token") == 401
        assert answer_to(f"{REALTIME}?model=real", "model", headers=bearer) == 403
        assert answer_to("/v1/responses?model=voice", "responses", headers=bearer) == 403
        page = {"headers": bearer, "origin": "https://evil.example"}
        assert answer_to(path, "origin", **page) == 403
        assert answer_to(path, "good", headers=bearer) == 101
        assert server.session("good").path == f"{REALTIME}?model=real"
        key = ["realtime", f"openai-insecure-api-key.{ALICE}"]
        with opened(gateway, "browser", path, subprotocols=key) as client:
            assert client.subprotocol == "realtime"
        assert ALICE not in str(server.session("browser").headers)
        assert gateway.line("browser")["caller"] == "alice"
        assert gateway.line("good")["model"] == "voice"


def test_a_stop_waits_for_drain_and_then_closes_with_1012(
    server: RealtimeServer, tmp_path: Path
) -> None:
    with FastGateway(tmp_path, server.url, gateway_drain="1") as gateway:
        with opened(gateway, "drain") as client:
            gateway.send(signal.SIGTERM)
            began = time.monotonic()
            client.send("still here")
            assert client.recv(timeout=5) == "still here"
            assert code_of(client) == 1012
            assert 0.8 < time.monotonic() - began < 3
        assert server.session("drain").end()[0] == 1001
        assert gateway.wait() == 0
        assert gateway.line("drain")["end"] == "drained"


def test_a_reload_leaves_tunnels_open(server: RealtimeServer, tmp_path: Path) -> None:
    with FastGateway(tmp_path, server.url) as gateway, opened(gateway, "reload") as client:
        gateway.ini.write_text(gateway.ini.read_text().replace("idle = 2.0", "idle = 9"))
        gateway.send(signal.SIGHUP)
        wait_for(lambda: "reloaded:" in gateway.output, 10, "the reload")
        client.send("hello")
        assert client.recv(timeout=5) == "hello"
        with opened(gateway, "new") as other:
            other.send("hi")
            assert other.recv(timeout=5) == "hi"


def test_tls_on_both_sides(tmp_path: Path) -> None:
    backend, own = certificate(tmp_path, "backend"), certificate(tmp_path, "own")
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(*backend)
    trust = ssl.create_default_context(cafile=own[0])
    with RealtimeServer(served) as server:
        pair = {"gateway_tls_certificate": own[0], "gateway_tls_key": own[1]}
        with FastGateway(tmp_path, server.url, tls_ca=backend[0], trust=trust, **pair) as gateway:
            with opened(gateway, "tls", ssl=trust) as client:
                for message in ("text", b"x" * (MIB - 64)):
                    client.send(message)
                    assert client.recv(timeout=10) == message
            assert gateway.line("tls")["end"] == "complete"
            assert server.session("tls").end()[0] == 1000
            with opened(gateway, "tls-die", ssl=trust) as client:
                client.send("do:die")
                assert code_of(client) == 1011
            client = opened(gateway, "tls-vanish", ssl=trust)
            client.socket.close()
            assert server.session("tls-vanish").end()[0] == 1001


def test_the_sdk_talks_to_the_realtime_api(gateway: FastGateway) -> None:
    async def talk() -> str:
        client = openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key="any", max_retries=0)
        async with client, client.realtime.connect(model="sdk") as connection:
            assert (await connection.recv()).type == "session.created"
            await connection.session.update(session={"type": "realtime"})
            assert (await connection.recv()).type == "session.updated"
            await connection.response.create()
            text = ""
            async for event in connection:
                if event.type == "response.output_text.delta":
                    text += event.delta
                elif event.type == "response.done":
                    return text
        raise AssertionError("no end")

    assert asyncio.run(talk()) == "Hello there"


def test_the_sdk_talks_to_the_responses_api(gateway: FastGateway) -> None:
    client = openai.OpenAI(base_url=gateway.url + "/v1", api_key="any", max_retries=0)
    with client, client.responses.connect() as connection:
        connection.response.create(model="m", input="hi")
        types = [connection.recv().type for _ in range(4)]
        assert (types[0], types[-1]) == ("response.created", "response.done")


def test_the_gateway_serves_on_and_counts_the_bytes(gateway: FastGateway) -> None:
    page = get(gateway, "/metrics").body.decode()
    assert 'gatewayd_tunnel_bytes_total{backend="b0",direction="out"}' in page
    assert 'status="101"' in page
    assert "gatewayd_requests_in_flight 1.0" in page
