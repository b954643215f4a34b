"""The backend that speaks the OpenAI API: what it sends, and what ends an attempt."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from gatewayd.backend.openai import OpenAIBackend
from gatewayd.backend.treqclient import TreqClient
from gatewayd.settings.load import load
from gatewayd.settings.values import Secret
from tests.backendside import GatewayWorld
from tests.memory import JSON, Answer, FakeBackend, Gateway, settings
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
def test_other_requests_are_sent_unchanged(path: str, count_usage: str, stream: bool) -> None:
    body = ASKS % b', "stream_options":{"include_usage":false}'
    body = body if stream else body.replace(b"true", b"false")
    assert sent(path, body, count_usage) == body


def test_a_message_is_sent_with_the_clients_version_betas_and_beta_parameter() -> None:
    world = GatewayWorld("http://127.0.0.1:9/base/v1", api_key=Secret("backend-key"))
    headers = JSON | {
        "X-Request-ID": "req-1",
        "x-api-key": "client-key",
        "anthropic-version": "2023-06-01",
        "Anthropic-Beta": "a-1,b-2",
        "x-app": "cli",
    }
    world.gateway.request("POST", MESSAGES + "?beta=true&key=secret", b"{}", headers)
    head, _, body = world.accept().value().partition(b"\r\n\r\n")
    assert body == b"{}"
    assert head.decode().split("\r\n") == [
        "POST /base/v1/messages?beta=true HTTP/1.1",
        "Host: 127.0.0.1:9",
        "User-Agent: gatewayd",
        "Authorization: Bearer backend-key",
        "Accept: application/json",
        "X-Request-Id: req-1",
        "Content-Type: application/json",
        "anthropic-version: 2023-06-01",
        "anthropic-beta: a-1,b-2",
        "Content-Length: 2",
    ]


# -- errors ----------------------------------------------------------------------------------------


@pytest.fixture
def logged_failures() -> Iterator[Callable[[], int]]:
    """How many failures were logged since it was asked last."""
    seen = 0
    with capturedLogs() as events:

        def count() -> int:
            nonlocal seen
            before, seen = seen, len(events)
            return sum("log_failure" in event for event in events[before:])

        yield count


@pytest.mark.parametrize("method", ["request", "get"])
def test_an_exception_in_the_client_settles_the_attempt(
    method: str, monkeypatch: pytest.MonkeyPatch, logged_failures: Callable[[], int]
) -> None:
    world = GatewayWorld("http://127.0.0.1:9", FakeBackend(), health="/health")

    def broken(*_: object, **__: object) -> None:
        raise KeyError("a fault of our own code")

    monkeypatch.setattr(TreqClient, method, broken)
    if method == "request":
        assert Answer(world.gateway.chat()).status == 500
        assert world.target.in_flight == 0
    else:
        looking = world.target.backend.check()
        assert looking is not None
        failed: list[Failure] = []
        looking.addErrback(failed.append)
        assert failed
        assert [m["id"] for m in world.models().json["data"]] == ["m"]  # of the other one
    assert logged_failures() == 1


@pytest.mark.parametrize("how", ["raises", "fails"])
def test_a_backend_that_is_broken_does_not_spoil_the_list_of_the_others(
    how: str, logged_failures: Callable[[], int]
) -> None:
    class Broken(FakeBackend):
        def models(self, request_id: str) -> Deferred[dict[str, Any]]:
            if how == "raises":
                raise KeyError("x")
            return fail(KeyError("x"))

    gateway = Gateway(Broken("broken"), FakeBackend("good"))
    answer = Answer(gateway.request("GET", "/v1/models"))
    assert [entry["id"] for entry in answer.json["data"]] == ["m"]
    assert logged_failures() == 1
    alone = Gateway(Broken("broken"))
    assert Answer(alone.request("GET", "/v1/models")).status == 500
    assert logged_failures() == 1


@pytest.mark.parametrize("reask", ["never", "before-commit"])
def test_patience_is_a_clock_only_where_another_backend_may_be_asked(reask: str) -> None:
    loaded = load(
        {
            "GATEWAYD_BACKEND_A_URL": "http://127.0.0.1:1",
            "GATEWAYD_TIMEOUTS_PATIENCE": "5",
            "GATEWAYD_ROUTING_REASK": reask,
        }
    )
    backend = OpenAIBackend(loaded.backends[0], loaded.limits, Clock())
    declared = reask == "before-commit"
    assert (backend.reask, backend.clocks.patience) == (declared, 5 if declared else 0)
