"""One client's connection: how requests are read from it, and at whose pace."""

from __future__ import annotations

from pathlib import Path

import pytest

from gatewayd.exchange import End
from tests.memory import (
    BODY,
    Answer,
    FakeBackend,
    Gateway,
    chunk,
    completion,
    echo_gateway,
    send_raw,
)
from tests.wired import CHAT, HEALTH, KIB, Wired, chat_body, tls_or_not


@pytest.mark.parametrize("version", ["1.2", "1.9"])
def test_a_later_minor_version_is_read_as_1_1(version: str) -> None:
    data = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json \r\n"
    data += b"Content-Length: %d\t\r\n\r\n" % len(BODY) + BODY
    client = send_raw(echo_gateway(), data.replace(b"1.1", version.encode(), 1) * 2)
    assert client.value().count(b"HTTP/1.1 200 OK") == 2


@pytest.mark.parametrize(
    ("line", "status"),
    [
        *(("GET *", 400), ("POST gateway:80", 400), ("CONNECT gateway:80", 405)),
        *(("CONNECT /healthz", 405), ("OPTIONS *", 404)),
    ],
)
def test_a_target_that_the_method_cannot_have_ends_the_connection(line: str, status: int) -> None:
    gateway = echo_gateway()
    head = f"{line} HTTP/1.1\r\nHost: gateway\r\n\r\n".encode()
    client = send_raw(gateway, head + b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.value().startswith(b"HTTP/1.1 %d " % status)
    assert len(gateway.ended) == (2 if status == 404 else 1)


def test_requests_on_one_connection_are_answered_in_order() -> None:
    backend = FakeBackend()
    gateway = Gateway(backend)
    client = gateway.chat()
    gateway.request("GET", "/healthz", transport=client)
    assert client.value() == b""
    backend.calls[0].whole(completion())
    first, second = client.value().split(b"HTTP/1.1 200 OK")[1:]
    assert b"chat.completion" in first and b'"ok"' in second


def test_many_pipelined_requests_do_not_nest() -> None:
    gateway = echo_gateway()
    client = send_raw(gateway, b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n" * 1500)
    gateway.clock.pump([0] * 200)
    assert client.value().count(b"HTTP/1.1 200 OK") == 1500


@pytest.mark.parametrize("before", [0, 15, 16, 31])
def test_a_closing_connection_is_read_after_any_number_of_requests(before: int) -> None:
    """It waits for no further turn, because what it receives is only dropped."""
    gateway = echo_gateway()
    health = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
    closing = health[:-2] + b"Connection: close\r\n\r\n"
    client = send_raw(gateway, health * before + closing + health)
    while not client.disconnecting:
        gateway.clock.advance(0)
    assert client.producerState == "producing"
    assert min(call.getTime() for call in gateway.clock.getDelayedCalls()) > 0
    assert len(gateway.ended) == before + 1


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_request_may_come_in_any_pieces(size: int) -> None:
    gateway = echo_gateway()
    data = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    chunked = b"".join(b"%x\r\n%b\r\n" % (1, BODY[i : i + 1]) for i in range(len(BODY)))
    data += b"Transfer-Encoding: chunked\r\n\r\n" + chunked + b"0\r\nHost: evil\r\n\r\n"
    client = gateway.connect()
    for i in range(0, len(data), size):
        client.protocol.dataReceived(data[i : i + size])
    assert Answer(client).status == 200


def test_a_request_to_switch_protocols_is_answered_in_this_one() -> None:
    gateway = echo_gateway()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    head += b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n"
    body = b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    client = send_raw(gateway, head + body + b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.value().count(b"HTTP/1.1 200 OK") == 2


def test_a_body_is_awaited_only_if_its_head_was_accepted() -> None:
    gateway = echo_gateway(limits_request_body="1000")
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n"
    client = send_raw(gateway, head + b"Content-Length: 1001\r\n\r\n")
    assert Answer(client).status == 413 and Answer(client).closed
    client = send_raw(gateway, head + b"Content-Length: 10\r\n\r\n")
    assert client.value() == b"HTTP/1.1 100 Continue\r\n\r\n"


def test_a_chunked_body_is_refused_when_it_has_grown_too_large() -> None:
    gateway = echo_gateway(limits_request_body="1000")
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    client = send_raw(gateway, head + b"3e8\r\n" + b"x" * 1000 + b"\r\n")
    assert client.value() == b""
    client.protocol.dataReceived(b"1\r\nx")
    assert Answer(client).status == 413 and Answer(client).closed


def test_the_clocks_of_head_and_body_are_total_and_an_idle_connection_is_closed() -> None:
    gateway = echo_gateway(
        timeouts_request_head="2", timeouts_request_body="4", timeouts_client_idle="3"
    )
    slow_head, slow_body = gateway.connect(), gateway.connect()
    silent, idle = gateway.connect(), gateway.request("GET", "/healthz")
    slow_body.protocol.dataReceived(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n")
    for _ in range(19):
        slow_head.protocol.dataReceived(b"G")
        slow_body.protocol.dataReceived(b"x")
        gateway.clock.advance(0.1)
    assert not slow_head.value() and not silent.disconnecting
    gateway.clock.advance(0.2)
    assert Answer(slow_head).status == 408 and silent.disconnecting and not silent.value()
    gateway.clock.pump([0.1] * 20)
    assert Answer(slow_body).status == 408 and idle.disconnecting
    assert gateway.ended[-1].code == "request_timeout"


def test_after_the_last_answer_the_rest_is_dropped_and_the_connection_ends() -> None:
    gateway = echo_gateway()
    bad = b"GET /healthz HTTP/1.1\r\n\r\n"
    client = send_raw(gateway, bad + b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
    client.protocol.dataReceived(b"more")
    assert Answer(client).status == 400 and len(gateway.ended) == 1
    assert client.connected
    gateway.clock.advance(2)
    assert not client.connected and not client.aborted


@tls_or_not
def test_no_further_request_is_handled_while_earlier_answers_are_pending(
    tls: bool, tmp_path: Path
) -> None:
    """Requests are answered only as fast as the client takes the answers."""
    count, size = 60, 50 * KIB
    with Wired(folder=tmp_path) as wired:
        client = wired.connect(tls)
        data = client.request("POST", CHAT, chat_body(size=size)) * count
        sent = client.send(data, wait=False)
        wired.settle()
        handled = len(wired.gateway.ended)
        assert 0 < handled < 20 and client.held < 64 * KIB + 2 * size + 64_000
        assert sent < 40 * size  # the rest waits on the client's side
        while sent < len(data):
            client.read()
            sent += client.send(data[sent:], wait=False)
        client.read()
        assert client.heard.count(b"HTTP/1.1 200 OK") == len(wired.gateway.ended) == count


@tls_or_not
def test_many_clients_that_do_not_read_hold_no_more_memory_each(tls: bool, tmp_path: Path) -> None:
    size = 200 * KIB
    with Wired(folder=tmp_path) as wired:
        clients = [wired.connect(tls) for _ in range(10)]
        data = clients[0].request("POST", CHAT, chat_body(size=size)) * 5
        for client in clients:
            client.send(data, wait=False)
        wired.settle()
        assert len(wired.gateway.ended) <= 2 * len(clients)
        assert all(client.held <= 2 * size + 128 * KIB for client in clients)


@tls_or_not
def test_a_stream_begins_when_the_client_has_taken_the_reply_before_it(
    tls: bool, tmp_path: Path
) -> None:
    backend = FakeBackend()
    with Wired(backend, folder=tmp_path) as wired:
        client = wired.connect(tls)
        client.send(client.request("POST", CHAT, chat_body()))
        client.send(client.request("POST", CHAT, chat_body(stream=True)))
        backend.calls[0].whole(completion("x" * 400 * KIB))
        wired.settle()
        assert len(backend.calls) == 1
        client.read()
        assert len(backend.calls) == 2


def test_a_stream_that_begins_while_the_transport_is_full_waits() -> None:
    """Under TLS, written data is gathered first, so the transport may become full a turn later."""
    backend = FakeBackend()
    with Wired(backend) as wired:
        client = wired.connect()
        client.send(client.request("POST", CHAT, chat_body(stream=True)))
        client.transport.write(b"x" * 400 * KIB)
        backend.calls[0].head()
        backend.calls[0].event(chunk("a"))
        assert backend.calls[0].paused
        client.read()
        assert not backend.calls[0].paused


@tls_or_not
@pytest.mark.parametrize("before", [3, 40])
def test_a_disconnect_behind_many_pipelined_requests_is_noticed(
    tls: bool, before: int, tmp_path: Path
) -> None:
    """The requests need more than one turn of the loop; the socket is read again after them."""
    backend = FakeBackend()
    with Wired(backend, folder=tmp_path) as wired:
        client = wired.connect(tls)
        client.send(HEALTH * before + client.request("POST", CHAT, chat_body(stream=True)))
        wired.until(lambda: backend.calls, "a request at the backend")
        client.transport.write(b"x" * 400 * KIB)
        wired.settle()
        assert client.is_read
        client.close()
        wired.until(lambda: backend.calls[0].left, "a cancel")
        assert wired.gateway.ended[-1].end is End.CLIENT_GONE


@tls_or_not
def test_a_disconnect_with_a_pending_answer_is_noticed(tls: bool, tmp_path: Path) -> None:
    with Wired(folder=tmp_path) as wired:
        client = wired.connect(tls)
        client.send(client.request("POST", CHAT, chat_body(size=400 * KIB)))
        wired.settle()
        assert client.held
        client.close()
        wired.until(lambda: client.is_gone, "the connection's end")
