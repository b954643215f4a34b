"""Connections to a backend in memory: the test plays the backend.

:class:`AgentWorld` has an agent alone before such a backend, :class:`GatewayWorld` a whole gateway.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.web.iweb import IResponse

from gatewayd.backend.agent import Agent
from gatewayd.backend.headers import RequestHeaders
from gatewayd.backend.openai import OpenAIBackend
from gatewayd.backend.treqclient import TreqClient
from gatewayd.settings.model import BackendSettings, LimitSettings
from gatewayd.settings.values import base_url
from tests.memory import Answer, ClientTransport, FakeBackend, Gateway

JSON = {"Content-Type": "application/json"}
SPEECH = b'{"model": "m", "input": "x", "voice": "v"}'
URL = "http://127.0.0.1:9/v1/x"


class ServerTransport(StringTransport):
    """The gateway's end of a connection to a backend."""

    protocol: Any
    aborted = False

    def setTcpNoDelay(self, enabled: bool) -> None:
        """A method of TCP transports; nothing to do here."""

    def abortConnection(self) -> None:
        if not self.aborted:
            self.aborted = True
            self.close(ConnectionDone())

    def close(self, reason: Exception) -> None:
        self.protocol.connectionLost(Failure(reason))


class LateTransport(ServerTransport):
    """As with TCP, an aborted connection is lost later."""

    lost = False
    coming = b""  # the rest of the reply that it receives

    def abortConnection(self) -> None:
        self.aborted = True

    def close(self, reason: Exception) -> None:
        if not self.lost:
            self.lost = True
            super().close(reason)


def connected(factory: Any) -> ServerTransport:
    """Let the connection that ``factory`` asked for succeed."""
    transport = ServerTransport()
    transport.protocol = factory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 9))
    transport.protocol.makeConnection(transport)
    return transport


OK = b"HTTP/1.1 200 OK\r\n"
GOOD = OK + b"Content-Length: 2\r\n\r\nhi"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\nh\r\n1\r\ni\r\n0\r\n\r\n"
UNTIL_CLOSE = OK + b"\r\nhi"
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def reply(body: bytes, media_type: bytes = b"application/json", status: int = 200) -> bytes:
    head = b"HTTP/1.1 %d OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n"
    return head % (status, media_type, len(body)) + body


def framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Body(Protocol):
    def __init__(self) -> None:
        self.data = b""
        self.reason: Any = None

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        assert self.reason is None, "ended twice"
        self.reason = reason.value


class AgentWorld:
    """An agent, the requests sent with it through treq, and the backend's ends of its sockets."""

    def __init__(self) -> None:
        self.reactor = MemoryReactorClock()
        self.agent = Agent(self.reactor, urlsplit(URL), None, 5.0, 16384)
        self.client = TreqClient(self.agent)

    def post(self, body: bytes = b"hi") -> Deferred[Any]:
        return self.client.post(URL, data=body, headers=RequestHeaders(b""))

    def accept(self) -> ServerTransport:
        """Let the newest connection attempt succeed."""
        factory = self.reactor.tcpClients[-1][2]
        return connected(factory)

    @property
    def connects(self) -> int:
        return len(self.reactor.tcpClients)

    def reply(self, data: bytes) -> tuple[ServerTransport, Body, IResponse]:
        """One request on a fresh connection, answered with ``data``."""
        request = self.post()
        transport = self.accept()
        transport.protocol.dataReceived(data)
        response = succeeded(request)
        body = Body()
        response.deliverBody(body)
        return transport, body, response


def succeeded(request: Deferred[Any]) -> Any:
    results: list[Any] = []
    request.addBoth(results.append)
    assert results, "not answered yet"
    assert not isinstance(results[0], Failure), results[0]
    return results[0]


def failure(request: Deferred[Any]) -> BaseException | None:
    results: list[Any] = []
    request.addErrback(results.append)
    return results[0].value if results else None


def idle(world: AgentWorld, extra: bytes = b"") -> ServerTransport:
    """A connection that has served one request."""
    transport, _, _ = world.reply(OK + extra + b"Content-Length: 2\r\n\r\nhi")
    transport.clear()
    return transport


class GatewayWorld:
    """A gateway and its backend. :attr:`attempts` are connections that are not open yet."""

    def __init__(self, url: str = "http://127.0.0.1:9", *others: FakeBackend, **more: Any) -> None:
        self.reactor = MemoryReactorClock()
        backend = BackendSettings("a", base_url(url), **more)
        self.gateway = Gateway(OpenAIBackend(backend, LimitSettings(), self.reactor), *others)
        self.target = self.gateway.targets[0]

    @property
    def attempts(self) -> list[tuple[Any, ...]]:
        return self.reactor.tcpClients

    def accept(self) -> ServerTransport:
        return connected(self.attempts.pop()[2])

    def refuse(self, problem: Exception) -> None:
        self.attempts.pop()[2].clientConnectionFailed(None, Failure(problem))

    def speech(self, client: ClientTransport | None = None) -> ClientTransport:
        return self.gateway.request("POST", "/v1/audio/speech", SPEECH, JSON, client)

    def slow_client(self) -> SlowClient:
        client = SlowClient()
        client.protocol = self.gateway.site.buildProtocol(None)
        client.protocol.makeConnection(client)
        return client

    def models(self) -> Answer:
        return Answer(self.gateway.request("GET", "/v1/models"))


class SlowClient(ClientTransport):
    """Pauses its producer with each write, as a full transport does."""

    def write(self, data: bytes) -> None:
        super().write(data)
        if self.producer is not None:
            self.producer.pauseProducing()

    def reads(self) -> None:
        assert self.producer is not None
        self.producer.resumeProducing()
