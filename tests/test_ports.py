"""Which sockets a process serves on, and which address counts."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.testing import MemoryReactorClock

from gatewayd.daemon import ports
from gatewayd.daemon.generation import build
from gatewayd.daemon.listening import bind
from gatewayd.daemon.ports import Ports
from gatewayd.daemon.serving import Serving
from gatewayd.daemon.worker import Handover
from tests.memory import settings


class Port:
    """A port that was made from a socket."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=socket.dup(descriptor))
        self.closed = False

    def getHost(self) -> IPv4Address | UNIXAddress:
        if self._socket.family == socket.AF_UNIX:
            return UNIXAddress(self._socket.getsockname())
        return IPv4Address("TCP", *self._socket.getsockname())

    def stopListening(self) -> None:
        self._socket.close()
        self.closed = True


class Reactor(MemoryReactorClock):
    def adoptStreamPort(self, descriptor: int, family: int, factory: object) -> Any:
        return Port(descriptor)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def opened(handover: Handover | None, **values: str) -> tuple[Ports, Reactor]:
    reactor: Any = Reactor()
    generation = build(settings(**values), reactor, bytes)
    made = Ports(Serving(generation, lambda _: None, None, reactor), handover, reactor)
    assert not made.opened
    made.privilegedStartService()
    assert made.opened
    return made, reactor


def test_without_handed_over_sockets_the_settings_give_the_address() -> None:
    made, reactor = opened(None, gateway_listen="0.0.0.0", gateway_port="7")
    assert [server[0] for server in reactor.tcpServers] == [7]
    assert (made.host, made.address) == ("0.0.0.0", "0.0.0.0 port 7")


@pytest.mark.parametrize(
    ("hosts", "host"),
    [
        (["127.0.0.2"], "127.0.0.2"),
        (["127.0.0.1", "0.0.0.0"], "0.0.0.0"),
        (["unix"], "127.0.0.1"),
        (["unix", "127.0.0.2"], "127.0.0.2"),
    ],
)
def test_the_address_of_handed_over_sockets_counts(
    hosts: list[str],
    host: str,
    stack: ExitStack,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    descriptors = []
    for name in hosts:
        if name == "unix":
            given = socket.socket(socket.AF_UNIX)
            given.bind(str(tmp_path / "socket"))
            given.listen()
        else:
            given = bind(name, 0)
        descriptors.append(given.detach())
    monkeypatch.setattr(ports, "inherited_sockets", lambda: descriptors)
    made, reactor = opened(None)
    assert made.host == host and reactor.tcpServers == []
    made.close()


def test_a_worker_takes_the_sockets_of_its_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    given = bind("127.0.0.1", 0)
    number = given.getsockname()[1]
    monkeypatch.setattr("gatewayd.daemon.worker.FIRST_SOCKET", given.detach())
    made, _ = opened(Handover(settings(), sockets=1, kept=False))
    assert made.address == f"127.0.0.1 port {number}"
    made.close()
