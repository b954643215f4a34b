"""The API besides chat: what crosses, what is changed, and how each reply ends; in memory."""

from __future__ import annotations

import hashlib
import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.web.http import PotentialDataLoss

from gatewayd.backend.interface import Clocks
from gatewayd.exchange import End
from gatewayd.routing.health import State
from gatewayd.wire import errors
from gatewayd.wire.completion import MAX_CHOICES
from gatewayd.wire.others import JSON_PATHS, UPLOAD_PATHS, UploadCall
from tests.memory import EVENTS, Answer, ClientTransport, FakeBackend, Gateway, settings

JSON = {"Content-Type": "application/json", "X-Request-ID": "req-1"}
ALIASED = settings(backend_fake_url="http://127.0.0.1:1", backend_fake_models="*, nick = real")
DEPTH = 64

RESPONSES, MESSAGES, COMPLETIONS = "/v1/responses", "/v1/messages", "/v1/completions"
SPEECH, TRANSCRIPTIONS = "/v1/audio/speech", "/v1/audio/transcriptions"


def framed(events: list[tuple[str, bytes]]) -> bytes:
    return b"".join(
        (f"event: {name}\n".encode() if name else b"") + b"data: " + payload + b"\n\n"
        for name, payload in events
    )


def typed(name: str, **more: Any) -> tuple[str, bytes]:
    return name, json.dumps({"type": name, **more}).encode()


def text(piece: str, finish: str | None = None, index: int = 0) -> tuple[str, bytes]:
    choice = {"index": index, "text": piece, "finish_reason": finish}
    payload = {"id": "cmpl-1", "object": "text_completion", "model": "real", "choices": [choice]}
    return "", json.dumps(payload).encode()


