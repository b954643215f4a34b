"""A backend that speaks the OpenAI API over HTTP. Requests are made with treq.

llama.cpp's server, vLLM and Ollama share this class. What only one of them sends (503 ``Loading
model`` from llama.cpp, ``null`` for an empty list of models from Ollama) would mean the same from
the others.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.web.iweb import IAgent

from gatewayd.http1.handshake import Handshake
from gatewayd.http1.writing import header_lines
from gatewayd.settings.model import BEFORE_COMMIT, BackendSettings, LimitSettings
from gatewayd.wire.call import Call
from gatewayd.wire.errors import BadReply
from gatewayd.wire.tunnels import TunnelCall

from .agent import Agent
from .collecting import read_health, read_models, read_slots
from .headers import RequestHeaders
from .interface import Accepted, Clocks, Reply
from .response import Response
from .treqclient import TreqClient
from .upgrade import UpgradeConnection

if TYPE_CHECKING:
    from .tls import ClientTLS


class OpenAIBackend:
    """
    Creating one opens no connection, so ``--check`` creates it too.

    :param agent: whose connections are used; None to create an agent.
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
        self.reask = settings.reask == BEFORE_COMMIT
        patience = settings.patience if self.reask else 0.0
        self.clocks = Clocks(settings.first_byte, settings.idle, settings.total, patience)
        self._reactor = reactor
        self._limits = limits
        self._agent = agent or Agent(
            reactor, base, _tls(settings), settings.connect, limits.request_head
        )
        self._client = TreqClient(self._agent)
        self._count_usage = settings.count_usage
        self._health = settings.health
        self._key = "" if settings.api_key is None else settings.api_key.reveal()
        fields = [(b"User-Agent", b"gatewayd")]
        if self._key:
            fields.append((b"Authorization", b"Bearer " + self._key.encode("ascii")))
        self._lines = header_lines(fields)  # those that all requests have

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def renewed(self, settings: BackendSettings, limits: LimitSettings) -> OpenAIBackend:
        """The same server with other settings, which uses the same connections.

        The connections follow the new settings from :meth:`take_over` on.
        """
        return OpenAIBackend(settings, limits, self._reactor, self._agent)

    def take_over(self) -> None:
        """Apply these settings to the connections."""
        if isinstance(self._agent, Agent):
            self._agent.set_limits(self.settings.connect, self._limits.request_head)

    def send(self, call: Call, request_id: str, traceparent: str | None) -> Deferred[Reply]:
        try:
            if self._count_usage:
                call = call.counting_usage()
            headers = self._request_headers(request_id, call.accept, call.content_type, traceparent)
            if call.headers:
                headers = headers.with_fields(call.headers)
            url = self.settings.url + call.path + call.query
            return self._client.request(call.method, url, data=call.body, headers=headers)
        except Exception:
            return fail()

    def open_tunnel(
        self, call: TunnelCall, handshake: Handshake, request_id: str, traceparent: str | None
    ) -> Deferred[Accepted | Reply]:
        agent: Any = self._agent  # treq has no upgrades
        try:
            lines = self._request_headers(request_id, b"*/*", traceparent=traceparent).lines
            headers = RequestHeaders(lines + handshake.header_lines(), self._key)
            url = (self.settings.url + call.target).encode("ascii")
            opened: Deferred[Any] = agent.upgrade(url, headers)
        except Exception:
            return fail()
        return opened.addCallback(_opened, handshake)

    def check(self) -> Deferred[bool] | None:
        if self._health is None:
            return None
        return self._get(self._health, str(uuid.uuid4())).addCallback(read_health)

    def models(self, request_id: str) -> Deferred[dict[str, Any]]:
        listed = self._get("/v1/models", request_id)
        return listed.addCallback(read_models, self._limits.json_depth)

    def slots(self, request_id: str) -> Deferred[int | None]:
        asked = self._get("/props", request_id)
        return asked.addCallback(read_slots, self._limits.json_depth)

    def _get(self, path: str, request_id: str) -> Deferred[Reply]:
        headers = self._request_headers(request_id, b"application/json")
        url = self.settings.url + path
        got: Deferred[Any] = maybeDeferred(self._client.get, url, headers=headers)
        return got

    def close(self) -> None:
        if isinstance(self._agent, Agent):
            self._agent.close()

    def _request_headers(
        self,
        request_id: str,
        accept: bytes,
        content_type: bytes = b"",
        traceparent: str | None = None,
    ) -> RequestHeaders:
        lines = b"%bAccept: %b\r\nX-Request-Id: %b\r\n" % (
            self._lines,
            accept,
            request_id.encode("ascii"),
        )
        if content_type:
            lines += b"Content-Type: %b\r\n" % content_type
        if traceparent is not None:
            lines += b"Traceparent: %b\r\n" % traceparent.encode("ascii")
        return RequestHeaders(lines, self._key)


def _tls(settings: BackendSettings) -> ClientTLS | None:
    base = urlsplit(settings.url)
    if base.scheme != "https":
        return None
    # OpenSSL takes 12 MiB, which a gateway without TLS does not need.
    from gatewayd.settings.pem import certificates_in

    from .tls import ClientTLS

    trusted = None if settings.tls_ca is None else certificates_in(settings.tls_ca)
    return ClientTLS(base.hostname or "", trusted)


def _opened(opened: Any, handshake: Handshake) -> Accepted | Reply:
    """
    :raises BadReply: the reply with status 101 does not fit the handshake.
    """
    response: Response = opened[0]
    connection: UpgradeConnection = opened[1]
    if response.code != 101:
        return response
    try:
        headers = handshake.accepted(response.all_fields())
    except BadReply:
        connection.abort()
        raise
    return Accepted(headers, response, connection, response.connect_seconds)
