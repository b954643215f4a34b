"""Ended exchanges are freed at once: no reference cycle keeps them until the collector runs.

A reply can have megabytes, and each search for cycles costs processor time.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure

from gatewayd.backend.openai import OpenAIBackend
from gatewayd.settings.model import BackendSettings, LimitSettings
from tests.backendside import ServerTransport, connected
from tests.memory import ClientTransport, Gateway, chunk, completion
from tests.websocket import HANDSHAKE, TEXT, accepting, close, frame

JSON = b"HTTP/1.1 %d OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


class World:
    """A gateway in front of a backend, both ends in memory."""

    def __init__(self) -> None:
        self.reactor = MemoryReactorClock()
        settings = BackendSettings("a", "http://127.0.0.1:9")
        self.gateway = Gateway(OpenAIBackend(settings, LimitSettings(), self.reactor))
        self.client: ClientTransport | None = None
        self.backend: ServerTransport | None = None

    def ask(self, stream: bool = False, **more: Any) -> None:
        self.client = self.gateway.chat(stream=stream, model="m", transport=self.client, **more)
        if self.reactor.tcpClients:
            self.backend = connected(self.reactor.tcpClients.pop()[2])

    def open_tunnel(self) -> None:
        self.client = self.gateway.request("GET", "/v1/realtime", headers=HANDSHAKE)
        self.backend = connected(self.reactor.tcpClients.pop()[2])
        self.reply(accepting() + frame(TEXT, b"hi"))

    def end_tunnel(self) -> None:
        """Both connections are closed; the fakes let go of their protocols as Twisted does."""
        assert self.client is not None and self.backend is not None
        self.client.leave()
        self.backend.protocol.connectionLost(Failure(ConnectionDone()))
        del self.client.protocol, self.backend.protocol
        self.client = self.backend = None

    def reply(self, data: bytes) -> None:
        assert self.backend is not None
        self.backend.protocol.dataReceived(data)


def whole(world: World) -> None:
    world.ask()
    world.reply(JSON % (200, len(completion()), completion()))


def stream(world: World) -> None:
    world.ask(stream=True)
    events = [chunk("a"), chunk("b"), chunk("c"), chunk("", finish="stop"), b"[DONE]"]
    body = b"".join(b"data: %b\n\n" % event for event in events)
    world.reply(STREAM[:-2] + b"Content-Length: %d\r\n\r\n" % len(body))
    for event in body.split(b"\n\n")[:-1]:
        world.reply(event + b"\n\n")


def error_status(world: World) -> None:
    world.ask()
    world.reply(JSON % (500, 2, b"{}"))


def bad_reply(world: World) -> None:
    world.ask()
    world.reply(JSON % (200, 1, b"{"))


def refused(world: World) -> None:
    world.client = world.gateway.chat(model=3, transport=world.client)


def closed_tunnel(world: World) -> None:
    world.open_tunnel()
    assert world.client is not None
    world.client.protocol.dataReceived(close(masked=True))
    world.reply(close())
    world.end_tunnel()


def left_tunnel(world: World) -> None:
    world.open_tunnel()
    world.end_tunnel()


def garbage_of(exchange: Callable[[World], None]) -> Counter[str]:
    """What only the collector frees after some of these exchanges: how many of each type."""
    world = World()
    exchange(world)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(5):
            exchange(world)
        assert world.gateway.ended and not world.gateway.site.state.active
        world.gateway.ended.clear()
        world.reactor.advance(0)
        gc.collect()
        return Counter(f"{type(o).__module__}.{type(o).__name__}" for o in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize("exchange", [whole, stream, error_status, bad_reply, refused])
def test_an_ended_exchange_leaves_no_reference_cycle(exchange: Callable[[World], None]) -> None:
    assert not garbage_of(exchange)


@pytest.mark.parametrize("exchange", [closed_tunnel, left_tunnel])
def test_an_ended_tunnel_leaves_none_of_its_objects(exchange: Callable[[World], None]) -> None:
    found = garbage_of(exchange)  # Twisted's endpoints leave a few objects of their own
    assert [name for name in found if name.startswith("gatewayd.")] == []
