"""The backend that is used when none is configured: it answers with the user's last message."""

from __future__ import annotations

import time
from typing import Any

import attrs
from twisted.internet.defer import Deferred, execute, fail, succeed
from twisted.internet.interfaces import IProtocol
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone

from gatewayd.http1.handshake import Handshake
from gatewayd.wire import completion, models
from gatewayd.wire.call import Call
from gatewayd.wire.chat import ChatCall
from gatewayd.wire.errors import UnknownURL
from gatewayd.wire.tunnels import TunnelCall

from .interface import Accepted, Clocks, PlainReply, Reply

MODEL = "echo"


def approximate_tokens(text: str) -> int:
    """A plausible token count: one for every four bytes, rounded up."""
    return -(-len(text.encode("utf-8", "surrogatepass")) // 4)


class EchoBackend:
    """Replies ``Echo: <last user message>``. It cannot stream."""

    name = "echo"
    clocks = Clocks()
    reask = False

    def __init__(self, title: str) -> None:
        self._title = title

    def send(self, call: Call, request_id: str, traceparent: str | None) -> Deferred[Reply]:
        return execute(self._reply, call, request_id)

    def open_tunnel(
        self, call: TunnelCall, handshake: Handshake, request_id: str, traceparent: str | None
    ) -> Deferred[Accepted | Reply]:
        return fail(UnknownURL("No backend is configured, and the echo has no WebSockets."))

    def check(self) -> None:
        """None: the echo has no health path."""

    def models(self, request_id: str) -> Deferred[dict[str, Any]]:
        return succeed({MODEL: models.entry(MODEL, 0, self._title)})

    def slots(self, request_id: str) -> Deferred[int | None]:
        return succeed(None)

    def close(self) -> None:
        """No-op: it has no connections."""

    def _reply(self, request: Call, request_id: str) -> Reply:
        if not isinstance(request, ChatCall):
            raise UnknownURL("No backend is configured, and the echo has only chat completions.")
        prompt = request.prompt()
        content = f"Echo: {prompt}"
        body = completion.encode(
            request_id,
            int(time.time()),
            request.model or MODEL,
            content,
            approximate_tokens(prompt),
            approximate_tokens(content),
        )
        return PlainReply(200, "application/json", (), _WholeBody(body))


@attrs.frozen
class _WholeBody:
    """A body in memory."""

    body: bytes

    def deliverBody(self, protocol: IProtocol) -> None:
        protocol.makeConnection(_NoTransport())  # type: ignore[arg-type]  # has what Body requires
        protocol.dataReceived(self.body)
        protocol.connectionLost(Failure(ResponseDone()))


class _NoTransport:
    def pauseProducing(self) -> None: ...
    def resumeProducing(self) -> None: ...
    def abortConnection(self) -> None: ...
    def loseConnection(self) -> None: ...
