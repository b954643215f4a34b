"""The whole gateway in memory: clients, backends that a test controls, and a clock."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone

from gatewayd.api.app import API
from gatewayd.api.channel import Channel
from gatewayd.api.site import Site
from gatewayd.backend.echo import EchoBackend
from gatewayd.backend.interface import Accepted, Backend, Clocks, PlainReply, Reply
from gatewayd.exchange import End, Exchange
from gatewayd.http1.handshake import Handshake
from gatewayd.routing.evidence import Evidence
from gatewayd.routing.evidence import Failure as Failed
from gatewayd.routing.health import Health
from gatewayd.routing.router import Router
from gatewayd.routing.target import Target
from gatewayd.settings.load import load
from gatewayd.settings.model import Settings
from gatewayd.wire.call import Call
from gatewayd.wire.errors import UnknownURL
from gatewayd.wire.tunnels import TunnelCall

#: The headers and the body of a chat request without a model.
JSON = {"Content-Type": "application/json"}
BODY = b'{"messages":[{"role":"user","content":"hi"}]}'
EVENTS = "text/event-stream"

_CHAT = b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}'
#: A request for a chat, as bytes.
RAW_CHAT = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n" % len(_CHAT) + _CHAT
)


def fails(health: Health, trial: int | None = None) -> None:
    """Report a failed request to a backend's health; ``trial`` is a request that has begun."""
    health.failed(Failed(Evidence.LOST), health.begin() if trial is None else trial)


def settings(**values: str) -> Settings:
    """Settings with some keys set: ``settings(timeouts_ping="1")``.

    Affinity is off unless it is set: requests with the same messages take turns.
    """
    values = {"routing_affinity": "off", **values}
    return load({f"GATEWAYD_{name.upper()}": value for name, value in values.items()})


def chunk(text: str = "", finish: str | None = None, index: int = 0, **more: Any) -> bytes:
    """The payload of one event."""
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "choices": [{"index": index, "delta": {"content": text}, "finish_reason": finish}],
            **more,
        }
    ).encode()


def completion(text: str = "hello", **more: Any) -> bytes:
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": "stop",
                }
            ],
            **more,
        }
    ).encode()


