"""Writing to a socket at once: what the kernel takes, and what the transport keeps."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
from twisted.internet.protocol import Protocol
from twisted.internet.tcp import Connection
from twisted.internet.testing import MemoryReactorClock, StringTransport

from gatewayd.sending import send, tcp_of, tune


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def transport(ends: tuple[socket.socket, socket.socket]) -> Any:
    connection = Connection(ends[0], Protocol(), MemoryReactorClock())
    ends[0].setblocking(False)
    connection.connected = 1
    return connection


def buffered(transport: Any) -> bytes:
    return bytes(transport.dataBuffer) + b"".join(transport._tempDataBuffer)


def test_a_write_reaches_the_kernel_at_once(
    transport: Any, ends: tuple[socket.socket, socket.socket]
) -> None:
    send(transport, b"token")
    assert ends[1].recv(100) == b"token" and buffered(transport) == b""


def test_the_transport_keeps_what_the_kernel_does_not_take(transport: Any) -> None:
    data = bytes(range(256)) * 256 * 1024
    send(transport, data)
    rest = buffered(transport)
    assert 0 < len(rest) < len(data) and data.endswith(rest)


def test_nothing_overtakes_what_is_buffered(
    transport: Any, ends: tuple[socket.socket, socket.socket]
) -> None:
    transport.write(b"first ")
    send(transport, b"second")
    assert buffered(transport) == b"first second"


@pytest.mark.parametrize("state", ["disconnecting", "_writeDisconnecting", "TLS"])
def test_a_transport_that_closes_or_encrypts_does_the_writing(
    transport: Any, ends: tuple[socket.socket, socket.socket], state: str
) -> None:
    setattr(transport, state, True)
    written: list[bytes] = []
    transport.write = written.append
    send(transport, b"token")
    assert written == [b"token"]


def test_a_broken_socket_is_left_to_the_transport(
    transport: Any, ends: tuple[socket.socket, socket.socket]
) -> None:
    ends[0].close()
    send(transport, b"token")
    assert buffered(transport) == b"token"


def test_a_transport_of_another_kind_does_the_writing() -> None:
    transport = StringTransport()
    send(transport, b"token")
    assert transport.value() == b"token"


@attrs.frozen
class Wrapper:
    """A transport that wraps another one, as TLS does."""

    transport: object


def test_tuning_reaches_the_socket_below_tls(transport: Any) -> None:
    assert tcp_of(Wrapper(transport)) is tcp_of(transport) is transport
    tune(Wrapper(transport))
    assert transport.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_tuning_a_transport_without_a_socket_does_nothing() -> None:
    tune(StringTransport())
