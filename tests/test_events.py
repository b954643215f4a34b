"""Streams that end with an event of a certain type, and documents of those endpoints; in memory."""

from __future__ import annotations

import json

import pytest

from gatewayd.backend.interface import Clocks
from gatewayd.exchange import End
from tests.memory import Answer, FakeBackend, Gateway, error_code, settings
from tests.replies import (
    BY_EVENT,
    COMPLETIONS,
    MESSAGES,
    RESPONSES,
    STREAMS,
    framed,
    typed,
)


@pytest.mark.parametrize("path", BY_EVENT)
def test_an_event_without_a_name_is_known_by_its_type(
    gateway: Gateway, backend: FakeBackend, path: str
) -> None:
    client = gateway.post(path, stream=True)
    backend.calls[0].head()
    backend.calls[0].send(framed([("", payload) for _, payload in STREAMS[path]]))
    assert Answer(client).body == framed([("", payload) for _, payload in STREAMS[path]])
    assert Answer(client).complete


HALF = "\\ud83d"


PAIR = "\\ud83d\\ude00"


@pytest.mark.parametrize("model", ["m", "nick"])
def test_half_of_a_surrogate_pair_crosses_under_an_alias_too(
    gateway: Gateway, backend: FakeBackend, model: str
) -> None:
    """A server that streams an emoji token by token sends one half in each event."""
    client = gateway.post(RESPONSES, model=model, stream=True)
    backend.calls[0].head()
    response = f'{{"model":"real","output":"{HALF} {PAIR}","error":null}}'
    events = [
        ("response.created", f'{{"type":"response.created","response":{response}}}'.encode()),
        ("", f'{{"type":"response.output_text.delta","delta":"{HALF}"}}'.encode()),
        ("", f'{{"type":"response.completed","x":"{PAIR}{HALF}","response":{response}}}'.encode()),
    ]
    backend.calls[0].send(framed(events))
    wanted = framed(events)
    assert Answer(client).body == (wanted if model == "m" else wanted.replace(b"real", b"nick"))
    assert Answer(client).complete


SILENT = {
    "ping": (MESSAGES, typed("ping")),
    "keepalive": (RESPONSES, typed("keepalive", sequence_number=3)),
    "ping by its name": (MESSAGES, ("ping", b"{}")),
    "null": (RESPONSES, ("", b"null")),
    "in progress": (RESPONSES, typed("response.in_progress", response={"usage": None})),
    "queued": (RESPONSES, typed("response.queued", response={})),
    "created": (RESPONSES, typed("response.created", response={})),
    "no text": (RESPONSES, typed("response.output_text.delta", delta="")),
    "no text of a message": (
        MESSAGES,
        typed("content_block_delta", delta={"type": "text_delta", "text": ""}),
    ),
}


@pytest.mark.parametrize("kind", SILENT)
def test_events_without_content_reset_no_clock(kind: str) -> None:
    backend = FakeBackend(clocks=Clocks(first_byte=30, idle=10))
    gateway = Gateway(backend, settings=settings(timeouts_ping="0"))
    path, event = SILENT[kind]
    client = gateway.post(path, stream=True)
    call = backend.calls[0]
    call.head()
    call.send(framed(STREAMS[path][:1]))
    crossing = 0
    for _ in range(10):
        assert call.left is None
        call.send(framed([event]))
        crossing += kind != "null"
        gateway.clock.advance(1)
    assert call.left == "aborted" and gateway.end is End.BACKEND_TIMEOUT
    assert Answer(client).body.startswith(framed([STREAMS[path][0], *[event] * crossing]))


@pytest.mark.parametrize("kind", ["ping", "keepalive", "ping by its name", "null"])
def test_a_reply_does_not_begin_with_a_ping(kind: str) -> None:
    backend = FakeBackend(clocks=Clocks(first_byte=30, idle=10))
    gateway = Gateway(backend, settings=settings(timeouts_ping="0"))
    path, event = SILENT[kind]
    for fails in (True, False):
        client = gateway.post(path, stream=True)
        call = backend.calls[-1]
        call.head()
        for _ in range(29):
            call.send(framed([event]))
            gateway.clock.advance(1)
        assert not client.value()
        if fails:
            gateway.clock.advance(1)
            assert (Answer(client).status, Answer(client).code) == (504, "upstream_timeout")
            assert call.left == "aborted"
        else:
            call.send(framed(STREAMS[path]))
            assert Answer(client).body == framed(STREAMS[path])
            assert gateway.ended[-1].first_event == gateway.ended[-1].started + 29


@pytest.mark.parametrize("last", ["response.completed", "response.incomplete"])
def test_a_response_ends_with_either_of_two_events_and_nothing_follows(
    gateway: Gateway, backend: FakeBackend, last: str
) -> None:
    client = gateway.post(RESPONSES, stream=True)
    backend.calls[0].head()
    whole = [*STREAMS[RESPONSES][:-1], typed(last, response={"usage": None})]
    backend.calls[0].send(framed([*whole, typed("response.output_text.delta"), ("", b"[DONE]")]))
    assert Answer(client).body == framed(whole) and Answer(client).complete
    assert gateway.end is End.COMPLETE


@pytest.mark.parametrize("path", BY_EVENT)
def test_done_does_not_end_a_stream_of_typed_events(
    gateway: Gateway, backend: FakeBackend, path: str
) -> None:
    client = gateway.post(path, stream=True)
    backend.calls[0].head()
    backend.calls[0].send(framed([*STREAMS[path][:-1], ("", b"[DONE]")]))
    if backend.calls[0].left is None:
        backend.calls[0].end()
    answer = Answer(client)
    assert answer.closed and not answer.complete and b"[DONE]" not in answer.body
    assert gateway.end is not End.COMPLETE


