"""Errors for connections that could not be opened: the backend's fault, or the gateway's."""

from __future__ import annotations

import errno
import socket
from typing import Any

import pytest
from twisted.internet.error import ConnectBindError, ConnectError

from gatewayd.exchange import End
from gatewayd.routing.health import State
from tests.backendside import GatewayWorld
from tests.memory import Answer, FakeBackend

OUT_OF = [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL]


def refused(world: GatewayWorld, number: int) -> None:
    kind = ConnectError if number == errno.EADDRNOTAVAIL else ConnectBindError
    world.refuse(kind(number, "no more"))


@pytest.mark.parametrize("number", OUT_OF, ids=errno.errorcode.get)
def test_a_gateway_without_sockets_is_overloaded_and_blames_no_backend(number: int) -> None:
    world = GatewayWorld()
    for _ in range(10):
        client = world.gateway.chat()
        refused(world, number)
        answer = Answer(client)
        assert (answer.status, answer.code) == (503, "overloaded")
        assert answer.header("retry-after") == "1" and answer.header("x-should-retry") is None
        assert (world.gateway.ended[-1].end, world.target.in_flight) == (End.REFUSED, 0)
        assert "no more" in world.gateway.ended[-1].detail
    assert world.target.health.state is State.HEALTHY


def test_another_backend_is_tried_because_it_may_have_an_idle_connection() -> None:
    other = FakeBackend()
    world = GatewayWorld("http://127.0.0.1:9", other)
    world.gateway.chat()
    refused(world, errno.EMFILE)
    assert len(other.calls) == 1


def test_an_address_without_a_route_is_unreachable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``::1`` on a machine without IPv6 gives the same number as having no free port."""

    class NoWay(socket.socket):
        def connect(self, address: Any) -> None:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")

    world = GatewayWorld()
    client = world.gateway.chat()
    monkeypatch.setattr("socket.socket", NoWay)
    refused(world, errno.EADDRNOTAVAIL)
    assert Answer(client).code == "upstream_unreachable"
