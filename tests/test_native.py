"""llama.cpp's own completions: what crosses and when they are complete; in memory."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.web.http import PotentialDataLoss

from gatewayd.exchange import End
from gatewayd.wire.endpoints import ENDPOINTS
from tests.memory import Answer, FakeBackend, Gateway
from tests.replies import framed

PATHS = [row.path for row in ENDPOINTS if "stop" in row.ends]


def piece(index: int = 0, stop: bool = False, **more: Any) -> tuple[str, bytes]:
    event = {"index": index, "content": "" if stop else "a", "stop": stop, **more}
    return "", json.dumps(event).encode()


LAST = piece(stop=True, model="real", tokens_evaluated=3, tokens_predicted=2, timings={"x": 1})


@pytest.mark.parametrize("path", PATHS)
def test_a_stream_ends_with_its_framing_after_the_last_event(
    gateway: Gateway, backend: FakeBackend, path: str
) -> None:
    client = gateway.post(path, prompt="x", stream=True)
    (call,) = backend.calls
    assert call.call.stream and call.call.path == path
    call.head()
    call.send(b"data: null\n\n" + framed([piece(), LAST]))
    assert not Answer(client).complete
    call.end()
    answer = Answer(client)
    assert answer.body == framed([piece(), LAST]) and answer.complete
    (exchange,) = gateway.ended
    assert (exchange.usage.prompt_tokens, exchange.usage.completion_tokens) == (3, 2)


@pytest.mark.parametrize(
    ("events", "how", "end"),
    [
        ([piece(), LAST], PotentialDataLoss(), End.BACKEND_TRUNCATED),
        ([piece()], None, End.BACKEND_TRUNCATED),
        ([piece(0), piece(1), piece(1, True)], None, End.BACKEND_TRUNCATED),
        ([piece(0), piece(1), piece(1, True), piece(0, True)], None, End.COMPLETE),
        ([LAST, piece()], None, End.BACKEND_TRUNCATED),
    ],
)
def test_every_completion_must_have_stopped(
    gateway: Gateway, backend: FakeBackend, events: Any, how: Exception | None, end: End
) -> None:
    client = gateway.post("/completion", prompt=["x", "y"], stream=True)
    backend.calls[0].head()
    backend.calls[0].send(framed(events))
    backend.calls[0].end(how)
    assert gateway.end is end and Answer(client).complete is (end is End.COMPLETE)


def test_an_error_event_ends_it(gateway: Gateway, backend: FakeBackend) -> None:
    client = gateway.post("/completion", prompt="x", stream=True)
    backend.calls[0].head()
    error = b'{"error":{"message":"no","code":500,"type":"server_error"}}'
    backend.calls[0].send(framed([piece(), ("", error)]))
    assert Answer(client).payloads[-1] == error and gateway.end is End.BACKEND_ERROR


def test_too_many_completions_end_it(gateway: Gateway, backend: FakeBackend) -> None:
    gateway.post("/completion", prompt="x", stream=True)
    backend.calls[0].head()
    backend.calls[0].send(framed([piece(index) for index in range(4097)]))
    assert gateway.end is End.BACKEND_ERROR


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("reply", "usage"), [(LAST[1], (3, 2)), (b"[%b, %b]" % (LAST[1], LAST[1]), None)]
)
def test_a_document_crosses(
    gateway: Gateway, backend: FakeBackend, path: str, reply: bytes, usage: Any
) -> None:
    client = gateway.post(path, prompt="x")
    backend.calls[0].whole(reply)
    assert Answer(client).body == reply and gateway.end is End.COMPLETE
    found = gateway.ended[0].usage
    assert usage == (found and (found.prompt_tokens, found.completion_tokens))


def test_an_alias_is_put_back(gateway: Gateway, backend: FakeBackend) -> None:
    client = gateway.post("/completion", prompt="x", model="nick", stream=True)
    assert json.loads(backend.calls[0].body)["model"] == "real"
    backend.calls[0].head()
    backend.calls[0].send(framed([piece(), LAST]))
    backend.calls[0].end()
    assert b'"model": "nick"' in Answer(client).body
