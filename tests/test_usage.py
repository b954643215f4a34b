"""The tokens of an exchange are those that its backend reported, or unknown; in memory."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gatewayd.exchange import End
from gatewayd.telemetry.access import line_of
from gatewayd.telemetry.metrics import PrometheusMetrics
from gatewayd.wire import errors
from tests.memory import Answer, ClientTransport, FakeBackend, Gateway, chunk, completion
from tests.replies import CHAT, COMPLETIONS, MESSAGES, RESPONSES

USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def gateway(backend: FakeBackend) -> Gateway:
    return Gateway(backend)


def ask(gateway: Gateway, path: str, **body: Any) -> ClientTransport:
    """Send a request with the members that its endpoint needs."""
    return gateway.chat(**body) if path == CHAT else gateway.post(path, **body)


def counted(gateway: Gateway) -> tuple[int | None, int | None]:
    """Prompt and completion tokens on the log line of the only request."""
    (exchange,) = gateway.ended
    line = line_of(exchange)
    return line.prompt_tokens, line.completion_tokens


def text(finish: str | None = None) -> bytes:
    return json.dumps({"choices": [{"index": 0, "text": "", "finish_reason": finish}]}).encode()


def alone(**usage: int) -> bytes:
    """The chunk that carries usage and no choice."""
    return json.dumps({"id": "chatcmpl-1", "choices": [], "usage": usage or USAGE}).encode()


@pytest.mark.parametrize(
    ("path", "reply", "tokens"),
    [
        (CHAT, json.loads(completion(usage=USAGE)), (7, 5)),
        (CHAT, json.loads(completion()), (None, None)),
        (CHAT, json.loads(completion(usage=None)), (None, None)),
        (COMPLETIONS, {"choices": [{"index": 0}], "usage": USAGE}, (7, 5)),
        (RESPONSES, {"output": [], "usage": {"input_tokens": 7, "output_tokens": 5}}, (7, 5)),
        (RESPONSES, {"object": "response", "usage": None}, (None, None)),
        (MESSAGES, {"type": "message", "usage": {"input_tokens": 7, "output_tokens": 5}}, (7, 5)),
        ("/v1/embeddings", {"data": [], "usage": {"prompt_tokens": 7}}, (7, 0)),
        ("/v1/rerank", {"results": [], "usage": {"prompt_tokens": 7, "total_tokens": 7}}, (7, 0)),
        ("/v1/rerank", {"results": [], "usage": {"total_tokens": 7}}, (None, None)),
        ("/v1/rerank", {"results": [], "usage": {"prompt_tokens": "many"}}, (None, None)),
    ],
)
def test_a_document_reports_tokens(
    gateway: Gateway,
    backend: FakeBackend,
    path: str,
    reply: dict[str, Any],
    tokens: tuple[int | None, int | None],
) -> None:
    ask(gateway, path)
    backend.calls[0].whole(json.dumps(reply).encode())
    assert counted(gateway) == tokens and gateway.ended[0].end is End.COMPLETE


STREAMS = {
    CHAT: [chunk("a"), chunk(finish="stop"), alone(), b"[DONE]"],
    COMPLETIONS: [text(), text("stop"), alone(), b"[DONE]"],
    RESPONSES: [
        b'{"type":"response.created","response":{"usage":null}}',
        b'{"type":"response.completed","response":{"usage":{"input_tokens":7,"output_tokens":5}}}',
    ],
    MESSAGES: [
        b'{"type":"message_start","message":{"usage":{"input_tokens":7,"output_tokens":1}}}',
        b'{"type":"content_block_delta"}',
        b'{"type":"message_delta","usage":{"output_tokens":5}}',
        b'{"type":"message_stop"}',
    ],
}


@pytest.mark.parametrize("path", STREAMS)
def test_a_stream_reports_tokens(gateway: Gateway, backend: FakeBackend, path: str) -> None:
    ask(gateway, path, stream=True)
    backend.calls[0].head()
    for payload in STREAMS[path]:
        backend.calls[0].event(payload)
    assert counted(gateway) == (7, 5) and gateway.ended[0].end is End.COMPLETE


@pytest.mark.parametrize(
    "usage",
    [
        "null",
        "{}",
        "[]",
        '"7"',
        '{"total_tokens":7}',
        *(
            f'{{"prompt_tokens":{count},"completion_tokens":{count}}}'
            for count in ("null", '"7"', "1.5", "-1", "true", "1e400", "9" * 400, "9" * 5000)
        ),
    ],
    ids=lambda usage: usage[:40],
)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES, MESSAGES])
@pytest.mark.parametrize("stream", [True, False])
def test_a_count_that_cannot_be_read_is_unknown_and_crosses_as_it_came(
    gateway: Gateway, backend: FakeBackend, path: str, stream: bool, usage: str
) -> None:
    client = ask(gateway, path, stream=stream)
    (call,) = backend.calls
    if not stream:
        body = b'{"choices":[{"index":0}],"id":"req-1","usage":%b}' % usage.encode()
        call.whole(body)
        assert Answer(client).complete and Answer(client).body == body
    else:
        call.head()
        last = {RESPONSES: "response.completed", MESSAGES: "message_stop"}.get(path, "x")
        choice = b'{"index":0,"finish_reason":"stop"}'
        payload = b'{"id":"req-1","type":"%b","choices":[%b],"usage":%b}' % (
            last.encode(),
            choice,
            usage.encode(),
        )
        call.event(payload)
        if path in (CHAT, COMPLETIONS):
            call.event(b"[DONE]")
        assert Answer(client).complete and Answer(client).payloads[0] == payload
    assert counted(gateway) == (None, None) and gateway.ended[0].end is End.COMPLETE
    metrics = PrometheusMetrics(gateway.clock)
    metrics(gateway.ended[0])  # the metrics accept it


@pytest.mark.parametrize(
    ("path", "first"),
    [
        *((path, STREAMS[path][0]) for path in (CHAT, COMPLETIONS, RESPONSES, MESSAGES)),
        (CHAT, chunk("a", usage=USAGE)),  # some servers send usage with every chunk
    ],
)
@pytest.mark.parametrize("how", ["cut", "error", "left"])
def test_a_truncated_reply_has_no_count_of_tokens(
    gateway: Gateway, backend: FakeBackend, path: str, first: bytes, how: str
) -> None:
    """A count in an earlier event, as messages begin with one, is not the count of the reply."""
    client = ask(gateway, path, stream=True)
    (call,) = backend.calls
    call.head()
    call.event(first)
    if how == "cut":
        call.end(errors.Truncated("x"))
    elif how == "error":
        call.event(b'{"error":{"message":"x"}}')
    else:
        client.leave()
    assert gateway.ended[0].end is not End.COMPLETE
    assert counted(gateway) == (None, None)
    assert line_of(gateway.ended[0]).events == 1


def test_a_reply_that_the_backend_refused_has_no_count(
    gateway: Gateway, backend: FakeBackend
) -> None:
    gateway.chat()
    backend.calls[0].whole(b'{"error":{"message":"x"},"usage":{"prompt_tokens":7}}', 400)
    assert counted(gateway) == (None, None)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("asked", [True, False])
def test_the_usage_chunk_is_for_clients_that_asked_for_it(
    gateway: Gateway, backend: FakeBackend, path: str, asked: bool
) -> None:
    more = {"stream_options": {"include_usage": True}} if asked else {}
    client = ask(gateway, path, stream=True, **more)
    backend.calls[0].head()
    for payload in STREAMS[path]:
        backend.calls[0].event(payload)
    *chunks, done = Answer(client).payloads
    assert done == b"[DONE]" and Answer(client).complete
    assert [b'"choices": []' in payload for payload in chunks] == [False, False, *[True] * asked]
    assert counted(gateway) == (7, 5) and gateway.ended[0].events == len(chunks)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_usage_on_a_chunk_with_choices_crosses_to_every_client(
    gateway: Gateway, backend: FakeBackend, path: str
) -> None:
    client = ask(gateway, path, stream=True)
    backend.calls[0].head()
    last = b'{"id":"req-1","choices":[{"index":0,"finish_reason":"stop"}],"usage":' + (
        json.dumps(USAGE).encode() + b"}"
    )
    backend.calls[0].event(last)
    backend.calls[0].event(b"[DONE]")
    assert Answer(client).payloads == [last, b"[DONE]"] and counted(gateway) == (7, 5)
