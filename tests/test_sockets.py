"""What the kernel holds for a connection, on real sockets."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace

import pytest
from twisted.internet.protocol import Protocol

from gatewayd.backend.sockets import arrivals, has_unsent
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
    waiting, as_tls_wraps_it = arrivals(transport), SimpleNamespace(transport=transport)
    assert not waiting()
    if what == "bytes":
        peer.send(b"x")
    else:
        peer.close()
    select.select([transport.socket], [], [], 5)
    assert waiting() and waiting() and arrivals(as_tls_wraps_it)()
    assert not arrivals(SimpleNamespace())()  # no socket


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
