"""Opening a connection to a backend: failures, and the one clock."""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectionRefusedError
from twisted.python.failure import Failure

from gatewayd.wire import errors
from tests.backendside import GOOD, AgentWorld, failure, succeeded


def test_a_refused_connection_is_unreachable_and_the_message_has_no_address() -> None:
    world = AgentWorld()
    request = world.post()
    factory: Any = world.reactor.tcpClients[0][2]
    factory.clientConnectionFailed(None, Failure(ConnectionRefusedError()))
    problem = failure(request)
    assert isinstance(problem, errors.Unreachable) and not problem.executed
    assert "127.0.0.1" not in str(problem)
    assert not world.reactor.getDelayedCalls()


def test_the_connect_clock_runs_until_the_connection_is_open() -> None:
    world = AgentWorld()
    request = world.post()
    world.reactor.advance(5)
    problem = failure(request)
    assert isinstance(problem, errors.ConnectTimeout) and problem.status == 504


def test_time_that_the_reactor_lost_is_given_back_to_the_connection() -> None:
    world = AgentWorld()
    request = world.post()
    world.reactor.advance(8)  # in one step: no socket was looked at for 8 s, 3 s too long
    world.reactor.advance(2.9)
    world.accept().protocol.dataReceived(GOOD)
    assert succeeded(request).code == 200
    world = AgentWorld()
    request = world.post()
    world.reactor.advance(8)
    world.reactor.advance(3.1)
    assert isinstance(failure(request), errors.ConnectTimeout)
    assert world.reactor.connectors[0].stoppedConnecting
