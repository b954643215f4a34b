"""The agent: what it sends, what it sends again, and what cancelling does."""

from __future__ import annotations

import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.web.client import ResponseDone
from twisted.web.http_headers import Headers

from gatewayd.wire import errors
from tests.backendside import GOOD, OK, URL, AgentWorld, Body, failure, idle, succeeded


def test_a_request_is_sent_whole_and_treq_adds_no_fields() -> None:
    world = AgentWorld()
    world.post(b'{"a":1}')
    head, _, body = world.accept().value().partition(b"\r\n\r\n")
    assert body == b'{"a":1}'
    assert head == b"POST /v1/x HTTP/1.1\r\nHost: 127.0.0.1:9\r\nContent-Length: 7"


def test_the_agent_takes_headers_of_twisted_too() -> None:
    world = AgentWorld()
    world.agent.request(b"GET", URL.encode(), Headers({"x-a": ["1", "2"]}))
    first = world.accept().value()
    world.agent.request(b"GET", URL.encode())
    second = world.accept().value()
    assert {*first.split(b"\r\n")} >= {b"X-A: 1", b"X-A: 2"}
    assert second == b"GET /v1/x HTTP/1.1\r\nHost: 127.0.0.1:9\r\n\r\n"


def test_cookies_are_not_kept() -> None:
    world = AgentWorld()
    world.reply(OK + b"Set-Cookie: a=b\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    world.post()
    assert b"cookie" not in world.accept().value().lower()


@pytest.mark.parametrize("reason", [ConnectionDone(), ConnectionLost()])
def test_promise_6_a_stale_connection_is_replaced_once(reason: Exception) -> None:
    world = AgentWorld()
    stale = idle(world)
    request = world.post(b"again")
    assert stale.value().endswith(b"again")
    stale.close(reason)
    fresh = world.accept()
    assert fresh.value().endswith(b"again")
    fresh.close(reason)
    assert isinstance(failure(request), errors.ConnectionReset)
    assert world.connects == 2


def test_promise_6_a_deletion_takes_a_new_connection_and_is_sent_once() -> None:
    world = AgentWorld()
    kept = idle(world)
    before = kept.value()
    request = world.agent.request(b"DELETE", URL.encode())
    fresh = world.accept()
    assert kept.value() == before
    assert fresh.value() == b"DELETE /v1/x HTTP/1.1\r\nHost: 127.0.0.1:9\r\n\r\n"
    fresh.close(ConnectionLost())
    assert isinstance(failure(request), errors.ConnectionReset) and world.connects == 2


def test_promise_6_a_fresh_connection_is_not_replaced() -> None:
    world = AgentWorld()
    request = world.post()
    world.accept().close(ConnectionLost())
    assert isinstance(failure(request), errors.ConnectionReset) and world.connects == 1


def test_promise_6_a_reused_connection_that_lived_on_or_answered_is_not_replaced() -> None:
    world = AgentWorld()
    late = idle(world)
    request = world.post()
    world.reactor.advance(1.1)
    late.close(ConnectionLost())
    assert isinstance(failure(request), errors.ConnectionReset)
    answering = idle(world)
    request = world.post()
    answering.protocol.dataReceived(b"H")
    answering.close(ConnectionLost())
    assert isinstance(failure(request), errors.ConnectionReset)
    assert world.connects == 2


def test_promise_4_cancelling_closes_the_connection_in_every_phase() -> None:
    world = AgentWorld()
    request = world.post()
    request.cancel()
    assert isinstance(failure(request), CancelledError)
    assert world.reactor.connectors[0].stoppedConnecting

    request = world.post()
    transport = world.accept()
    request.cancel()
    assert transport.aborted and isinstance(failure(request), CancelledError)

    transport, body, _ = world.reply(OK + b"\r\nhi")
    body.transport.abortConnection()  # type: ignore[union-attr]
    assert transport.aborted
    assert not world.reactor.getDelayedCalls()


def test_the_pool_of_a_closed_agent_takes_no_connection() -> None:
    world = AgentWorld()
    request = world.post()
    transport = world.accept()
    world.agent.close()
    transport.protocol.dataReceived(GOOD)
    body = Body()
    succeeded(request).deliverBody(body)
    assert isinstance(body.reason, ResponseDone)
    assert transport.aborted and not world.reactor.getDelayedCalls()