#: A whole stream of each kind.
STREAMS = {
    RESPONSES: [
        typed("response.created", response={"model": "real", "usage": None, "error": None}),
        typed("response.output_text.delta", delta="a", sequence_number=1),
        typed("response.completed", response={"model": "real", "usage": {"input_tokens": 3}}),
    ],
    MESSAGES: [
        typed("message_start", message={"model": "real", "usage": {"input_tokens": 3}}),
        typed("ping"),
        typed("content_block_delta", delta={"type": "text_delta", "text": "a"}),
        typed("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 1}),
        typed("message_stop"),
    ],
    COMPLETIONS: [text("a"), text("b"), text("", "stop"), ("", b"[DONE]")],
}
BY_EVENT = (RESPONSES, MESSAGES)


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def gateway(backend: FakeBackend) -> Gateway:
    return Gateway(backend, settings=ALIASED)


def the_end(gateway: Gateway) -> End | None:
    (exchange,) = gateway.ended
    return exchange.end


# -- what crosses --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [path for path in JSON_PATHS if path != SPEECH])
def test_a_request_and_its_reply_keep_their_bytes(
    gateway: Gateway, backend: FakeBackend, path: str
) -> None:
    body = b'{ "model":"m" ,"input":["\\u00e9", 1.0], "prompt":"x","x":12345678901234567890}'
    client = gateway.request("POST", path, body, JSON)
    (call,) = backend.calls
    assert (call.call.path, call.body, call.call.stream) == (path, body, False)
    assert call.call.content_type == b"application/json" and call.request_id == "req-1"
    reply = b'{"id" : "theirs","model":"m", "choices":[{"index":0}],"data":[1.0, 1e0],\n "x":{}}'
    call.whole(reply)
    assert (Answer(client).status, Answer(client).body) == (200, reply)
    assert call.left in (None, "released") and the_end(gateway) is End.COMPLETE
    assert gateway.ended[0].route == path and gateway.ended[0].model == "m"


@pytest.mark.parametrize("path", JSON_PATHS)
def test_an_alias_changes_the_model_of_a_request_and_nothing_else(
    gateway: Gateway, backend: FakeBackend, path: str
) -> None:
    body = b'{"input":{"model":"nick"}, "model" :  "nick","y":1.0 }'
    gateway.request("POST", path, body, JSON)
    assert backend.calls[0].body == b'{"input":{"model":"nick"}, "model" :  "real","y":1.0 }'


@pytest.mark.parametrize("path", [path for path in JSON_PATHS if path != SPEECH])
def test_the_reply_to_an_alias_carries_the_name_that_was_asked_for(
    gateway: Gateway, backend: FakeBackend, path: str
) -> None:
    client = gateway.post(path, model="nick")
    reply = b'{"x":{"model":"real"},"model":"real" , "choices":[{"index":0,"text":"real"}],"y":1.0}'
    backend.calls[0].whole(reply)
    assert Answer(client).body == reply.replace(b'"model":"real" ,', b'"model":"nick" ,')


@pytest.mark.parametrize("path", STREAMS)
@pytest.mark.parametrize("model", ["m", "nick"])
def test_a_stream_keeps_its_event_lines_and_payloads_but_for_the_aliased_name(
    gateway: Gateway, backend: FakeBackend, path: str, model: str
) -> None:
    client = gateway.post(path, model=model, stream=True)
    (call,) = backend.calls
    assert call.call.stream
    call.head()
    stream = framed(STREAMS[path])
    call.send(stream)
    answer = Answer(client)
    assert answer.status == 200 and answer.header("content-type") == EVENTS
    wanted = stream if model == "m" else stream.replace(b'"model": "real"', b'"model": "nick"')
    assert answer.body == wanted and answer.complete
    assert stream.count(b'"model": "real"') > 0  # or nothing was proved
    assert call.left == "released" and the_end(gateway) is End.COMPLETE


@pytest.mark.parametrize("path", BY_EVENT)
def test_an_event_says_what_it_is_by_its_type_where_it_has_no_name(
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
    said = f'{{"model":"real","output":"{HALF} {PAIR}","error":null}}'
    events = [
        ("response.created", f'{{"type":"response.created","response":{said}}}'.encode()),
        ("", f'{{"type":"response.output_text.delta","delta":"{HALF}"}}'.encode()),
        ("", f'{{"type":"response.completed","x":"{PAIR}{HALF}","response":{said}}}'.encode()),
    ]
    backend.calls[0].send(framed(events))
    wanted = framed(events)
    assert Answer(client).body == (wanted if model == "m" else wanted.replace(b"real", b"nick"))
    assert Answer(client).complete


# -- what is content -----------------------------------------------------------------------------

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
def test_events_that_show_and_count_nothing_hold_off_no_clock(kind: str) -> None:
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
    assert call.left == "aborted" and the_end(gateway) is End.BACKEND_TIMEOUT
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


# -- how streams end -----------------------------------------------------------------------------


@pytest.mark.parametrize("last", ["response.completed", "response.incomplete"])
def test_a_response_ends_with_either_of_two_events_and_nothing_follows(
    gateway: Gateway, backend: FakeBackend, last: str
) -> None:
    client = gateway.post(RESPONSES, stream=True)
    backend.calls[0].head()
    whole = [*STREAMS[RESPONSES][:-1], typed(last, response={"usage": None})]
    backend.calls[0].send(framed([*whole, typed("response.output_text.delta"), ("", b"[DONE]")]))
    assert Answer(client).body == framed(whole) and Answer(client).complete
    assert the_end(gateway) is End.COMPLETE


@pytest.mark.parametrize("path", STREAMS)
@pytest.mark.parametrize("how", [None, PotentialDataLoss()], ids=["end", "eof"])
def test_a_stream_that_ends_before_its_last_event_is_no_success(
    gateway: Gateway, backend: FakeBackend, path: str, how: Exception | None
) -> None:
    client = gateway.post(path, stream=True)
    backend.calls[0].head()
    backend.calls[0].send(framed(STREAMS[path][:-2]))
    backend.calls[0].end(how)
    answer = Answer(client)
    assert answer.body.startswith(framed(STREAMS[path][:-2])) and b'"error"' in answer.payloads[-1]
    assert answer.closed and not answer.complete and b"[DONE]" not in answer.body
    assert the_end(gateway) is End.BACKEND_TRUNCATED


@pytest.mark.parametrize("path", BY_EVENT)
def test_done_is_no_end_where_it_is_not_spoken(
    gateway: Gateway, backend: FakeBackend, path: str
) -> None:
    client = gateway.post(path, stream=True)
    backend.calls[0].head()
    backend.calls[0].send(framed([*STREAMS[path][:-1], ("", b"[DONE]")]))
    if backend.calls[0].left is None:
        backend.calls[0].end()
    answer = Answer(client)
    assert answer.closed and not answer.complete and b"[DONE]" not in answer.body
    assert the_end(gateway) is not End.COMPLETE


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
def test_a_failure_on_the_way_is_told_and_ends_the_stream(
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
    assert backend.calls[0].left == "aborted" and the_end(gateway) is End.BACKEND_ERROR


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failure_in_place_of_the_first_event_is_an_http_error(
    gateway: Gateway, backend: FakeBackend, kind: str
) -> None:
    path, failure = FAILURES[kind]
    client = gateway.post(path, stream=True)
    backend.calls[0].head()
    backend.calls[0].send(framed([failure]))
    answer = Answer(client)
    assert (answer.status, answer.json["error"]["message"]) == (502, "It broke.")
    assert answer.complete and answer.header("x-should-retry") == "false"
    assert the_end(gateway) is End.BACKEND_ERROR


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
def test_a_failure_that_does_not_say_which_is_still_one(
    gateway: Gateway, backend: FakeBackend, event: tuple[str, bytes]
) -> None:
    client = gateway.post(RESPONSES, stream=True)
    backend.calls[0].head()
    backend.calls[0].send(framed([event]))
    answer = Answer(client)
    assert (answer.status, answer.code) == (502, "upstream_error")
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}


def test_an_error_that_is_null_is_none(gateway: Gateway, backend: FakeBackend) -> None:
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
    assert json.loads(answer.payloads[-1])["error"]["code"] == "upstream_bad_response"
    assert answer.closed and not answer.complete


@given(
    path=st.sampled_from(sorted(STREAMS)),
    data=st.data(),
    how=st.sampled_from([None, PotentialDataLoss(), errors.Truncated("Cut.")]),
)
def test_wherever_a_stream_is_cut_the_client_gets_all_or_an_error(
    path: str, data: st.DataObject, how: Exception | None
) -> None:
    stream = framed(STREAMS[path])
    cut = data.draw(st.integers(0, len(stream)))
    segments = data.draw(st.lists(st.integers(0, cut), max_size=6))
    backend = FakeBackend()
    gateway = Gateway(backend)
    client = gateway.post(path, stream=True)
    (call,) = backend.calls
    call.head()
    for start, stop in itertools.pairwise(sorted({0, cut, *segments})):
        if call.left is None:
            call.send(stream[start:stop])
    if call.left is None:
        call.end(how)
    answer = Answer(client)
    came = stream[:cut].count(b"\n\n")
    if the_end(gateway) is End.COMPLETE:
        assert answer.body == stream and answer.complete
    elif answer.status == 200:
        error = b"data: " + answer.payloads[-1] + b"\n\n"
        assert error.startswith(b'data: {"error"') and not answer.complete and answer.closed
        relayed = answer.body.removesuffix(error).removesuffix(b"event: error\n")
        assert stream.startswith(relayed) and came < len(STREAMS[path])
        assert came <= relayed.count(b"\n\n") <= came + 1
    else:
        assert answer.status == 502 and answer.json["error"]["message"]
        assert not came


def test_a_whole_reply_where_a_stream_was_asked_for_is_a_502(
    gateway: Gateway, backend: FakeBackend
) -> None:
    client = gateway.post(RESPONSES, stream=True)
    backend.calls[0].whole(b'{"object":"response"}')
    assert (Answer(client).status, Answer(client).code) == (502, "upstream_bad_response")


# -- whole replies -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [path for path in JSON_PATHS if path != SPEECH])
@pytest.mark.parametrize(
    "reply", [b'{"error":{"message":"no","code":500}}', b'{"type":"error","error":{"message":""}}']
)
def test_an_error_under_a_200_is_an_error(
    gateway: Gateway, backend: FakeBackend, path: str, reply: bytes
) -> None:
    client = gateway.post(path)
    backend.calls[0].whole(reply)
    assert (Answer(client).status, Answer(client).body) == (502, reply)
    assert the_end(gateway) is End.BACKEND_ERROR


def test_a_response_that_failed_is_a_response(gateway: Gateway, backend: FakeBackend) -> None:
    client = gateway.post(RESPONSES)
    reply = b'{"object":"response","status":"failed","error":{"code":"x","message":"y"}}'
    backend.calls[0].whole(reply)
    assert (Answer(client).status, Answer(client).body) == (200, reply)


@pytest.mark.parametrize("path", [path for path in JSON_PATHS if path != SPEECH])
@pytest.mark.parametrize(
    "reply", [b"", b"{", b"null", b'"x"', b'{"a":NaN}', b'{"a":"\xff"}', b"[1", b"[" * 100]
)
def test_a_reply_that_cannot_be_read_is_a_502(
    gateway: Gateway, backend: FakeBackend, path: str, reply: bytes
) -> None:
    client = gateway.post(path)
    backend.calls[0].whole(reply)
    assert (Answer(client).status, Answer(client).code) == (502, "upstream_bad_response")


@pytest.mark.parametrize("path", [path for path in JSON_PATHS if path != SPEECH])
def test_a_reply_that_breaks_off_is_a_502(
    gateway: Gateway, backend: FakeBackend, path: str
) -> None:
    client = gateway.post(path)
    backend.calls[0].head(media_type="application/json")
    backend.calls[0].send(b'{"data":[]')
    backend.calls[0].end(errors.Truncated("It broke off."))
    assert (Answer(client).status, Answer(client).code) == (502, "upstream_reset")


def test_the_dialect_of_rerank_that_answers_with_a_list_is_let_pass(
    gateway: Gateway, backend: FakeBackend
) -> None:
    client = gateway.post("/v1/rerank", query="q", texts=["a"], model="nick")
    backend.calls[0].whole(b' [{"index":0,"score":1.0}]')
    assert Answer(client).body == b' [{"index":0,"score":1.0}]'


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank"])
def test_where_there_are_no_streams_none_is_asked_for(
    gateway: Gateway, backend: FakeBackend, path: str
) -> None:
    client = gateway.post(path, stream=True)
    assert not backend.calls[0].call.stream and b'"stream": true' in backend.calls[0].body
    backend.calls[0].whole(b'{"data":[]}')
    assert Answer(client).body == b'{"data":[]}' and not gateway.ended[0].stream


@pytest.mark.parametrize("status", [400, 404, 405, 422, 501])
@pytest.mark.parametrize("path", JSON_PATHS)
def test_an_endpoint_that_the_backend_does_not_have_answers_as_the_backend_does(
    gateway: Gateway, backend: FakeBackend, path: str, status: int
) -> None:
    reply = b'{"error" : {"message":"not here","code":%d}}' % status
    for _ in range(5):
        client = gateway.post(path)
        backend.calls[-1].whole(reply, status)
        assert (Answer(client).status, Answer(client).body) == (status, reply)
    assert gateway.targets[0].health.state is State.HEALTHY  # it has others


@pytest.mark.parametrize("path", [*JSON_PATHS, *UPLOAD_PATHS])
def test_the_echo_has_none_of_them_and_says_why(path: str) -> None:
    gateway = Gateway()
    if path in JSON_PATHS:
        client = gateway.post(path, model="echo")
    else:
        client = upload(gateway, form(("model", b"echo")), path=path)
    answer = Answer(client)
    assert (answer.status, answer.code) == (404, "unknown_url")
    assert "No backend is configured" in answer.json["error"]["message"]
    assert Answer(gateway.request("GET", path)).status == 405


@pytest.mark.parametrize("path", JSON_PATHS)
@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"[]", "invalid_json"),
        (b'{"model":"a","model":"b"}', "invalid_json"),
        (b'{"model":5}', "invalid_value"),
        (b'{"stream":"yes"}', "invalid_value"),
    ],
)
def test_a_request_that_two_could_read_differently_is_refused(
    gateway: Gateway, backend: FakeBackend, path: str, body: bytes, code: str
) -> None:
    answer = Answer(gateway.request("POST", path, body, JSON))
    assert (answer.status, answer.code) == (400, code) and not backend.calls


