"""A disconnect of a client that is not read is noticed all the same."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from twisted.internet.task import Clock

from gatewayd.api.passage import CHECK_SECONDS, Passage, has_disconnected

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Both ends of a TCP connection: the client's and the gateway's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    with client, server:
        yield client, server


def leave(client: socket.socket, how: str) -> None:
    if how == "half":
        client.shutdown(socket.SHUT_WR)
    elif how == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    else:
        client.close()
    time.sleep(0.01)  # loopback


@pytest.mark.parametrize("how", ["close", "half", "reset"])
def test_the_kernel_knows_of_a_disconnect_behind_unread_bytes(pair: Pair, how: str) -> None:
    client, server = pair
    transport = SimpleNamespace(socket=server)
    client.sendall(b"unread")
    assert not has_disconnected(transport)
    leave(client, how)
    assert has_disconnected(transport)
    assert has_disconnected(SimpleNamespace(transport=transport))  # below TLS


def test_what_is_no_open_socket_is_not_asked(pair: Pair) -> None:
    _, server = pair
    server.close()
    assert not has_disconnected(SimpleNamespace(socket=server))
    assert not has_disconnected(SimpleNamespace())


def test_promise_4_a_disconnect_is_noticed_within_a_tenth_of_a_second(pair: Pair) -> None:
    clock, left = Clock(), list[float]()
    client, server = pair
    transport = SimpleNamespace(socket=server)
    passage = Passage(clock, transport, lambda _: None, lambda: left.append(clock.seconds()))
    passage.hold(True)
    clock.pump([CHECK_SECONDS] * 4)
    assert passage.holding and not left
    leave(client, "close")
    gone = clock.seconds()
    clock.pump([CHECK_SECONDS] * 4)
    (noticed,) = left
    assert noticed - gone <= 0.1 and clock.getDelayedCalls() == []


def test_a_client_that_is_read_or_gone_is_not_looked_at(pair: Pair) -> None:
    clock = Clock()
    client, server = pair
    transport = SimpleNamespace(socket=server)
    passage = Passage(clock, transport, lambda _: None, lambda: pytest.fail("it is read"))
    leave(client, "close")
    for end in (lambda: passage.hold(False), passage.stop):
        passage.hold(True)
        passage.hold(True)
        end()
        assert clock.getDelayedCalls() == []
    passage.stop()
