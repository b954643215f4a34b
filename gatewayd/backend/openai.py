"""A backend that speaks the OpenAI API over HTTP, called with treq."""

from __future__ import annotations

import uuid
from typing import Any
from urllib.parse import urlsplit

from twisted.internet import ssl
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import IAgent, IResponse

from gatewayd.config import BackendSettings, Limits
from gatewayd.pem import x509_of
from gatewayd.wire import models
from gatewayd.wire.chat import with_usage
from gatewayd.wire.errors import BadReply
from gatewayd.wire.others import Call

from .agent import Agent
from .calling import Caller
from .headers import ReadyHeaders
from .interface import Clocks, Reply

#: A backend's headers that cross to the client; the rest stays behind.
_CROSSING = (b"retry-after", b"retry-after-ms", b"x-should-retry")
_CROSSING_PREFIX = b"x-ratelimit-"

#: Where ``stream_options`` say whether tokens are counted; elsewhere they always are.
_COUNTED = ("/v1/chat/completions", "/v1/completions")

MODELS_BYTES = 4 * 1024 * 1024


class OpenAIBackend:
    """
    :param agent: in place of the one it would make; tests hand one in.
    """

    def __init__(
        self,
        settings: BackendSettings,
        limits: Limits,
        reactor: Any,
        agent: IAgent | None = None,
    ) -> None:
        base = urlsplit(settings.url)
        self.settings = settings
        self.name = settings.name
        self.clocks = Clocks(settings.first_byte, settings.idle, settings.total)
        self._reactor = reactor
        self._limits = limits
        self._agent = agent or Agent(
            reactor, base, _tls(settings), settings.connect, limits.request_head
        )
        self._caller = Caller(self._agent, settings.url, reactor)
        self._count_usage = settings.count_usage
        self._health = settings.health
        self._headers = {b"User-Agent": [b"gatewayd"]}
        if settings.api_key is not None:
            key = settings.api_key.reveal().encode("ascii")
            self._headers[b"Authorization"] = [b"Bearer " + key]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def renewed(self, settings: BackendSettings, limits: Limits) -> OpenAIBackend:
        """The same server with other settings, over the connections that there are.

        Its connections follow these settings from :meth:`take_over` on.
        """
        return OpenAIBackend(settings, limits, self._reactor, self._agent)

    def take_over(self) -> None:
        """Be the one that the connections go by."""
        if isinstance(self._agent, Agent):
            self._agent.limit(self.settings.connect, self._limits.request_head)

    def send(
        self, call: Call, body: bytes, request_id: str, traceparent: str | None
    ) -> Deferred[Reply]:
        accept = b"text/event-stream" if call.stream else b"application/json"
        if call.stream and self._count_usage and call.path in _COUNTED:
            body = with_usage(body)
        headers = self._head(request_id, accept, call.content_type, traceparent)
        return self._caller.post(call.path, body, headers).addCallback(_reply)

    def check(self) -> Deferred[bool] | None:
        if self._health is None:
            return None
        return (
            self._caller.get(self._health, self._head(str(uuid.uuid4()), b"application/json"))
            .addCallback(_reply)
            .addCallback(_health)
        )

    def models(self, request_id: str) -> Deferred[dict[str, Any]]:
        return (
            self._caller.get("/v1/models", self._head(request_id, b"application/json"))
            .addCallback(_reply)
            .addCallback(_list_of_models, self._limits.json_depth)
        )

    def close(self) -> None:
        if isinstance(self._agent, Agent):
            self._agent.close()

    def _head(
        self,
        request_id: str,
        accept: bytes,
        content_type: bytes = b"",
        traceparent: str | None = None,
    ) -> ReadyHeaders:
        fields = self._headers.copy()
        fields[b"Accept"] = [accept]
        fields[b"X-Request-Id"] = [request_id.encode("ascii")]
        if content_type:
            fields[b"Content-Type"] = [content_type]
        if traceparent is not None:
            fields[b"Traceparent"] = [traceparent.encode("ascii")]
        return ReadyHeaders(fields)


#: llama.cpp's server speaks the same API, down to the error envelope.
LlamaCppBackend = OpenAIBackend


def _tls(settings: BackendSettings) -> IOpenSSLClientConnectionCreator | None:
    """Always verified; ``tls_ca`` names what to trust in place of the system's store."""
    base = urlsplit(settings.url)
    if base.scheme != "https":
        return None
    trust = None
    if settings.tls_ca is not None:
        trusted = [ssl.Certificate(certificate) for certificate in x509_of(settings.tls_ca)]
        trust = ssl.trustRootFromCertificates(trusted)
    return ssl.optionsForClientTLS(base.hostname or "", trustRoot=trust)


def _reply(response: IResponse) -> Reply:
    # treq wraps what the agent gave, which is all that is wanted here, and names it so.
    response = getattr(response, "original", response)
    crossing = []
    media_type = ""
    for name, values in response.headers.getAllRawHeaders():
        lower = name.lower()
        if lower == b"content-type":
            media_type = values[0].partition(b";")[0].strip().lower().decode("latin-1")
        elif lower in _CROSSING or lower.startswith(_CROSSING_PREFIX):
            crossing.append((lower, values[0]))
    return Reply(
        status=response.code,
        media_type=media_type,
        headers=tuple(crossing),
        body=response,
        connect_seconds=getattr(response, "connect_seconds", 0.0),
    )


def _list_of_models(reply: Reply, depth: int) -> Deferred[dict[str, Any]]:
    collector = _Collector(MODELS_BYTES)
    reply.body.deliverBody(collector)
    if reply.status != 200:
        collector.fail(BadReply("The backend refused to list its models."))
    return collector.result.addCallback(models.decode_list, depth)


def _health(reply: Reply) -> Deferred[bool]:
    """200 is well; llama.cpp answers 503 ``Loading model`` while it does that."""
    collector = _Collector(MODELS_BYTES)
    reply.body.deliverBody(collector)

    def judge(body: bytes) -> bool:
        if reply.status != 200 and not (reply.status == 503 and b"oading model" in body):
            raise BadReply(f"The backend's health is {reply.status}.")
        return reply.status == 200

    return collector.result.addCallback(judge)


class _Collector(Protocol):
    """Gathers a short body, up to a limit."""

    transport: Any

    def __init__(self, limit: int) -> None:
        self.result: Deferred[bytes] = Deferred(lambda _: self.transport.abortConnection())
        self._left = limit
        self._parts: list[bytes] = []

    def dataReceived(self, data: bytes) -> None:
        self._left -= len(data)
        self._parts.append(data)
        if self._left < 0:
            self.fail(BadReply("The backend's answer is too long."))

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        if self.result.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.result.callback(b"".join(self._parts))
        else:
            self.result.errback(reason)

    def fail(self, error: Exception) -> None:
        if not self.result.called:
            self.transport.abortConnection()
            self.result.errback(error)
