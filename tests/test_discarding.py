"""The rest of a body that its receiver does not need."""

from __future__ import annotations

from gatewayd.backend.discarding import DISCARD_BYTES, DISCARD_SECONDS
from tests.backendside import OK, AgentWorld


def test_the_connection_is_kept_if_the_rest_ends_soon() -> None:
    for ends_soon in (True, False):
        world = AgentWorld()
        transport, body, _ = world.reply(OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
        body.transport.loseConnection()  # type: ignore[union-attr]
        if ends_soon:
            transport.protocol.dataReceived(b"1\r\nx\r\n0\r\n\r\n")
        world.reactor.advance(DISCARD_SECONDS)
        assert transport.aborted is not ends_soon
        assert body.data == b"hi" and body.reason is None
        world.agent.close()
        assert transport.aborted and not world.reactor.getDelayedCalls()


def test_the_rest_is_read_even_if_the_receiver_had_paused_the_connection() -> None:
    world = AgentWorld()
    transport, body, _ = world.reply(OK + b"Content-Length: 4\r\n\r\nhi")
    body.transport.pauseProducing()  # type: ignore[union-attr]
    body.transport.loseConnection()  # type: ignore[union-attr]
    assert transport.producerState == "producing"
    body.transport.pauseProducing()  # type: ignore[union-attr]  # nothing is its own any more
    transport.protocol.dataReceived(b"ho")
    assert transport.producerState == "producing" and not transport.aborted
    world.post()
    assert world.connects == 1


def test_a_rest_that_is_too_long_closes_the_connection() -> None:
    world = AgentWorld()
    transport, body, _ = world.reply(OK + b"\r\nhi")
    body.transport.loseConnection()  # type: ignore[union-attr]
    transport.protocol.dataReceived(b"x" * DISCARD_BYTES)
    assert not transport.aborted
    transport.protocol.dataReceived(b"x")
    assert transport.aborted and not world.reactor.getDelayedCalls()