class Asked:
    """One request that a :class:`FakeBackend` has received; the test sends the reply.

    ``left`` says how the gateway ended the request: ``None`` if it has not, ``"cancelled"`` (before
    the head of a reply), ``"aborted"`` or ``"released"`` (the connection may be used again).
    """

    def __init__(self, call: Call, request_id: str) -> None:
        self.call = call
        self.body = call.body
        self.request_id = request_id
        self.answer: Deferred[Reply] = Deferred(lambda _: self._leave("cancelled"))
        self.traceparent: str | None = None
        self.left: str | None = None
        self.paused = False
        self._receiver: Any = None
        self._over = False

    def head(
        self,
        status: int = 200,
        media_type: str = EVENTS,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        self.answer.callback(PlainReply(status, media_type, headers, self))

    @property
    def alive(self) -> bool:
        """Whether the backend still works: it has not ended, and the gateway has not left."""
        return not self._over and self.left is None

    def lose(self, reason: Exception) -> None:
        """Fail before the head of a reply."""
        self._over = True
        self.answer.errback(reason)

    def send(self, data: bytes) -> None:
        assert self.left is None, f"{self.left}, yet still sending"
        self._receiver.dataReceived(data)

    def event(self, payload: bytes) -> None:
        self.send(b"data: " + payload + b"\n\n")

    def end(self, reason: Exception | None = None) -> None:
        self._over = True
        self._receiver.connectionLost(Failure(reason or ResponseDone()))

    def whole(self, body: bytes, status: int = 200, media_type: str = "application/json") -> None:
        self.head(status, media_type)
        if self.left is None:  # the head may be enough for the gateway
            self.send(body)
            self.end()

    # gatewayd.backend.interface.Body

    def deliverBody(self, protocol: Any) -> None:
        self._receiver = protocol
        protocol.makeConnection(self)

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False

    def abortConnection(self) -> None:
        self._leave("aborted")

    def loseConnection(self) -> None:
        self._leave("released")

    def _leave(self, how: str) -> None:
        assert self.left is None, f"{self.left}, then {how}"
        self.left = how


class FakeBackend:
    """Keeps requests in ``calls``. Each error in ``failing`` fails one request immediately."""

    def __init__(
        self, name: str = "fake", clocks: Clocks | None = None, reask: bool = False
    ) -> None:
        self.name = name
        self.clocks = clocks or Clocks(first_byte=600, idle=120)
        self.reask = reask
        self.calls: list[Asked] = []
        self.failing: list[Exception] = []
        self.checks: list[Deferred[bool]] = []
        self.listed: dict[str, Any] | Exception = {"m": {"id": "m", "object": "model"}}
        self.said_slots: int | Exception | None = None

    def send(self, call: Call, request_id: str, traceparent: str | None) -> Deferred[Reply]:
        asked = Asked(call, request_id)
        asked.traceparent = traceparent
        self.calls.append(asked)
        if self.failing:
            asked.lose(self.failing.pop(0))
        return asked.answer

    def open_tunnel(
        self, call: TunnelCall, handshake: Handshake, request_id: str, traceparent: str | None
    ) -> Deferred[Accepted | Reply]:
        """Refuse; the tests of tunnels use connections (:mod:`tests.websocket`)."""
        return fail(UnknownURL("no tunnels"))

    def check(self) -> Deferred[bool] | None:
        self.checks.append(Deferred())
        return self.checks[-1]

    def models(self, request_id: str) -> Deferred[dict[str, Any]]:
        listed = self.listed
        return fail(listed) if isinstance(listed, Exception) else succeed(listed)

    def slots(self, request_id: str) -> Deferred[int | None]:
        said = self.said_slots
        return fail(said) if isinstance(said, Exception) else succeed(said)

    def close(self) -> None:
        """There is nothing to close."""


class ClientTransport(StringTransport):
    """A client's end of a connection: received bytes, and the state of the connection."""

    protocol: Channel
    aborted = False
    half_closed = False

    def loseWriteConnection(self) -> None:
        self.half_closed = True
        super().loseConnection()

    def loseConnection(self) -> None:
        super().loseConnection()
        if self.half_closed:
            self.leave()

    def abortConnection(self) -> None:
        self.aborted = True
        self.leave()

    def leave(self) -> None:
        """Lose the connection."""
        self.connected = False
        self.protocol.connectionLost(Failure(ConnectionDone()))


def connect(site: Site, data: bytes = b"") -> ClientTransport:
    """Connect a client to a site, and send these bytes."""
    client = ClientTransport()
    client.protocol = site.buildProtocol(None)
    client.protocol.makeConnection(client)
    client.protocol.dataReceived(data)
    return client


_TAKING_TURNS = settings()


class Gateway:
    """The gateway without sockets."""

    def __init__(
        self, *backends: Backend, settings: Settings | None = None, clock: Clock | None = None
    ) -> None:
        self.clock = clock or Clock()
        self.ended: list[Exchange] = []
        self.settings = settings or _TAKING_TURNS
        self.targets = self._targets(backends)
        self.api = API(self.settings, Router(self.targets), self.clock, lambda: b"")
        self.site = Site(
            self.api.resource(),
            self.settings,
            self.clock,
            self.api.admit,
            self.ended.append,
            self.settings.limits.connections,
        )

    def _targets(self, backends: Sequence[Backend]) -> list[Target]:
        """One target for each backend, with the settings of the backend of that name."""
        configured = {backend.name: backend for backend in self.settings.backends}
        targets = []
        for backend in backends or [EchoBackend(self.settings.gateway.api_title)]:
            own = configured.get(backend.name)
            alone = len(backends) < 2
            if own is None:
                targets.append(Target(backend, self.clock, alone=alone))
            else:
                of_target = own.models, own.in_flight, alone, own.weight, own.priority
                targets.append(Target(backend, self.clock, *of_target))
        return targets

    @property
    def end(self) -> End | None:
        """How the only exchange ended."""
        (exchange,) = self.ended
        return exchange.end

    def connect(self) -> ClientTransport:
        return connect(self.site)

    def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        transport: ClientTransport | None = None,
    ) -> ClientTransport:
        """Send one request, on a new connection unless one is given."""
        transport = transport or self.connect()
        lines = [f"{method} {path} HTTP/1.1", "Host: gateway"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        transport.protocol.dataReceived("\r\n".join([*lines, "", ""]).encode() + body)
        return transport

    def post(self, path: str, **body: Any) -> ClientTransport:
        """Send a JSON request with the id ``req-1``."""
        headers = {"Content-Type": "application/json", "X-Request-ID": "req-1"}
        return self.request("POST", path, json.dumps(body).encode(), headers)

    def chat(
        self,
        stream: bool = False,
        headers: Mapping[str, str] | None = None,
        transport: ClientTransport | None = None,
        **more: Any,
    ) -> ClientTransport:
        body = {"messages": [{"role": "user", "content": "hi"}], "stream": stream, **more}
        return self.request(
            "POST",
            "/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "X-Request-ID": "req-1", **(headers or {})},
            transport,
        )


def backends(*names: str) -> list[FakeBackend]:
    return [FakeBackend(name) for name in names]


def backend_settings(**values: str) -> dict[str, str]:
    """Arguments of :func:`settings` for backends, from ``a_models="x"``; each gets a URL.

    Settings of ``[routing]``, ``[timeouts]`` and tokens are taken as they are.
    """
    found: dict[str, str] = {}
    for name, value in values.items():
        if name.startswith(("routing_", "timeouts_", "token_")):
            found[name] = value
            continue
        backend = name.partition("_")[0]
        found |= {f"backend_{backend}_url": "http://127.0.0.1:1", f"backend_{name}": value}
    return found


def gateway_of(*several: FakeBackend, **values: str) -> Gateway:
    return Gateway(*several, settings=settings(**backend_settings(**values)))


class Answer:
    """The answer that a client has received, parsed. ``complete`` is False if bytes are missing."""

    def __init__(self, transport: ClientTransport) -> None:
        head, _, rest = transport.value().partition(b"\r\n\r\n")
        lines = head.decode("ascii").split("\r\n")
        self.status = int(lines[0].split(" ")[1]) if lines[0] else 0
        self.headers = [line.split(": ", 1) for line in lines[1:]]
        self.closed = transport.disconnecting or not transport.connected
        self.body, self.complete = rest, True
        if self.header("transfer-encoding") == "chunked":
            self.body, self.complete = _dechunk(rest)
        elif (length := self.header("content-length")) is not None:
            self.complete = len(rest) == int(length)

    def header(self, name: str) -> str | None:
        values = [v for n, v in self.headers if n.lower() == name]
        assert len(values) < 2, f"{name} {len(values)} times"
        return values[0] if values else None

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return error_code(self.body)

    @property
    def payloads(self) -> list[bytes]:
        """The data of each event, without comments."""
        blocks = self.body.split(b"\n\n")
        assert blocks.pop() == b"", "an event is unfinished"
        blocks = [b.removeprefix(b"event: error\n") for b in blocks if not b.startswith(b":")]
        return [b.removeprefix(b"data: ") for b in blocks]


def error_code(envelope: bytes) -> str:
    """The code of an error, in OpenAI's envelope or in Anthropic's."""
    error = json.loads(envelope)["error"]
    return str(error["details"]["error_code"] if "details" in error else error["code"])


def _dechunk(data: bytes) -> tuple[bytes, bool]:
    body = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        body += data[:length]
        assert data[length : length + 2] == b"\r\n"
        data = data[length + 2 :]
        if not length:
            assert not data
            return body, True
    return body, False


def echo_gateway(**values: str) -> Gateway:
    """A gateway without a backend, with some settings set."""
    return Gateway(settings=settings(**values))


def send_raw(gateway: Gateway, data: bytes) -> ClientTransport:
    """Send bytes on a connection of their own."""
    return connect(gateway.site, data)