FAILURES = {
    "response.failed": (
        RESPONSES,
        typed(
            "response.failed",
            response={"model": "real", "error": {"code": "server_error", "message": "It broke."}},
        ),
    ),
    "error of a response": (
        RESPONSES,
        typed("error", code="server_error", message="It broke.", param=None, sequence_number=3),
    ),
    "error of a message": (
        MESSAGES,
        typed("error", error={"type": "overloaded_error", "message": "It broke."}),
    ),
    "llama.cpp, response": (
        RESPONSES,
        ("error", b'{"error":{"code":500,"message":"It broke.","type":"server_error"}}'),
    ),
    "unnamed": (MESSAGES, ("", b'{"error":{"message":"It broke."}}')),
    "completion": (COMPLETIONS, ("", b'{"error":{"message":"It broke."}}')),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failure_after_the_first_event_is_an_error_event_and_ends_the_stream(
    gateway: Gateway, backend: FakeBackend, kind: str
) -> None:
    path, failure = FAILURES[kind]
    client = gateway.post(path, stream=True)
    backend.calls[0].head()
    backend.calls[0].send(framed([STREAMS[path][0], failure, *STREAMS[path][1:]]))
    answer = Answer(client)
    assert answer.body.startswith(framed(STREAMS[path][:1]))
    assert json.loads(answer.payloads[-1])["error"]["message"] == "It broke."
    assert answer.closed and not answer.complete
    assert backend.calls[0].left == "aborted" and gateway.end is End.BACKEND_ERROR


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failure_in_place_of_the_first_event_is_an_http_error(
    gateway: Gateway, backend: FakeBackend, kind: str
) -> None:
    path, failure = FAILURES[kind]
    client = gateway.post(path, stream=True)
    backend.calls[0].head()
    backend.calls[0].send(framed([failure]))
    answer = Answer(client)
    status = 529 if kind == "error of a message" else 502
    assert (answer.status, answer.json["error"]["message"]) == (status, "It broke.")
    assert answer.complete and answer.header("x-should-retry") == "false"
    assert gateway.end is End.BACKEND_ERROR


@pytest.mark.parametrize(
    "event",
    [
        typed("response.failed"),
        typed("response.failed", response=None),
        typed("response.failed", response={"error": None}),
        typed("error"),
        typed("error", error="odd"),
    ],
    ids=lambda event: event[1].decode(),
)
def test_a_failure_without_a_message_is_a_failure(
    gateway: Gateway, backend: FakeBackend, event: tuple[str, bytes]
) -> None:
    client = gateway.post(RESPONSES, stream=True)
    backend.calls[0].head()
    backend.calls[0].send(framed([event]))
    answer = Answer(client)
    assert (answer.status, answer.code) == (502, "upstream_error")
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("path", BY_EVENT)
@pytest.mark.parametrize("payload", [{"type": "server_error", "message": "It broke."}, {}])
def test_an_event_named_error_is_a_failure_whatever_its_type_is(
    gateway: Gateway, backend: FakeBackend, path: str, payload: dict[str, str]
) -> None:
    client = gateway.post(path, stream=True)
    backend.calls[0].head()
    backend.calls[0].send(framed([*STREAMS[path][:2], ("error", json.dumps(payload).encode())]))
    answer = Answer(client)
    assert payload.get("message", "") in json.loads(answer.payloads[-1])["error"]["message"]
    assert answer.closed and not answer.complete and gateway.end is End.BACKEND_ERROR


def test_an_error_that_is_null_is_not_a_failure(gateway: Gateway, backend: FakeBackend) -> None:
    client = gateway.post(RESPONSES, stream=True)
    backend.calls[0].head()
    backend.calls[0].send(framed([typed("response.queued", error=None), *STREAMS[RESPONSES]]))
    assert Answer(client).complete


@pytest.mark.parametrize("payload", [b"not json", b'"text"', b"{", b"[1]", b'{"type":5}', b"\xff"])
def test_an_event_that_cannot_be_read_ends_the_stream(
    gateway: Gateway, backend: FakeBackend, payload: bytes
) -> None:
    client = gateway.post(MESSAGES, stream=True)
    backend.calls[0].head()
    backend.calls[0].send(framed([STREAMS[MESSAGES][0], ("ping", payload)]))
    answer = Answer(client)
    assert error_code(answer.payloads[-1]) == "upstream_bad_response"
    assert answer.closed and not answer.complete


def test_a_whole_reply_where_a_stream_was_asked_for_is_a_502(
    gateway: Gateway, backend: FakeBackend
) -> None:
    client = gateway.post(RESPONSES, stream=True)
    backend.calls[0].whole(b'{"object":"response"}')
    assert (Answer(client).status, Answer(client).code) == (502, "upstream_bad_response")


def test_a_response_that_failed_is_a_response(gateway: Gateway, backend: FakeBackend) -> None:
    client = gateway.post(RESPONSES)
    reply = b'{"object":"response","status":"failed","error":{"code":"x","message":"y"}}'
    backend.calls[0].whole(reply)
    assert (Answer(client).status, Answer(client).body) == (200, reply)


def test_rerank_may_answer_with_a_list(gateway: Gateway, backend: FakeBackend) -> None:
    client = gateway.post("/v1/rerank", query="q", texts=["a"], model="nick")
    backend.calls[0].whole(b' [{"index":0,"score":1.0}]')
    assert Answer(client).body == b' [{"index":0,"score":1.0}]'