# -- completions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "choices"),
    [
        ({"prompt": "a"}, 1),
        ({"prompt": "a", "n": 3}, 3),
        ({"prompt": ["a", "b"]}, 2),
        ({"prompt": ["a", "b"], "n": 2}, 4),
        ({"prompt": [1, 2, 3]}, 1),  # one prompt, as tokens
        ({"prompt": [[1, 2], [3]]}, 2),
        ({"prompt": []}, 1),
        ({"n": 0}, 1),
        ({"n": "3"}, 1),
    ],
)
@pytest.mark.parametrize("how", ["done", "framed", "eof"])
def test_a_completion_is_whole_when_each_of_its_choices_is(
    gateway: Gateway, backend: FakeBackend, asked: dict[str, Any], choices: int, how: str
) -> None:
    """Those that were begun; also all that were asked for, where only the connection ended."""
    for begun in range(1, choices + 1):
        for finished in range(begun + 1):
            client = gateway.post(COMPLETIONS, stream=True, **asked)
            call = backend.calls[-1]
            call.head()
            call.send(framed([text("a", None, index) for index in range(begun)]))
            call.send(framed([text("", "stop", index) for index in range(finished)]))
            if how == "done":
                call.send(b"data: [DONE]\n\n")
            if call.left is None:
                call.end(PotentialDataLoss() if how == "eof" else None)
            whole = finished == begun and (how != "eof" or begun == choices)
            assert Answer(client).complete is whole
            assert (b"[DONE]" in Answer(client).body) is whole


