"""Listening sockets that are bound here or handed over."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from twisted.internet.testing import MemoryReactor

from gatewayd.daemon.listening import BACKLOG, CannotStart, bind, listen, take


@pytest.fixture
def taken() -> Iterator[int]:
    """The number of a port that is in use."""
    with bind("127.0.0.1", 0) as used:
        yield used.getsockname()[1]


def test_another_process_can_accept_from_a_bound_socket() -> None:
    with bind("127.0.0.1", 0) as bound, socket.create_connection(bound.getsockname()):
        client, _ = bound.accept()
        client.close()


def test_a_port_in_use_ends_the_start_with_one_line(taken: int) -> None:
    with pytest.raises(CannotStart) as caught:
        bind("127.0.0.1", taken)
    message = f"gatewayd: cannot listen on 127.0.0.1 port {taken}: Address already in use"
    assert str(caught.value) == message
    assert isinstance(caught.value, SystemExit)


def test_connections_may_wait_in_the_kernel() -> None:
    reactor = MemoryReactor()
    listen(reactor, "127.0.0.1", 1, object())
    (port, _, backlog, host) = reactor.tcpServers[0]
    assert (port, backlog, host) == (1, BACKLOG, "127.0.0.1")


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_only_a_listening_socket_can_be_handed_over(kind: int) -> None:
    descriptor = socket.socket(socket.AF_INET, kind).detach()
    with pytest.raises(CannotStart, match=f"descriptor {descriptor} was handed over and is no "):
        take(descriptor)
    with pytest.raises(CannotStart):
        take(99999)
