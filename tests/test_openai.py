"""The backend that speaks the OpenAI API: what it sends of a request."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from gatewayd.backend.openai import OpenAIBackend
from tests.memory import settings
from tests.replies import CHAT, COMPLETIONS, MESSAGES, RESPONSES, endpoint


@implementer(IAgent)
class Recorder:
    """Keeps the bodies of what it is asked and never answers."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        producer: Any = bodyProducer
        written: list[bytes] = []
        producer.startProducing(_Consumer(written))
        self.bodies.append(b"".join(written))
        return Deferred()


class _Consumer:
    def __init__(self, written: list[bytes]) -> None:
        self.write = written.append


def sent(path: str, body: bytes, count_usage: str) -> bytes:
    """What a backend is sent for a request with this body."""
    given = settings(backend_a_url="http://127.0.0.1:1", backend_a_count_usage=count_usage)
    agent = Recorder()
    backend = OpenAIBackend(given.backends[0], given.limits, Clock(), agent)
    row = endpoint(path)
    backend.send(row.request.parse(row, body, b"application/json", 64), "req-1", None)
    return agent.bodies[0]


ASKS = b'{"messages":[{"role":"user","content":"x"}], "stream" : true%b}'


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    ("options", "becomes"),
    [
        (b"", {"include_usage": True}),
        (b', "stream_options":null', {"include_usage": True}),
        (b', "stream_options":{}', {"include_usage": True}),
        (b', "stream_options":{"include_usage":false}', {"include_usage": True}),
        (b', "stream_options":{"include_usage":true}', {"include_usage": True}),
        (b', "stream_options":{"x":1.0}', {"x": 1.0, "include_usage": True}),
        (b', "stream_options":5', 5),
    ],
)
def test_count_usage_asks_for_it_and_changes_nothing_else(
    path: str, options: bytes, becomes: object
) -> None:
    body = ASKS % options
    asked = sent(path, body, "yes")
    assert json.loads(asked) == {**json.loads(body), "stream_options": becomes}
    assert b'"stream" : true' in asked and b'[{"role":"user","content":"x"}]' in asked


@pytest.mark.parametrize(
    ("path", "count_usage", "stream"),
    [
        (CHAT, "no", True),
        (CHAT, "yes", False),
        (COMPLETIONS, "no", True),
        (RESPONSES, "yes", True),
        (MESSAGES, "yes", True),
        ("/v1/embeddings", "yes", True),
    ],
)
def test_otherwise_the_request_stays_as_it_is(path: str, count_usage: str, stream: bool) -> None:
    body = ASKS % b', "stream_options":{"include_usage":false}'
    body = body if stream else body.replace(b"true", b"false")
    assert sent(path, body, count_usage) == body
