"""A backend that speaks the OpenAI API over HTTP, called with treq.

llama.cpp's server, vLLM and Ollama need no class of their own: where one differs (llama.cpp says
503 ``Loading model``, Ollama's empty list of models is ``null``), what it sends means the same
from any other.
"""

from __future__ import annotations

import re
import uuid
from typing import Any
from urllib.parse import urlsplit

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import IAgent, IResponse

from gatewayd.settings.model import BackendSettings, LimitSettings
from gatewayd.settings.pem import certificates_in
from gatewayd.wire import models
from gatewayd.wire.call import Call
from gatewayd.wire.errors import AuthRefused, BadReply, UpstreamError

from .agent import Agent
from .calling import Caller
from .headers import ReadyHeaders
from .interface import Clocks, Reply
from .tls import ClientTLS

#: A backend's headers that cross to the client; the rest stays behind.
_CROSSING = (b"retry-after", b"retry-after-ms", b"x-should-retry")
_CROSSING_PREFIX = b"x-ratelimit-"

#: ``audio/mpeg; rate=24000``: the type, and parameters that are safe to pass on.
_CONTENT_TYPE = re.compile(
    rb"\s*(%b/%b)\s*(;.*)?" % ((rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}",) * 2)
)
_PARAMETERS = re.compile(rb";[ -~]{1,255}")
#: The value of another header that crosses.
_VALUE = re.compile(rb"[ -~]{0,255}")

MODELS_BYTES = 4 * 1024 * 1024


class OpenAIBackend:
    """
    To make one opens nothing; so ``--check`` can make it, too.

    :param agent: in place of the one it would make; tests hand one in.
    :raises ValueError: a setting cannot be used.
    """

    def __init__(
        self,
        settings: BackendSettings,
        limits: LimitSettings,
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
        self._key = "" if settings.api_key is None else settings.api_key.reveal()
        if self._key:
            self._headers[b"Authorization"] = [b"Bearer " + self._key.encode("ascii")]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def renewed(self, settings: BackendSettings, limits: LimitSettings) -> OpenAIBackend:
        """The same server with other settings, over the connections that there are.

        Its connections follow these settings from :meth:`take_over` on.
        """
        return OpenAIBackend(settings, limits, self._reactor, self._agent)

    def take_over(self) -> None:
        """Be the one that the connections go by."""
        if isinstance(self._agent, Agent):
            self._agent.limit(self.settings.connect, self._limits.request_head)

    def send(self, call: Call, request_id: str, traceparent: str | None) -> Deferred[Reply]:
        return maybeDeferred(self._send, call, request_id, traceparent)

    def _send(self, call: Call, request_id: str, traceparent: str | None) -> Deferred[Reply]:
        accept = b"text/event-stream" if call.stream else b"application/json"
        if self._count_usage:
            call = call.counting_usage()
        headers = self._head(request_id, accept, call.content_type, traceparent)
        return self._caller.post(call.path, call.body, headers).addCallback(_reply, self._key)

    def check(self) -> Deferred[bool] | None:
        if self._health is None:
            return None
        return self._get(self._health, str(uuid.uuid4())).addCallback(_health)

    def models(self, request_id: str) -> Deferred[dict[str, Any]]:
        listed = self._get("/v1/models", request_id)
        return listed.addCallback(_list_of_models, self._limits.json_depth)

    def _get(self, path: str, request_id: str) -> Deferred[Reply]:
        headers = self._head(request_id, b"application/json")
        return maybeDeferred(self._caller.get, path, headers).addCallback(_reply)

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


def _tls(settings: BackendSettings) -> ClientTLS | None:
    """``tls_ca`` names what to trust in place of the system's store."""
    base = urlsplit(settings.url)
    if base.scheme != "https":
        return None
    trusted = None if settings.tls_ca is None else certificates_in(settings.tls_ca)
    return ClientTLS(base.hostname or "", trusted)


def _reply(response: IResponse, key: str = "") -> Reply:
    # treq wraps what the agent gave, which is all that is wanted here, and names it so.
    response = getattr(response, "original", response)
    crossing = []
    media_type = parameters = ""
    for name, values in response.headers.getAllRawHeaders():
        lower, value = name.lower(), values[0]
        if lower == b"content-type":
            media_type, parameters = _content_type(value)
        elif _crosses(lower) and _VALUE.fullmatch(value):
            crossing.append((lower, value))
    return Reply(
        status=response.code,
        media_type=media_type,
        headers=tuple(crossing),
        body=response,
        connect_seconds=getattr(response, "connect_seconds", 0.0),
        parameters=parameters,
        key=key,
    )


def _crosses(name: bytes) -> bool:
    return name in _CROSSING or name.startswith(_CROSSING_PREFIX)


def _content_type(value: bytes) -> tuple[str, str]:
    """The media type, in lower case, and its parameters where they may cross."""
    found = _CONTENT_TYPE.fullmatch(value)
    if found is None:
        return "", ""
    parameters = (found[2] or b"").rstrip()
    safe = _PARAMETERS.fullmatch(parameters) is not None
    return found[1].decode("ascii").lower(), parameters.decode("ascii") if safe else ""


def _list_of_models(reply: Reply, depth: int) -> Deferred[dict[str, Any]]:
    if reply.status in (401, 403):
        raise _left(reply, AuthRefused("The backend refused the gateway's credentials."))
    if reply.status != 200:
        said = f"status {reply.status}"
        raise _left(reply, BadReply("The backend refused to list its models.", detail=said))
    return _collect(reply).addCallback(models.decode_list, depth)


def _health(reply: Reply) -> Deferred[bool]:
    """200 is well; llama.cpp answers 503 ``Loading model`` while it does that."""

    def judge(body: bytes) -> bool:
        if reply.status != 200 and not (reply.status == 503 and b"oading model" in body):
            raise BadReply(f"The backend's health is {reply.status}.")
        return reply.status == 200

    return _collect(reply).addCallback(judge)


def _collect(reply: Reply) -> Deferred[bytes]:
    collector = _Collector(MODELS_BYTES)
    reply.body.deliverBody(collector)
    return collector.result


def _left(reply: Reply, problem: UpstreamError) -> UpstreamError:
    """Part from a body that nobody needs; if it ends soon, its connection is kept."""
    collector = _Collector(MODELS_BYTES)
    reply.body.deliverBody(collector)
    collector.transport.loseConnection()
    return problem


class _Collector(Protocol):
    """Gathers a short body, up to a limit."""

    transport: Any

    def __init__(self, limit: int) -> None:
        self.result: Deferred[bytes] = Deferred(lambda _: self.transport.abortConnection())
        self._limit = limit
        self._body = bytearray()

    def dataReceived(self, data: bytes) -> None:
        self._body += data
        if len(self._body) > self._limit:
            self.fail(BadReply("The backend's answer is too long."))

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        if self.result.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.result.callback(bytes(self._body))
        else:
            self.result.errback(reason)

    def fail(self, error: Exception) -> None:
        if not self.result.called:
            self.transport.abortConnection()
            self.result.errback(error)
