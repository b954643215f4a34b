"""treq's client as it is used here: what reaches the agent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.testing import MemoryReactorClock
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent
from zope.interface import implementer

from gatewayd.backend.headers import UncheckedHeaders
from gatewayd.backend.treqclient import TreqClient

BASE = "http://llama_server:9/base"


@implementer(IAgent)
class RecordingAgent:
    """Answers each request with a cookie, and records it."""

    def __init__(self) -> None:
        self.requests: list[tuple[bytes, bytes, dict[bytes, list[bytes]], bytes | None]] = []
        self.response = SimpleNamespace(headers=Headers({"Set-Cookie": ["a=b"]}))

    def request(
        self, method: bytes, uri: bytes, headers: Any = None, bodyProducer: Any = None
    ) -> Deferred[Any]:
        body = None if bodyProducer is None else bodyProducer.body
        self.requests.append((method, uri, dict(headers.getAllRawHeaders()), body))
        return succeed(self.response)


def test_a_request_reaches_the_agent_as_it_was_made_and_the_response_comes_back() -> None:
    agent = RecordingAgent()
    client = TreqClient(agent, BASE, MemoryReactorClock())
    for _ in range(2):  # the second with what the first may have left: a URL, a cookie
        responses: list[Any] = []
        headers = UncheckedHeaders({b"X-A": [b"1"]})
        client.post("/v1/x", b"{}", headers).addCallback(responses.append)
        method, uri, sent, body = agent.requests.pop()
        assert (method, uri, body) == (b"POST", BASE.encode() + b"/v1/x", b"{}")
        assert sent == {b"X-A": [b"1"], b"Accept-Encoding": [b"gzip"]}  # the agent drops the latter
        assert responses[0].original is agent.response


def test_a_get_has_no_body() -> None:
    agent = RecordingAgent()
    TreqClient(agent, BASE, MemoryReactorClock()).get("/health", UncheckedHeaders({}))
    method, uri, _, body = agent.requests.pop()
    assert (method, uri, body) == (b"GET", BASE.encode() + b"/health", None)
