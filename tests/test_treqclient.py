"""treq's client as it is used here: what reaches the agent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent
from zope.interface import implementer

from gatewayd.backend.headers import RequestHeaders
from gatewayd.backend.treqclient import TreqClient

URL = "http://llama_server:9/base/v1/x"


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
    client = TreqClient(agent)
    for _ in range(2):  # the second after the cookie of the first
        responses: list[Any] = []
        headers = RequestHeaders(b"X-A: 1\r\n")
        client.post(URL, data=b"{}", headers=headers).addCallback(responses.append)
        assert agent.requests.pop() == (b"POST", URL.encode(), {b"X-A": [b"1"]}, b"{}")
        assert responses == [agent.response]


def test_a_get_has_no_body() -> None:
    agent = RecordingAgent()
    TreqClient(agent).get(URL, headers=RequestHeaders(b""))
    assert agent.requests.pop() == (b"GET", URL.encode(), {}, None)
