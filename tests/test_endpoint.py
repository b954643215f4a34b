"""Where a backend is: addresses, lookups of its name, and which address is used."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.testing import MemoryReactorClock

from gatewayd.backend import endpoint
from gatewayd.backend.openai import OpenAIBackend
from gatewayd.routing.health import State
from gatewayd.settings.model import BackendSettings, LimitSettings
from tests.backendside import GatewayWorld, reply
from tests.memory import Answer


@pytest.mark.parametrize(
    ("url", "where", "host"),
    [
        ("http://[::1]:8080", ("::1", 8080), b"[::1]:8080"),
        ("http://[::1]", ("::1", 80), b"[::1]"),
        ("http://127.0.0.1/base", ("127.0.0.1", 80), b"127.0.0.1"),
    ],
)
def test_a_backend_is_reached_at_an_ip_address(
    url: str, where: tuple[str, int], host: bytes
) -> None:
    world = GatewayWorld(url, health="/health")
    client = world.gateway.chat(model="m")
    assert world.attempts[-1][:2] == where
    backend = world.accept()
    head = backend.value()
    assert b"\r\nHost: %b\r\n" % host in head
    assert head.startswith(b"POST %b/v1/chat" % (b"/base" if "base" in url else b""))
    backend.protocol.dataReceived(reply(b'{"choices":[{"index":0,"finish_reason":"stop"}]}'))
    assert Answer(client).status == 200
    checked: list[Any] = []
    looking = world.target.backend.check()
    assert looking is not None
    looking.addBoth(checked.append)
    backend.protocol.dataReceived(reply(b"{}"))
    assert checked == [True]


class Lookups:
    """The system's resolver: each lookup waits until the test answers it."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, Deferred[Any]]] = []

    def __call__(self, reactor: Any, pool: Any, function: Any, host: bytes, *_: Any) -> Any:
        assert function is socket.getaddrinfo
        self.asked.append((host, Deferred()))
        return self.asked[-1][1]

    def found(self, *addresses: str) -> None:
        self.asked[-1][1].callback(
            [
                (socket.AF_INET6, 1, 6, "", (a, 9, 0, 0))
                if ":" in a
                else (socket.AF_INET, 1, 6, "", (a, 9))
                for a in addresses
            ]
        )


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lookups]:
    found = Lookups()
    monkeypatch.setattr(endpoint, "deferToThreadPool", found)
    monkeypatch.setattr(MemoryReactorClock, "getThreadPool", lambda _: None, raising=False)
    yield found


def test_a_host_name_may_have_an_underscore(lookups: Lookups) -> None:
    world = GatewayWorld("http://llama_server:9")
    client = world.gateway.chat()
    assert lookups.asked[0][0] == b"llama_server"
    lookups.found("10.0.0.7")
    backend = world.accept()
    assert b"\r\nHost: llama_server:9\r\n" in backend.value()
    backend.protocol.dataReceived(reply(b'{"choices":[{"index":0,"finish_reason":"stop"}]}'))
    assert Answer(client).status == 200
    OpenAIBackend(BackendSettings("b", "https://llama_server"), LimitSettings(), world.reactor)


def test_one_look_up_serves_all_waiting_requests_but_not_cancelled_ones(
    lookups: Lookups,
) -> None:
    world = GatewayWorld("http://gpu1:9")
    clients = [world.gateway.chat() for _ in range(3)]
    clients[1].leave()
    assert len(lookups.asked) == 1
    lookups.found("10.0.0.7")
    assert [attempt[0] for attempt in world.attempts] == ["10.0.0.7"] * 2
    world.gateway.chat()
    assert len(lookups.asked) == 2


def test_a_look_up_that_hangs_is_not_begun_a_second_time(
    lookups: Lookups,
) -> None:
    world = GatewayWorld("http://gpu1:9")
    for _ in range(3):
        world.gateway.chat().leave()
    client = world.gateway.chat()
    assert len(lookups.asked) == 1
    lookups.found("10.0.0.7")
    assert len(world.attempts) == 1
    client.leave()
    assert world.target.in_flight == 0 and not world.reactor.getDelayedCalls()


@pytest.mark.parametrize("why", ["refused", "silent"])
def test_the_next_address_is_tried_when_one_refuses_or_is_silent(
    lookups: Lookups, why: str
) -> None:
    world = GatewayWorld("http://gpu1:9")
    client = world.gateway.chat()
    lookups.found("::1", "10.0.0.7", "10.0.0.8")
    assert [attempt[0] for attempt in world.attempts] == ["::1"]
    if why == "refused":
        world.refuse(ConnectionRefusedError())
    else:
        world.reactor.advance(endpoint.STAGGER_SECONDS)
    assert world.attempts[-1][0] == "10.0.0.7"
    world.accept().protocol.dataReceived(reply(b'{"choices":[{"index":0,"finish_reason":"stop"}]}'))
    assert Answer(client).status == 200
    world.reactor.advance(1)
    assert len(world.attempts) == (0 if why == "refused" else 1)  # the third was never tried
    assert all(c.stoppedConnecting for c in world.reactor.connectors[:1] if why == "silent")


def test_all_addresses_refuse(lookups: Lookups) -> None:
    world = GatewayWorld("http://gpu1:9")
    client = world.gateway.chat()
    lookups.found("::1", "10.0.0.7")
    world.refuse(ConnectionRefusedError())
    world.refuse(ConnectionRefusedError())
    assert Answer(client).code == "upstream_unreachable"
    assert not world.reactor.getDelayedCalls()


@pytest.mark.parametrize("problem", [socket.gaierror(-2, "Name or service not known"), None])
def test_a_name_without_an_address_is_a_502_with_the_reason_in_the_log(
    lookups: Lookups, problem: OSError | None
) -> None:
    world = GatewayWorld("http://gpu1:9")
    client = world.gateway.chat()
    if problem is None:
        lookups.found()
    else:
        lookups.asked[0][1].errback(problem)
    assert (Answer(client).status, Answer(client).code) == (502, "upstream_dns")
    assert problem is None or "Name or service" in world.gateway.ended[0].detail


def test_a_look_up_without_a_descriptor_is_not_taken_for_an_unknown_name(
    lookups: Lookups, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = GatewayWorld("http://gpu1:9")
    client = world.gateway.chat()
    lookups.asked[0][1].errback(OSError(errno.EMFILE, "Too many open files"))
    assert Answer(client).code == "overloaded"

    def full(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    client = world.gateway.chat()
    monkeypatch.setattr("os.open", full)
    lookups.asked[1][1].errback(socket.gaierror(-3, "Temporary failure in name resolution"))
    assert Answer(client).code == "overloaded"
    assert world.target.health.state is State.HEALTHY


def test_a_look_up_without_a_thread_does_not_blame_the_backend(
    lookups: Lookups, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(endpoint, "deferToThreadPool", no_thread)
    world = GatewayWorld("http://gpu1:9")
    for _ in range(4):
        assert Answer(world.gateway.chat()).code == "overloaded"
    assert world.target.in_flight == 0 and not world.reactor.getDelayedCalls()
    monkeypatch.setattr(endpoint, "deferToThreadPool", lookups)
    world.gateway.chat()
    lookups.found("10.0.0.7")
    assert len(world.attempts) == 1
