"""Opening a connection to a backend: failures, and the one clock."""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectionRefusedError
from twisted.python.failure import Failure

from gatewayd.wire import errors
from tests.backendside import GOOD, AgentWorld, failure, succeeded


def test_a_refused_connection_is_unreachable_and_names_nobody() -> None:
    world = AgentWorld()
    request = world.post()
    factory: Any = world.reactor.tcpClients[0][2]
    factory.clientConnectionFailed(None, Failure(ConnectionRefusedError()))
    problem = failure(request)
    assert isinstance(problem, errors.Unreachable) and not problem.executed
    assert "127.0.0.1" not in str(problem)
    assert not world.reactor.getDelayedCalls()


def test_the_connect_clock_covers_what_comes_before_the_request() -> None:
    world = AgentWorld()
    request = world.post()
    world.reactor.advance(5)
    problem = failure(request)
    assert isinstance(problem, errors.ConnectTimeout) and problem.status == 504


def test_a_loop_that_was_late_gives_the_connection_the_time_that_it_lost() -> None:
    world = AgentWorld()
    request = world.post()
    world.reactor.advance(8)  # in one step: nothing was looked at meanwhile, and 3 s are lost
    world.reactor.advance(2.9)
    world.accept().protocol.dataReceived(GOOD)
    assert succeeded(request).code == 200
    world = AgentWorld()
    request = world.post()
    world.reactor.advance(8)
    world.reactor.advance(3.1)
    assert isinstance(failure(request), errors.ConnectTimeout)
    assert world.reactor.connectors[0].stoppedConnecting
