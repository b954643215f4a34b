"""How a client's connection is closed, plain and under TLS."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.memory import FakeBackend, chunk, settings
from tests.wired import (
    CHAT,
    HEALTH,
    KIB,
    Client,
    Wired,
    chat_body,
    client_write,
    closed_by,
    tls_or_not,
)


@tls_or_not
@client_write
def test_an_idle_connection_is_closed_on_time(tls: bool, client_write: str, tmp_path: Path) -> None:
    clocks = settings(timeouts_client_idle="3", timeouts_client_write=client_write)
    with Wired(folder=tmp_path, settings=clocks) as wired:
        client = wired.connect(tls)
        client.send(HEALTH)
        assert client.read().endswith(b"}")
        closed_by(wired, client, 3)
        assert client.read() == b"" and client.ended == "closed"


@tls_or_not
@client_write
@pytest.mark.parametrize("shakes", [False, True])
def test_a_silent_connection_is_closed_on_time(
    tls: bool, client_write: str, shakes: bool, tmp_path: Path
) -> None:
    """Also one that never begins the TLS handshake."""
    clocks = settings(timeouts_request_head="2", timeouts_client_write=client_write)
    with Wired(folder=tmp_path, settings=clocks) as wired:
        closed_by(wired, wired.connect(tls, shakes), 2)


@tls_or_not
@client_write
def test_a_slow_head_is_answered_and_the_connection_is_closed(
    tls: bool, client_write: str, tmp_path: Path
) -> None:
    """The connection lingers no longer than allowed, although no ``close_notify`` arrives."""
    clocks = settings(timeouts_request_head="2", timeouts_client_write=client_write)
    with Wired(folder=tmp_path, settings=clocks) as wired:
        client = wired.connect(tls)
        client.send(b"GET / HT")
        wired.wait(2)
        closed_by(wired, client, 2)
        assert client.read().startswith(b"HTTP/1.1 408 ")


@tls_or_not
@client_write
def test_a_shutdown_closes_connections_without_a_request_at_once(
    tls: bool, client_write: str, tmp_path: Path
) -> None:
    clocks = settings(timeouts_client_write=client_write)
    with Wired(folder=tmp_path, settings=clocks) as wired:
        clients = [wired.connect(tls), wired.connect(tls, shakes=False), wired.connect(tls)]
        clients[2].send(HEALTH)
        for channel in list(wired.gateway.site.state.connections):
            channel.close_if_idle()
        wired.settle()
        assert all(client.is_gone for client in clients)


@tls_or_not
@client_write
@pytest.mark.parametrize("by", ["idle", "stop"])
def test_pending_bytes_are_sent_before_an_idle_connection_is_closed(
    tls: bool, client_write: str, by: str, tmp_path: Path
) -> None:
    size = 400 * KIB
    clocks = settings(timeouts_client_idle="3", timeouts_client_write=client_write)
    with Wired(folder=tmp_path, settings=clocks) as wired:
        client = wired.connect(tls)
        client.send(client.request("POST", CHAT, chat_body(size=size)))
        wired.settle()
        assert client.held
        if by == "stop":
            for channel in list(wired.gateway.site.state.connections):
                channel.close_if_idle()
        for _ in range(10):
            wired.wait(1)
            client.read(8 * KIB)
        assert not client.is_gone
        client.read()
        wired.wait(3.2)
        assert client.is_gone and len(client.heard) > size
        client.read()
        assert client.ended == "closed"


@tls_or_not
@client_write
@pytest.mark.parametrize("closes", [False, True])
def test_a_client_that_takes_nothing_of_an_answer_is_reset_in_the_end(
    tls: bool, client_write: str, closes: bool, tmp_path: Path
) -> None:
    """Also with ``client_write = 0``, once the connection is closing."""
    clocks = settings(timeouts_client_idle="3", timeouts_client_write=client_write)
    with Wired(folder=tmp_path, settings=clocks) as wired:
        client = wired.connect(tls)
        headers = ["Connection: close"] if closes else []
        client.send(client.request("POST", CHAT, chat_body(size=400 * KIB), *headers))
        wired.settle()
        wired.wait(55)
        assert not client.is_gone
        wired.wait(15)
        assert client.is_gone


def streams_over_http_1_0(wired: Wired, tls: bool) -> Client:
    """A client that has asked for a stream over HTTP/1.0."""
    client = wired.connect(tls)
    data = client.request("POST", CHAT, chat_body(stream=True))
    client.send(data.replace(b"HTTP/1.1", b"HTTP/1.0"))
    return client


@tls_or_not
@pytest.mark.parametrize("size", [10, 400 * KIB])
def test_a_reply_that_broke_off_does_not_look_whole_over_http_1_0(
    tls: bool, size: int, tmp_path: Path
) -> None:
    """The client gets all that was sent, then a reset instead of a normal end."""
    backend = FakeBackend()
    with Wired(backend, folder=tmp_path) as wired:
        client = streams_over_http_1_0(wired, tls)
        backend.calls[0].head()
        backend.calls[0].event(chunk("x" * size))
        backend.calls[0].end(ConnectionResetError())
        wired.wait(5)
        assert client.is_gone is (size == 10)
        client.read()
        wired.wait(0.1)
        client.read()
        assert b'"error"' in client.heard and len(client.heard) > size
        assert client.ended in ("reset", "cut")


@tls_or_not
def test_a_whole_reply_over_http_1_0_ends_with_its_connection(tls: bool, tmp_path: Path) -> None:
    backend = FakeBackend()
    with Wired(backend, folder=tmp_path) as wired:
        client = streams_over_http_1_0(wired, tls)
        backend.calls[0].head()
        backend.calls[0].event(chunk("a", "stop"))
        backend.calls[0].event(b"[DONE]")
        assert client.read_all().endswith(b"data: [DONE]\n\n")
        assert client.ended == "closed"
