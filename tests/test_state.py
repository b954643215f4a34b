"""What all connections share: how many there may be, and how many bytes of bodies."""

from __future__ import annotations

from pathlib import Path

from tests.memory import Answer, echo_gateway, settings
from tests.wired import CHAT, HEALTH, KIB, Wired, chat_body, client_write, closed_by, tls_or_not


def test_a_surplus_connection_is_refused_with_an_error() -> None:
    gateway = echo_gateway(limits_connections="2")
    first, second = gateway.connect(), gateway.connect()
    third = gateway.connect()
    assert Answer(third).code == "overloaded" and Answer(third).header("x-request-id")
    third.leave()
    assert Answer(gateway.request("GET", "/healthz", transport=second)).status == 200
    first.leave()
    assert Answer(gateway.request("GET", "/healthz")).status == 200


def test_incomplete_bodies_have_a_common_limit() -> None:
    """The limit is that of ``in_flight`` bodies; a body that exceeds it is refused."""
    limits = settings(limits_in_flight="2", limits_request_body="100 KiB")
    with Wired(settings=limits) as wired:
        clients = [wired.connect() for _ in range(4)]
        data = clients[0].request("POST", CHAT, chat_body(size=90 * KIB))
        for client in clients[:2]:
            client.send(data[:-1])
        assert [client.read() for client in clients[:2]] == [b"", b""]
        clients[2].send(data[: 30 * KIB])
        assert clients[2].read().startswith(b"HTTP/1.1 503 ")
        # A body that arrives at once is never incomplete, so it is not counted.
        clients[3].send(clients[3].request("POST", CHAT, chat_body()))
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


@tls_or_not
@client_write
def test_a_surplus_connection_is_refused_and_closed(
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


def test_a_refused_connection_does_not_count(tmp_path: Path) -> None:
    with Wired(folder=tmp_path, settings=settings(limits_connections="1")) as wired:
        first, surplus = wired.connect(), wired.connect(tls=True, shakes=False)
        first.close()
        wired.until(lambda: first.is_gone)
        assert not surplus.is_gone
        client = wired.connect()
        client.send(HEALTH)
        assert client.read().startswith(b"HTTP/1.1 200 ")
