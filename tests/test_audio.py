"""Speech and transcriptions that are streamed: what crosses, and when they are complete."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.web.http import PotentialDataLoss

from gatewayd.exchange import End
from tests.memory import Answer, FakeBackend, Gateway, settings
from tests.replies import SPEECH, framed, typed
from tests.uploads import form, upload

DELTA = typed("transcript.text.delta", delta="a")


LAST = typed("transcript.text.done", text="a", usage={"input_tokens": 14, "output_tokens": 2})


PIECE = ("", b'{"object":"transcription.chunk","model":"real","choices":[{"delta":{}}]}')


DONE = ("", b"[DONE]")


def transcription(gateway: Gateway, backend: FakeBackend, stream: bytes = b"true") -> Any:
    client = upload(gateway, form(("model", b"nick"), ("stream", stream), ("file", b"x")))
    return client, backend.calls[-1]


@pytest.mark.parametrize("stream", [b"true", b"True", b"1", b"on"])
def test_a_transcription_with_stream_is_one_in_the_log_and_at_the_backend(
    gateway: Gateway, backend: FakeBackend, stream: bytes
) -> None:
    client, call = transcription(gateway, backend, stream)
    assert call.call.stream and gateway.site.state.active
    call.head()
    call.send(framed([DELTA, LAST]))
    assert Answer(client).body == framed([DELTA, LAST]) and Answer(client).complete
    (exchange,) = gateway.ended
    assert exchange.stream and exchange.events == 2 and exchange.end is End.COMPLETE
    assert exchange.usage.completion_tokens == 2


def test_a_transcription_without_stream_is_not_a_stream(
    gateway: Gateway, backend: FakeBackend
) -> None:
    _, call = transcription(gateway, backend, b"false")
    assert not call.call.stream
    call.whole(b'{"text":"a"}')
    assert not gateway.ended[0].stream


@pytest.mark.parametrize(
    "events",
    [[DELTA, LAST], [PIECE, PIECE, DONE], [("", b"hello"), DONE], [("", b'{"text":"a"}')]],
    ids=["typed", "chunks", "text", "other JSON"],
)
def test_a_streamed_transcription_that_is_whole_crosses(
    gateway: Gateway, backend: FakeBackend, events: list[tuple[str, bytes]]
) -> None:
    client, call = transcription(gateway, backend)
    call.head()
    call.send(framed(events))
    if call.left is None:
        call.end()
    wanted = framed(events).replace(b'"model":"real"', b'"model":"nick"')
    assert Answer(client).body == wanted and Answer(client).complete
    assert gateway.end is End.COMPLETE


@pytest.mark.parametrize("how", [None, PotentialDataLoss()], ids=["end", "eof"])
@pytest.mark.parametrize(
    ("events", "by_framing"),
    [
        ([DELTA], False),
        ([DELTA, DONE], False),
        ([PIECE], False),
        ([("", b"hello")], True),
    ],
    ids=["typed", "typed, only DONE", "chunks", "text"],
)
def test_a_streamed_transcription_that_is_cut_is_an_error(
    gateway: Gateway,
    backend: FakeBackend,
    events: list[tuple[str, bytes]],
    by_framing: bool,
    how: Exception | None,
) -> None:
    client, call = transcription(gateway, backend)
    call.head()
    call.send(framed(events))
    call.end(how)
    if by_framing and how is None:
        assert gateway.end is End.COMPLETE
    else:
        assert b'"error"' in Answer(client).payloads[-1] and not Answer(client).complete
        assert gateway.end is End.BACKEND_TRUNCATED


def test_an_error_in_a_streamed_transcription_is_a_failure(
    gateway: Gateway, backend: FakeBackend
) -> None:
    client, call = transcription(gateway, backend)
    call.head()
    call.send(framed([PIECE, ("", b'{"error":{"message":"It broke."}}'), DONE]))
    assert json.loads(Answer(client).payloads[-1])["error"]["message"] == "It broke."
    assert not Answer(client).complete and gateway.end is End.BACKEND_ERROR


def test_a_backend_may_answer_a_streamed_transcription_with_a_document(
    backend: FakeBackend,
) -> None:
    gateway = Gateway(backend, settings=settings(timeouts_ping="1"))
    client, call = transcription(gateway, backend)
    gateway.clock.pump([1.0] * 5)
    assert client.value() == b""  # a ping would have meant that events will come
    call.whole(b'{"text":"a"}')
    assert Answer(client).body == b'{"text":"a"}'
    assert Answer(client).header("content-type") == "application/json"


# -- speech ----------------------------------------------------------------------------------------


SPOKEN = [
    typed("speech.audio.delta", audio="AAAA"),
    typed("speech.audio.done", usage={"input_tokens": 3, "output_tokens": 9}),
]


@pytest.mark.parametrize("more", [{}, {"stream": True}])
def test_speech_as_events_ends_with_its_last_event(
    gateway: Gateway, backend: FakeBackend, more: dict[str, Any]
) -> None:
    client = gateway.post(SPEECH, model="nick", input="hi", stream_format="sse", **more)
    (call,) = backend.calls
    assert call.call.stream
    call.head()
    call.send(framed(SPOKEN))
    answer = Answer(client)
    assert answer.body == framed(SPOKEN) and answer.complete
    (exchange,) = gateway.ended
    assert exchange.end is End.COMPLETE and exchange.usage.completion_tokens == 9


def test_speech_as_events_that_ends_without_its_last_event_is_cut(
    gateway: Gateway, backend: FakeBackend
) -> None:
    client = gateway.post(SPEECH, input="hi", stream_format="sse")
    backend.calls[0].head()
    backend.calls[0].send(framed(SPOKEN[:1]))
    backend.calls[0].end()
    answer = Answer(client)
    assert b'"error"' in answer.payloads[-1] and not answer.complete and answer.closed
    assert gateway.end is End.BACKEND_TRUNCATED


def test_a_server_without_events_may_reply_to_a_request_for_them_with_sound(
    gateway: Gateway, backend: FakeBackend
) -> None:
    client = gateway.post(SPEECH, input="hi", stream_format="sse")
    backend.calls[0].whole(b"\x00\x01", media_type="audio/mpeg")
    assert Answer(client).body == b"\x00\x01" and Answer(client).complete


@pytest.mark.parametrize("body", [{"stream": True}, {"stream_format": "audio"}, {}])
def test_speech_without_events_is_no_stream(
    gateway: Gateway, backend: FakeBackend, body: dict[str, Any]
) -> None:
    gateway.post(SPEECH, input="hi", **body)
    assert not backend.calls[0].call.stream


def test_speech_refuses_a_stream_that_servers_read_differently(
    gateway: Gateway, backend: FakeBackend
) -> None:
    assert Answer(gateway.post(SPEECH, input="hi", stream="yes")).code == "invalid_value"