def test_a_whole_completion_becomes_the_one_chunk_of_a_stream(
    gateway: Gateway, backend: FakeBackend
) -> None:
    client = gateway.post(COMPLETIONS, stream=True)
    body = b'{"object":"text_completion","choices":[{"index":0,"text":"a","finish_reason":"stop"}]}'
    backend.calls[0].whole(body)
    assert Answer(client).payloads == [body, b"[DONE]"]


def test_a_stream_of_several_prompts_has_null_between_them_at_llama_cpp(
    gateway: Gateway, backend: FakeBackend
) -> None:
    client = gateway.post(COMPLETIONS, stream=True, prompt=["a", "b"])
    call = backend.calls[0]
    call.head()
    call.event(b"null")
    assert client.value() == b""  # nothing has begun
    first = [text("a"), text("", "length")]
    second = [text("b", None, 1), text("", "length", 1)]
    call.send(framed([*first, ("", b"null"), *second, ("", b"[DONE]")]))
    assert Answer(client).body == framed([*first, *second, ("", b"[DONE]")])
    assert Answer(client).complete and the_end(gateway) is End.COMPLETE


def test_more_choices_than_can_be_kept_track_of_are_refused(
    gateway: Gateway, backend: FakeBackend
) -> None:
    prompts = ["x"] * 1000
    for n, good in ((MAX_CHOICES // 1000, True), (1024, False)):
        client = gateway.post(COMPLETIONS, stream=True, n=n, prompt=prompts)
        assert bool(client.value()) is not good
    assert (Answer(client).status, Answer(client).json["error"]["param"]) == (400, "prompt")
    gateway.post(COMPLETIONS, n=1024, prompt=prompts)
    assert len(backend.calls) == 2  # not a stream: the backend's to judge


# -- bytes out -----------------------------------------------------------------------------------

SOUND = bytes(range(256)) * 20 + b"data: [DONE]\n\n"


def test_speech_is_passed_on_as_it_comes(gateway: Gateway, backend: FakeBackend) -> None:
    client = gateway.post(SPEECH, model="nick", input="hi")
    (call,) = backend.calls
    call.head(media_type="audio/mpeg", headers=((b"retry-after", b"1"),))
    assert client.value() == b""  # commit late
    for n in range(0, len(SOUND), 1000):
        call.send(SOUND[n : n + 1000])
        assert Answer(client).body == SOUND[: n + 1000] and not Answer(client).complete
    call.end()
    answer = Answer(client)
    assert answer.status == 200 and answer.header("content-type") == "audio/mpeg"
    assert answer.body == SOUND and answer.complete and not answer.closed
    assert the_end(gateway) is End.COMPLETE


@pytest.mark.parametrize("how", [PotentialDataLoss(), errors.Truncated("x")], ids=["eof", "cut"])
@pytest.mark.parametrize("sent", [b"", SOUND], ids=["nothing", "some"])
def test_speech_is_whole_only_when_its_framing_says_so(
    gateway: Gateway, backend: FakeBackend, how: Exception, sent: bytes
) -> None:
    client = gateway.post(SPEECH, input="hi")
    backend.calls[0].head(media_type="audio/mpeg")
    if sent:
        backend.calls[0].send(sent)
    backend.calls[0].end(how)
    answer = Answer(client)
    if sent:
        assert answer.body == sent  # nothing of ours among the sound
        assert answer.closed and not answer.complete
    else:
        assert (answer.status, answer.code) == (502, "upstream_reset")
    assert the_end(gateway) is End.BACKEND_TRUNCATED


def test_speech_without_a_sound_is_whole_and_had_no_first_byte(
    gateway: Gateway, backend: FakeBackend
) -> None:
    client = gateway.post(SPEECH, input="")
    backend.calls[0].head(media_type="audio/mpeg")
    backend.calls[0].end()
    answer = Answer(client)
    assert (answer.status, answer.body, answer.complete) == (200, b"", True)
    assert gateway.ended[0].first_event is None


def test_speech_that_stalls_is_cut(backend: FakeBackend) -> None:
    gateway = Gateway(backend, settings=settings(timeouts_ping="1"))
    client = gateway.post(SPEECH, input="hi", stream=True)
    gateway.clock.advance(5)
    assert client.value() == b""  # no comments before sound
    backend.calls[0].head(media_type="audio/mpeg")
    backend.calls[0].send(SOUND)
    gateway.clock.pump([1] * 119)
    assert Answer(client).body == SOUND and not Answer(client).closed  # nor in it
    gateway.clock.advance(1)
    assert Answer(client).body == SOUND and Answer(client).closed and not Answer(client).complete
    assert the_end(gateway) is End.BACKEND_TIMEOUT


def test_a_client_that_leaves_stops_the_speech(gateway: Gateway, backend: FakeBackend) -> None:
    client = gateway.post(SPEECH, input="hi")
    backend.calls[0].head(media_type="audio/mpeg")
    backend.calls[0].send(SOUND)
    client.protocol.outgoing.pauseProducing()
    assert backend.calls[0].paused
    client.leave()
    assert backend.calls[0].left == "aborted" and the_end(gateway) is End.CLIENT_GONE


def test_an_error_in_place_of_speech_is_an_error(gateway: Gateway, backend: FakeBackend) -> None:
    client = gateway.post(SPEECH, input="hi")
    backend.calls[0].whole(b'{"error":{"message":"no voice"}}', 400)
    assert Answer(client).status == 400 and Answer(client).json["error"]["message"] == "no voice"


# -- uploads -------------------------------------------------------------------------------------

BOUNDARY = "----x7MA4YWxk"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


def form(*fields: tuple[str, bytes], boundary: str = BOUNDARY) -> bytes:
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode()
        + value
        + b"\r\n"
        for name, value in fields
    ]
    return b"".join(parts) + f"--{boundary}--\r\n".encode()


def sound(content: bytes = SOUND) -> bytes:
    """A part with a file, as it stands before the last boundary."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n'
    return head.encode() + b"Content-Type: audio/wav\r\n\r\n" + content + b"\r\n"


def upload(
    gateway: Gateway, body: bytes, kind: str = FORM, path: str = TRANSCRIPTIONS
) -> ClientTransport:
    return gateway.request("POST", path, body, {"Content-Type": kind, "X-Request-ID": "req-1"})


@pytest.mark.parametrize("path", UPLOAD_PATHS)
@pytest.mark.parametrize("first", [True, False])
def test_an_upload_goes_where_its_model_is_with_its_bytes_unchanged(path: str, first: bool) -> None:
    a, b = FakeBackend("a"), FakeBackend("b")
    said = {f"backend_{name}_url": "http://127.0.0.1:1" for name in ("a", "b")}
    gateway = Gateway(
        a, b, settings=settings(**said, backend_a_models="x", backend_b_models="whisper-*")
    )
    end = f"--{BOUNDARY}--\r\n".encode()
    fields = form(("model", b"whisper-1"), ("language", "d\u00e9".encode())).removesuffix(end)
    body = (fields + sound() if first else sound() + fields) + end
    client = upload(gateway, body, path=path)
    (call,) = b.calls
    assert not a.calls
    assert (call.call.path, call.body) == (path, body)
    assert call.call.content_type == FORM.encode()
    call.whole(b'{"text" : "hello"}')
    assert Answer(client).body == b'{"text" : "hello"}'
    assert Answer(client).header("content-type") == "application/json"
    assert gateway.ended[0].model == "whisper-1" and gateway.ended[0].route == path


@pytest.mark.parametrize("model", [b"nick", b"m"])
def test_an_upload_for_an_alias_goes_out_under_the_real_name(
    gateway: Gateway, backend: FakeBackend, model: bytes
) -> None:
    client = upload(gateway, form(("file", b"nick"), ("model", model)))
    wanted = b"real" if model == b"nick" else model
    assert backend.calls[0].body == form(("file", b"nick"), ("model", wanted))
    backend.calls[0].whole(b"hello", media_type="text/plain")
    assert Answer(client).body == b"hello" and gateway.ended[0].model == model.decode()


def test_the_reply_to_an_upload_may_be_of_any_kind(gateway: Gateway, backend: FakeBackend) -> None:
    client = upload(gateway, form(("file", b"x")))
    backend.calls[0].whole(b"WEBVTT\n", media_type="text/vtt")
    assert Answer(client).body == b"WEBVTT\n"
    assert Answer(client).header("content-type") == "text/vtt"


@pytest.mark.parametrize("before", [b"", b"preamble\r\n"])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_the_form_of_an_alias_changes_in_its_model_alone(before: bytes, at: int) -> None:
    fields = [("prompt", b"nick"), ("file", b"nick\r\n\r\nnick" + SOUND)]
    fields.insert(at, ("model", b"nick"))
    body = before + form(*fields) + b"epilogue"
    call = UploadCall.parse(TRANSCRIPTIONS, body, FORM.encode())
    fields[at] = ("model", "r\u00e9al".encode())
    assert call.renamed("r\u00e9al").body == before + form(*fields) + b"epilogue"


@given(
    st.lists(st.tuples(st.sampled_from(["prompt", "file", "x"]), st.binary(max_size=60))),
    st.integers(0, 5),
)
def test_whatever_else_the_form_holds(fields: list[tuple[str, bytes]], at: int) -> None:
    asked, wanted = list(fields), list(fields)
    asked.insert(at, ("model", b"nick"))
    wanted.insert(at, ("model", b"real"))
    call = UploadCall.parse(TRANSCRIPTIONS, form(*asked), FORM.encode())
    assert call.model == "nick" and call.renamed("real").body == form(*wanted)


def test_a_form_that_two_could_read_differently_is_refused(
    gateway: Gateway, backend: FakeBackend
) -> None:
    body = form(("model", b"a")).replace(b'name="model"', b'name="x"; name*=UTF-8\'\'model')
    answer = Answer(upload(gateway, body))
    assert (answer.status, answer.code) == (400, "invalid_value") and not backend.calls
    assert "differently" in answer.json["error"]["message"]


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 415),
        ("multipart/mixed; boundary=x", 415),
        ("multipart/form-data", 415),
        ("multipart/form-data; charset=utf-8", 400),
        ("multipart/form-data; boundary*=UTF-8''x; boundary=x", 400),
        ('multipart/form-data; boundary=""', 400),
    ],
)
def test_an_upload_must_be_a_form(
    gateway: Gateway, backend: FakeBackend, kind: str, status: int
) -> None:
    answer = Answer(upload(gateway, form(("model", b"a")), kind))
    assert answer.status == status and not backend.calls


def test_a_caller_may_upload_for_its_models_only() -> None:
    digest = hashlib.sha256(b"gw-a").hexdigest()
    backend = FakeBackend()
    gateway = Gateway(backend, settings=settings(token_a_sha256=digest, token_a_models="whisper-1"))
    headers = {"Content-Type": FORM, "Authorization": "Bearer gw-a"}
    for model, status in ((b"whisper-2", 403), (b"whisper-1", 0)):
        client = gateway.request("POST", TRANSCRIPTIONS, form(("model", model)), headers)
        assert Answer(client).status == status
    assert len(backend.calls) == 1


# -- transcriptions as they are made -------------------------------------------------------------

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


def test_a_transcription_without_stream_is_none(gateway: Gateway, backend: FakeBackend) -> None:
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
    assert the_end(gateway) is End.COMPLETE


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
def test_a_streamed_transcription_that_is_cut_is_no_success(
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
        assert the_end(gateway) is End.COMPLETE
    else:
        assert b'"error"' in Answer(client).payloads[-1] and not Answer(client).complete
        assert the_end(gateway) is End.BACKEND_TRUNCATED


def test_an_error_in_a_streamed_transcription_is_a_failure(
    gateway: Gateway, backend: FakeBackend
) -> None:
    client, call = transcription(gateway, backend)
    call.head()
    call.send(framed([PIECE, ("", b'{"error":{"message":"It broke."}}'), DONE]))
    assert json.loads(Answer(client).payloads[-1])["error"]["message"] == "It broke."
    assert not Answer(client).complete and the_end(gateway) is End.BACKEND_ERROR


def test_a_backend_that_does_not_stream_transcriptions_answers_as_it_likes(
    backend: FakeBackend,
) -> None:
    gateway = Gateway(backend, settings=settings(timeouts_ping="1"))
    client, call = transcription(gateway, backend)
    gateway.clock.pump([1.0] * 5)
    assert client.value() == b""  # a ping would have said that events will come
    call.whole(b'{"text":"a"}')
    assert Answer(client).body == b'{"text":"a"}'
    assert Answer(client).header("content-type") == "application/json"
