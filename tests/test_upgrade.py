"""A connection to a backend that was asked for a WebSocket."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure

from gatewayd.backend.upgrade import CLOSING_SECONDS, UpgradeConnection, UpgradeParser
from tests.backendside import OK, Body, ServerTransport
from tests.websocket import accepting


def parsed(*segments: bytes) -> tuple[UpgradeParser, bytes]:
    parser = UpgradeParser(16384)
    return parser, b"".join(map(parser.feed, segments))


def test_all_bytes_after_the_101_are_the_body() -> None:
    data = accepting() + b"\x81\x02hi\r\n\r\nHTTP/1.1 200 OK\r\n"
    body = data[len(accepting()) :]
    for segments in ([data], [bytes((byte,)) for byte in data], [data[:-3], data[-3:]]):
        parser, received = parsed(*segments)
        assert received == body and parser.code == 101
        assert parser.problem is None and not parser.complete and not parser.framed
        assert parser.fields[b"sec-websocket-accept"] == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        parser.close()


def test_a_refusal_is_an_ordinary_reply() -> None:
    parser, body = parsed(OK + b"Upgrade: websocket\r\nContent-Length: 2\r\n\r\nhi")
    assert (parser.code, body, parser.complete) == (200, b"hi", True)
    parser.close()


def opened() -> tuple[UpgradeConnection, ServerTransport, Body, MemoryReactorClock]:
    """A connection whose backend has accepted, with a receiver of its bytes."""
    reactor: Any = MemoryReactorClock()
    connection, transport = UpgradeConnection(reactor, 16384), ServerTransport()
    transport.protocol = connection
    connection.makeConnection(transport)
    response: Any = []
    connection.send(b"GET").addCallback(response.append)
    connection.dataReceived(accepting() + b"early")
    body = Body()
    response[0].deliverBody(body)
    transport.clear()
    return connection, transport, body, reactor


def test_bytes_go_both_ways() -> None:
    connection, transport, body, _ = opened()
    connection.write(b"up")
    connection.dataReceived(b"down")
    assert (transport.value(), body.data) == (b"up", b"earlydown")


def test_a_close_sends_the_last_bytes_and_gives_the_backend_some_time() -> None:
    connection, transport, body, reactor = opened()

    class Producer:
        def pauseProducing(self) -> None: ...
        def resumeProducing(self) -> None: ...
        def stopProducing(self) -> None: ...

    connection.register(Producer())  # type: ignore[arg-type]  # it declares no interface
    connection.close(b"last")
    assert transport.value() == b"last" and transport.disconnecting and not transport.aborted
    assert transport.producer is None
    connection.dataReceived(b"late")
    connection.write(b"never")
    assert (body.data, transport.value()) == (b"early", b"last")
    reactor.advance(CLOSING_SECONDS)
    assert transport.aborted and body.reason is None


def test_a_closed_connection_leaves_no_timer() -> None:
    connection, transport, body, reactor = opened()
    connection.close(b"")
    connection.connectionLost(Failure(ConnectionDone()))
    assert reactor.getDelayedCalls() == [] and not transport.aborted and body.reason is None


@pytest.mark.parametrize("how", ["close", "close_at_once", "abort"])
def test_closing_after_the_end_does_nothing(how: str) -> None:
    connection, transport, body, reactor = opened()
    connection.connectionLost(Failure(ConnectionDone()))
    assert body.reason is not None
    arguments = () if how == "abort" else (b"last",)
    getattr(connection, how)(*arguments)
    connection.write(b"x")
    connection.register(None)  # type: ignore[arg-type]  # it is ignored
    assert transport.value() == b"" and reactor.getDelayedCalls() == []
