"""What the kernel holds for a connection, on real sockets."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from OpenSSL import SSL
from twisted.internet.protocol import Protocol

from gatewayd.backend.sockets import arrivals, has_unsent
from tests.certificates import certificate
from tests.wired import Accepted, Loop

LARGE = 1 << 20


@pytest.fixture
def pair() -> Iterator[tuple[Accepted, socket.socket]]:
    """A transport, and the socket of its peer."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        peer = socket.create_connection(listening.getsockname())
        accepted, _ = listening.accept()
    accepted.setblocking(False)
    with peer, accepted:
        yield Accepted(accepted, Protocol(), Loop()), peer


@pytest.mark.parametrize("what", ["bytes", "the end"])
def test_unread_bytes_are_noticed_and_stay_unread(
    pair: tuple[Accepted, socket.socket], what: str
) -> None:
    transport, peer = pair
    waiting = arrivals(transport)
    as_tls_wraps_it = SimpleNamespace(transport=transport, getHandle=lambda: None)
    assert not waiting()
    if what == "bytes":
        peer.send(b"x")
    else:
        peer.close()
    select.select([transport.socket], [], [], 5)
    assert waiting() and waiting() and arrivals(as_tls_wraps_it)()
    assert not arrivals(SimpleNamespace())()  # no socket


def test_a_further_record_of_the_same_segment_is_noticed(
    pair: tuple[Accepted, socket.socket], tmp_path: Path
) -> None:
    """Else it would be read as the reply to the next request on the connection."""
    transport, _ = pair
    server, client = shaken(*certificate(tmp_path, "backend"))
    waiting = arrivals(SimpleNamespace(transport=transport, getHandle=lambda: client))
    assert not waiting()
    server.send(b"reply")
    server.send(b"surplus")
    client.bio_write(server.bio_read(LARGE))
    assert client.recv(LARGE) == b"reply"
    assert waiting() and waiting()
    assert client.recv(LARGE) == b"surplus" and not waiting()
    server.shutdown()
    client.bio_write(server.bio_read(LARGE))
    assert waiting()


def shaken(certificate: str, key: str) -> tuple[SSL.Connection, SSL.Connection]:
    """Both ends of TLS without sockets, after the handshake: the server, the client."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.use_certificate_file(certificate)
    context.use_privatekey_file(key)
    server = SSL.Connection(context, None)
    client = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), None)
    server.set_accept_state()
    client.set_connect_state()
    for _ in range(3):
        for end, other in ((client, server), (server, client)):
            with suppress(SSL.WantReadError):
                end.do_handshake()
            with suppress(SSL.WantReadError):
                other.bio_write(end.bio_read(LARGE))
    with suppress(SSL.WantReadError):
        client.recv(1)  # the tickets
    return server, client


def test_unsent_bytes_of_a_large_request_are_noticed(
    pair: tuple[Accepted, socket.socket],
) -> None:
    transport, peer = pair
    assert not has_unsent(transport, LARGE)
    sent = 0
    with suppress(BlockingIOError):
        while True:
            sent += transport.socket.send(b"x" * LARGE)
    assert has_unsent(transport, LARGE) and not has_unsent(transport, 100)
    while sent:
        sent -= len(peer.recv(min(sent, LARGE)))
    assert not has_unsent(transport, LARGE)


def test_bytes_that_the_transport_buffers_are_noticed(pair: tuple[Accepted, socket.socket]) -> None:
    transport, _ = pair
    tls = SimpleNamespace(transport=transport, _appSendBuffer=[b"x"])
    assert has_unsent(tls, 1)
    tls._appSendBuffer = []
    assert not has_unsent(tls, 1)
    transport.write(b"x")
    assert has_unsent(transport, 1) and has_unsent(tls, 1)
