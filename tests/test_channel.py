"""A client's connection, plain and under TLS: its pace, and how it is closed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from twisted.web import http

from gatewayd.exchange import End
from tests.memory import FakeBackend, chunk, completion, settings
from tests.wired import Client, Wired

KIB = 1024
tls_or_not = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
#: 0 is none: then nothing but the end of a connection bounds it.
client_write = pytest.mark.parametrize("client_write", ["60", "0"])
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: gateway\r\n\r\n"
PATH = "/v1/chat/completions"


def chat(stream: bool = False, size: int = 2, **more: object) -> bytes:
    """A request; the echo answers a long one at length."""
    messages = [{"role": "user", "content": "x" * size}]
    return json.dumps({"messages": messages, "stream": stream, **more}).encode()


# -- a client that sends and does not read -------------------------------------------------------


@tls_or_not
def test_no_further_request_is_handled_while_what_was_answered_before_waits(
    tls: bool, tmp_path: Path
) -> None:
    """However many it sends, only so much is answered as it takes."""
    count, size = 60, 50 * KIB
    with Wired(folder=tmp_path) as wired:
        client = wired.connect(tls)
        data = client.request("POST", PATH, chat(size=size)) * count
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
def test_many_that_do_not_read_hold_no_more_each(tls: bool, tmp_path: Path) -> None:
    size = 200 * KIB
    with Wired(folder=tmp_path) as wired:
        clients = [wired.connect(tls) for _ in range(10)]
        data = clients[0].request("POST", PATH, chat(size=size)) * 5
        for client in clients:
            client.send(data, wait=False)
        wired.settle()
        assert len(wired.gateway.ended) <= 2 * len(clients)
        assert all(client.held <= 2 * size + 128 * KIB for client in clients)


@tls_or_not
def test_a_stream_behind_a_reply_that_waits_begins_when_that_was_taken(
    tls: bool, tmp_path: Path
) -> None:
    backend = FakeBackend()
    with Wired(backend, folder=tmp_path) as wired:
        client = wired.connect(tls)
        client.send(client.request("POST", PATH, chat()))
        client.send(client.request("POST", PATH, chat(stream=True)))
        backend.calls[0].whole(completion("x" * 400 * KIB))
        wired.settle()
        assert len(backend.calls) == 1
        client.read()
        assert len(backend.calls) == 2


def test_a_stream_that_begins_while_the_transport_is_full_waits() -> None:
    """Under TLS what was written is gathered first: the transport may fill up a turn later."""
    backend = FakeBackend()
    with Wired(backend) as wired:
        client = wired.connect()
        client.send(client.request("POST", PATH, chat(stream=True)))
        client.transport.write(b"x" * 400 * KIB)
        backend.calls[0].head()
        backend.calls[0].event(chunk("a"))
        assert backend.calls[0].paused
        client.read()
        assert not backend.calls[0].paused


@tls_or_not
@pytest.mark.parametrize("before", [3, 40])
def test_a_client_that_leaves_behind_many_pipelined_requests_is_noticed(
    tls: bool, before: int, tmp_path: Path
) -> None:
    """Some requests are handled in one turn of the loop; what waits meanwhile is read again."""
    backend = FakeBackend()
    with Wired(backend, folder=tmp_path) as wired:
        client = wired.connect(tls)
        client.send(HEALTH * before + client.request("POST", PATH, chat(stream=True)))
        wired.until(lambda: backend.calls, "a request at the backend")
        client.transport.write(b"x" * 400 * KIB)
        wired.settle()
        assert client.is_read
        client.close()
        wired.until(lambda: backend.calls[0].left, "a cancel")
        assert wired.gateway.ended[-1].end is End.CLIENT_GONE


@tls_or_not
def test_a_client_that_leaves_with_an_answer_in_the_transport_is_noticed(
    tls: bool, tmp_path: Path
) -> None:
    with Wired(folder=tmp_path) as wired:
        client = wired.connect(tls)
        client.send(client.request("POST", PATH, chat(size=400 * KIB)))
        wired.settle()
        assert client.held
        client.close()
        wired.until(lambda: client.is_gone, "the connection's end")


@tls_or_not
def test_a_reply_that_waits_to_be_taken_is_still_in_flight(tls: bool, tmp_path: Path) -> None:
    """What is kept for clients that do not read is bounded by ``in_flight``, too."""
    backend = FakeBackend()
    limits = settings(limits_in_flight="2")
    with Wired(backend, folder=tmp_path, settings=limits) as wired:
        clients = [wired.connect(tls) for _ in range(3)]
        for number in (0, 1):
            clients[number].send(clients[number].request("POST", PATH, chat()))
            backend.calls[number].whole(completion("x" * 400 * KIB))
        wired.settle()
        data = clients[2].request("POST", PATH, chat())
        clients[2].send(data)
        assert clients[2].read().startswith(b"HTTP/1.1 503 ")
        clients[0].read()
        clients[2].send(data)
        assert len(backend.calls) == 3
        backend.calls[2].whole(completion())
        clients[1].close()  # who leaves takes nothing more
        wired.until(lambda: clients[1].is_gone)
        for _ in range(2):
            clients[2].send(data)
            backend.calls[-1].whole(completion())
        assert clients[2].read().count(b"HTTP/1.1 200 OK") == 3


def test_a_caller_has_its_place_back_when_it_has_read_the_reply() -> None:
    """Whoever asks one thing after the other is never in its own way."""
    backend = FakeBackend()
    with Wired(backend, settings=settings(limits_in_flight="1")) as wired:
        client, headers = wired.connect(), ["Connection: close"]
        client.send(client.request("POST", PATH, chat(), *headers))
        backend.calls[0].whole(completion("x" * 400 * KIB))
        client.read(400 * KIB)
        client.read()
        again = wired.connect()
        again.send(again.request("POST", PATH, chat()))
        assert len(backend.calls) == 2


def test_bodies_on_their_way_are_bounded_together() -> None:
    """As many bytes as ``in_flight`` requests may have; one more ends the body it belongs to."""
    limits = settings(limits_in_flight="2", limits_request_body="100 KiB")
    with Wired(settings=limits) as wired:
        clients = [wired.connect() for _ in range(4)]
        data = clients[0].request("POST", PATH, chat(size=90 * KIB))
        for client in clients[:2]:
            client.send(data[:-1])
        assert [client.read() for client in clients[:2]] == [b"", b""]
        clients[2].send(data[: 30 * KIB])
        assert clients[2].read().startswith(b"HTTP/1.1 503 ")
        clients[3].send(clients[3].request("POST", PATH, chat()))  # whole at once: it never waits
        assert clients[3].read().startswith(b"HTTP/1.1 200 ")
        clients[0].close()
        wired.until(lambda: clients[0].is_gone)
        again = wired.connect()
        again.send(data[: 30 * KIB])
        again.send(data[30 * KIB :])
        assert again.read().startswith(b"HTTP/1.1 200 ")
        clients[1].send(data[-1:])
        assert clients[1].read().startswith(b"HTTP/1.1 200 ")
        assert wired.gateway.site.state.bytes_gathered == 0


# -- closing -------------------------------------------------------------------------------------


def closed_by(wired: Wired, client: Client, seconds: float) -> None:
    """It is there until then, and gone at once after that."""
    wired.wait(seconds - 0.2)
    wired.settle()
    assert not client.is_gone
    wired.wait(0.4)
    assert client.is_gone


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
    """Also one that never says a word of TLS."""
    clocks = settings(timeouts_request_head="2", timeouts_client_write=client_write)
    with Wired(folder=tmp_path, settings=clocks) as wired:
        closed_by(wired, wired.connect(tls, shakes), 2)


@tls_or_not
@client_write
def test_a_slow_head_is_answered_and_the_connection_is_closed(
    tls: bool, client_write: str, tmp_path: Path
) -> None:
    """Within the time that it may linger, although this client never sends a ``close_notify``."""
    clocks = settings(timeouts_request_head="2", timeouts_client_write=client_write)
    with Wired(folder=tmp_path, settings=clocks) as wired:
        client = wired.connect(tls)
        client.send(b"GET / HT")
        wired.wait(2)
        closed_by(wired, client, 2)
        assert client.read().startswith(b"HTTP/1.1 408 ")


@tls_or_not
@client_write
def test_a_connection_too_many_is_told_so_and_closed(
    tls: bool, client_write: str, tmp_path: Path
) -> None:
    few = settings(limits_connections="1", timeouts_client_write=client_write)
    with Wired(folder=tmp_path, settings=few) as wired:
        first, second = wired.connect(tls), wired.connect(tls)
        assert second.read_all().startswith(b"HTTP/1.1 503 ")
        assert second.ended == "closed" and not first.is_gone
        silent = wired.connect(tls, shakes=False)
        wired.settle()
        closed_by(wired, silent, 2)


def test_who_is_too_many_takes_no_place(tmp_path: Path) -> None:
    with Wired(folder=tmp_path, settings=settings(limits_connections="1")) as wired:
        first, surplus = wired.connect(), wired.connect(tls=True, shakes=False)
        first.close()
        wired.until(lambda: first.is_gone)
        assert not surplus.is_gone
        client = wired.connect()
        client.send(HEALTH)
        assert client.read().startswith(b"HTTP/1.1 200 ")


@tls_or_not
@client_write
def test_a_stop_closes_who_has_no_request_at_once(
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
def test_what_waits_is_sent_before_an_idle_connection_is_closed(
    tls: bool, client_write: str, by: str, tmp_path: Path
) -> None:
    size = 400 * KIB
    clocks = settings(timeouts_client_idle="3", timeouts_client_write=client_write)
    with Wired(folder=tmp_path, settings=clocks) as wired:
        client = wired.connect(tls)
        client.send(client.request("POST", PATH, chat(size=size)))
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
def test_who_takes_nothing_of_an_answer_is_reset_in_the_end(
    tls: bool, client_write: str, closes: bool, tmp_path: Path
) -> None:
    """With ``client_write = 0`` too, once the connection is to be closed."""
    clocks = settings(timeouts_client_idle="3", timeouts_client_write=client_write)
    with Wired(folder=tmp_path, settings=clocks) as wired:
        client = wired.connect(tls)
        headers = ["Connection: close"] if closes else []
        client.send(client.request("POST", PATH, chat(size=400 * KIB), *headers))
        wired.settle()
        wired.wait(55)
        assert not client.is_gone
        wired.wait(15)
        assert client.is_gone


# -- what TLS agrees on --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offers", "agreed"),
    [
        *(((), None), (("http/1.1",), "http/1.1"), (("http/1.0",), "http/1.0")),
        (("h2", "http/1.0", "http/1.1"), "http/1.1"),
    ],
)
def test_tls_agrees_on_what_is_spoken_here(
    offers: tuple[str, ...], agreed: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTTP/2 is not, although Twisted would offer it where its parser is installed."""
    monkeypatch.setattr(http, "H2_ENABLED", True)
    with Wired(folder=tmp_path) as wired:
        client = wired.connect(tls=True, offers=offers)
        assert client.agreed == agreed
        client.send(HEALTH)
        assert client.read().startswith(b"HTTP/1.1 200 ")


# -- HTTP/1.0, which has no chunks ---------------------------------------------------------------


def streams_over_http_1_0(wired: Wired, tls: bool) -> Client:
    """A client that has asked for a stream."""
    client = wired.connect(tls)
    data = client.request("POST", PATH, chat(stream=True))
    client.send(data.replace(b"HTTP/1.1", b"HTTP/1.0"))
    return client


@tls_or_not
@pytest.mark.parametrize("size", [10, 400 * KIB])
def test_a_reply_that_broke_off_does_not_look_whole_over_http_1_0(
    tls: bool, size: int, tmp_path: Path
) -> None:
    """All that was sent comes, and then a reset in place of the end that would make it whole."""
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
