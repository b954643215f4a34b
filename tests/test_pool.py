"""The idle connections to one backend: which is used, and how long one is kept."""

from __future__ import annotations

import pytest

from gatewayd.backend.connection import IDLE_SECONDS
from tests.backendside import GOOD, AgentWorld, Body, LateTransport, connected, idle, succeeded


def test_the_newest_idle_connection_is_used_first() -> None:
    world = AgentWorld()
    requests = [world.post(), world.post()]
    transports = [connected(attempt[2]) for attempt in world.reactor.tcpClients]
    for request, transport in zip(requests, transports, strict=True):
        transport.protocol.dataReceived(GOOD)
        succeeded(request).deliverBody(Body())
        transport.clear()
    world.post()
    assert transports[1].value() and not transports[0].value() and world.connects == 2


@pytest.mark.parametrize(
    ("header", "seconds"), [(b"", IDLE_SECONDS), (b"Keep-Alive: timeout=10, max=100\r\n", 9.0)]
)
def test_an_idle_connection_is_closed_before_the_backend_closes_it(
    header: bytes, seconds: float
) -> None:
    world = AgentWorld()
    transport = idle(world, header)
    world.reactor.pump([0.5] * int(seconds * 2 - 2))
    assert not transport.aborted
    world.reactor.pump([0.5] * 4)
    assert transport.aborted
    assert not world.reactor.getDelayedCalls()


def test_the_idle_time_that_a_backend_asks_for_has_a_limit() -> None:
    world = AgentWorld()
    transport = idle(world, b"Keep-Alive: timeout=999999999\r\n")
    world.reactor.pump([1.0] * 61)
    assert transport.aborted and not world.reactor.getDelayedCalls()


def test_a_connection_that_was_aborted_while_idle_is_not_used() -> None:
    world = AgentWorld()
    request = world.post()
    transport = LateTransport()
    transport.protocol = world.reactor.tcpClients[-1][2].buildProtocol(None)
    transport.protocol.makeConnection(transport)
    transport.protocol.dataReceived(GOOD)
    succeeded(request).deliverBody(Body())
    transport.clear()
    transport.protocol.dataReceived(b"HTTP/1.1 408 Request Timeout\r\n\r\n")  # without a request
    assert transport.aborted
    world.post()
    assert world.connects == 2 and not transport.value()
