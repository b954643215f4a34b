"""Replies of choices, whole or as chunks: what crosses, and whether a reply is complete."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.web.http import PotentialDataLoss

from gatewayd.exchange import End
from gatewayd.wire.choices import ChatReader
from gatewayd.wire.content import Usage
from gatewayd.wire.errors import BackendFailed, BadReply
from tests.memory import Answer, FakeBackend, Gateway
from tests.replies import COMPLETIONS, framed, text

DEPTH = 64


class Reading(ChatReader):
    """Reads a reply whose events have no names."""

    def next(self, payload: bytes) -> bytes | None:
        return self.read_event(b"", payload)


def reading(*, choices: int = 1, include_usage: bool = False, model: str | None = None) -> Reading:
    return Reading("req-1", include_usage, choices, DEPTH, model)


def chunk(finish: str | None = None, index: int = 0, **more: Any) -> bytes:
    choice = {"index": index, "delta": {}, "finish_reason": finish}
    return json.dumps({"id": "x", "choices": [choice], **more}).encode()


USAGE = b'{"id":"x","choices":[],"usage":{"total_tokens":3}}'


def test_a_stream_is_whole_when_its_choice_is_finished() -> None:
    reader = reading()
    assert not reader.started
    for payload, whole in ((chunk(), False), (chunk("stop"), True), (USAGE, True)):
        reader.next(payload)
        assert reader.is_complete(done=False) is reader.is_complete(done=True) is whole
    assert reader.started


def test_done_alone_proves_nothing() -> None:
    reader = reading()
    assert not reader.is_complete(done=True)
    reader.next(chunk())
    assert not reader.is_complete(done=True)


def test_a_choice_that_was_asked_for_and_never_begun_is_not_open() -> None:
    """A backend that ignores ``n`` makes one choice."""
    reader = reading(choices=3)
    reader.next(chunk("stop", 0))
    assert reader.is_complete(done=True) and reader.is_complete(done=False)


def test_without_framing_every_choice_that_was_asked_for_must_be_there() -> None:
    reader = reading(choices=3)
    for index in (2, 0):
        reader.next(chunk("length", index))
        assert not reader.is_complete(done=False, framed=False)
    reader.next(chunk("stop", 1))
    assert reader.is_complete(done=False, framed=False)


def test_a_stream_without_a_choice_is_never_whole() -> None:
    reader = reading()
    reader.next(b'{"choices":[]}')
    reader.next(b'{"object":"chat.completion.chunk"}')
    assert reader.started and not reader.is_complete(done=True)


def test_a_stream_may_begin_so_many_choices_and_no_more() -> None:
    reader = reading()
    for index in range(4096):
        reader.next(chunk("stop", index))
    assert reader.is_complete(done=False)
    with pytest.raises(BadReply):
        reader.next(chunk("stop", 4096))


@pytest.mark.parametrize("index", ["null", None])
def test_a_choice_without_an_index_has_its_place_in_the_list(index: str | None) -> None:
    member = "" if index is None else f'"index":{index},'
    reader = reading()
    reader.next(f'{{"choices":[{{{member}"delta":{{}}}},{{{member}"delta":{{}}}}]}}'.encode())
    reader.next(f'{{"choices":[{{{member}"finish_reason":"stop"}}]}}'.encode())
    assert not reader.is_complete(done=True)
    reader.next(chunk("stop", 1))
    assert reader.is_complete(done=True)


def test_every_choice_that_was_begun_must_be_finished() -> None:
    reader = reading()
    reader.next(chunk("stop", 0))
    reader.next(chunk(None, 1))
    assert not reader.is_complete(done=True)
    reader.next(chunk("tool_calls", 1))
    assert reader.is_complete(done=False)


def test_choices_may_finish_in_one_chunk() -> None:
    reader = reading(choices=2)
    reader.next(b'{"choices":[{"finish_reason":"stop"},{"index":1,"finish_reason":"stop"}]}')
    assert reader.is_complete(done=False)


def test_an_empty_finish_reason_counts_only_with_done() -> None:
    reader = reading(choices=2)
    reader.next(chunk("", 0))
    reader.next(chunk("stop", 1))
    assert not reader.is_complete(done=False)
    assert reader.is_complete(done=True)


@pytest.mark.parametrize(
    "usage_only",
    [USAGE, b'{"choices":null,"usage":{}}', b'{"id":"x","usage":{"total_tokens":3}}'],
)
def test_a_usage_chunk_reaches_only_clients_that_asked_for_it(usage_only: bytes) -> None:
    assert reading().next(usage_only) is None
    kept = reading(include_usage=True).next(usage_only)
    assert kept is not None
    assert json.loads(kept) == {**json.loads(usage_only), "id": "req-1"}


def test_usage_on_a_chunk_with_choices_is_kept() -> None:
    for include_usage in (True, False):
        for finish in (None, "stop"):
            kept = reading(include_usage=include_usage).next(
                chunk(finish, usage={"total_tokens": 3})
            )
            assert kept is not None
            assert json.loads(kept)["usage"] == {"total_tokens": 3}


@pytest.mark.parametrize(
    "payload",
    [
        b'{"choices":[],"prompt_filter_results":[]}',
        b'{"choices":[],"prompt_filter_results":[],"usage":null}',
    ],
)
def test_a_chunk_without_choices_and_usage_is_kept(payload: bytes) -> None:
    assert reading().next(payload) == payload.replace(b"{", b'{"id":"req-1",', 1)


@pytest.mark.parametrize("choices", [b'"choices":[],', b'"choices":null,', b""])
def test_timings_on_a_usage_chunk_that_was_not_asked_for_are_kept(choices: bytes) -> None:
    """llama.cpp's timings. Clients that did not ask for usage expect a choice in each chunk."""
    payload = b'{%b"id":"x","usage":{"prompt_tokens":3},"timings":{"prompt_n":3}}' % choices
    reader = reading(choices=2)
    reader.next(chunk("stop", 0))
    reader.next(chunk("length", 1))
    kept = reader.next(payload)
    assert kept is not None and json.loads(kept) == {
        "choices": [{"index": 1, "delta": {}, "finish_reason": "length"}],
        "id": "req-1",
        "usage": None,
        "timings": {"prompt_n": 3},
    }
    assert reader.usage == Usage(3, 0) and reader.is_complete(done=False)
    padded = payload.replace(b'"timings":{"prompt_n":3}', b'"timings":{ },"obfuscation":"xyz"')
    assert reader.next(padded) is None


def test_timings_on_a_usage_chunk_are_dropped_if_no_choice_was_finished() -> None:
    assert reading().next(b'{"choices":[],"usage":{"prompt_tokens":3},"timings":{"n":3}}') is None


CONTENT = {
    "begins a choice": b'{"choices":[{"delta":{"role":"assistant","content":""}}]}',
    "text": b'{"choices":[{"delta":{"content":"a"}}]}',
    "thought": b'{"choices":[{"delta":{"content":"","reasoning":"a"}}]}',
    "a call": b'{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}',
    "text of the older kind": b'{"choices":[{"text":"a"}]}',
    "probabilities": b'{"choices":[{"delta":{"content":""},"logprobs":{"content":[]}}]}',
    "token ids": b'{"choices":[{"text":"","token_ids":[1]}]}',
    "finished": b'{"choices":[{"delta":{},"finish_reason":"stop"}]}',
    "usage": b'{"choices":[],"usage":{"prompt_tokens":3}}',
    "progress": b'{"choices":[{"delta":{"content":null}}],"prompt_progress":{"total":9}}',
    "a delta of its own kind": b'{"choices":[{"delta":"a"}]}',
}


NO_CONTENT = {
    "empty": b'{"choices":[{"delta":{}}]}',
    "empty text": b'{"choices":[{"delta":{"role":"assistant","content":""}}]}',
    "null": b'{"choices":[{"delta":{"content":null,"tool_calls":[ ]},"finish_reason":null}]}',
    "no delta": b'{"choices":[{"delta":null}]}',
    "empty text of the older kind": b'{"choices":[{"text":"","logprobs":null,"token_ids":[]}]}',
    "no choice": b'{"choices":[]}',
    "padding": b'{"choices":[],"usage":null,"obfuscation":"xyz"}',
    "nothing": b"{}",
    "null for a chunk": b"null",
}


@pytest.mark.parametrize("kind", CONTENT)
def test_content_is_what_a_client_would_show_or_count(kind: str) -> None:
    reader = reading()
    if kind != "begins a choice":
        reader.next(chunk())
    reader.next(CONTENT[kind])
    assert reader.content


@pytest.mark.parametrize("kind", NO_CONTENT)
def test_an_empty_chunk_is_not_content(kind: str) -> None:
    reader = reading()
    reader.next(chunk("stop"))
    reader.next(NO_CONTENT[kind])
    assert not reader.content


@pytest.mark.parametrize("name", [b"ping", b"keepalive"])
def test_a_ping_is_left_out(name: bytes) -> None:
    reader = reading()
    assert reader.read_event(name, b'{"type":"ping"}') is None
    assert not reader.started and not reader.content


@pytest.mark.parametrize("payload", [b"null", b" null ", b" ", b"\n"])
def test_null_or_nothing_in_place_of_a_chunk_is_left_out(payload: bytes) -> None:
    """llama.cpp sends it where a prompt begins."""
    reader = reading()
    assert reader.next(payload) is None and not reader.started


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b'{"id":"x","choices":[]}', b'{"id":"req-1","choices":[]}'),
        (b'{"choices":[] , "id" : "x" }', b'{"choices":[] , "id" : "req-1" }'),
        (b'{"choices":[],"id":null}', b'{"choices":[],"id":"req-1"}'),
        (b' {"choices":[]}', b' {"id":"req-1","choices":[]}'),
        (
            b'{"choices":[{"delta":{"tool_calls":[{"id":"x"}]}}],"id":"x"}',
            b'{"choices":[{"delta":{"tool_calls":[{"id":"x"}]}}],"id":"req-1"}',
        ),
        (
            b'{"choices":[{"delta":{"tool_calls":[{"id":"x"}]}}]}',
            b'{"id":"req-1","choices":[{"delta":{"tool_calls":[{"id":"x"}]}}]}',
        ),
        (
            b'{"choices":[{"delta":{"content":"\\"id\\":\\"x\\""}}],"i\\u0064":"x","x":1.50e1}',
            b'{"choices":[{"delta":{"content":"\\"id\\":\\"x\\""}}],"i\\u0064":"req-1","x":1.50e1}',
        ),
        (
            b'{"id":"x","choices":[{"delta":{"content":"\\ud83c"}}]}',
            b'{"id":"req-1","choices":[{"delta":{"content":"\\ud83c"}}]}',
        ),
    ],
)
def test_the_id_becomes_the_request_id_and_every_other_byte_is_kept(
    payload: bytes, expected: bytes
) -> None:
    assert reading().next(payload) == expected


def test_the_model_of_a_reply_is_the_alias_of_the_request() -> None:
    aliased = reading(model="mine")
    assert aliased.next(b'{"id":"x","choices":[], "model" : "real"}') == (
        b'{"id":"req-1","choices":[], "model" : "mine"}'
    )
    assert aliased.next(b'{"id":"x","choices":[]}') == b'{"id":"req-1","choices":[]}'
    assert aliased.read_document(b'{"model":null,"id":"x","choices":[{"model":"real"}]}') == (
        b'{"model":"mine","id":"req-1","choices":[{"model":"real"}]}'
    )


def test_without_an_id_and_an_alias_every_byte_is_kept() -> None:
    payload = b'{ "id":"x" ,"choices":[],"model":"real"}'
    assert ChatReader(None, False, 1, DEPTH).read_event(b"", payload) == payload


def test_usage_is_counted_whether_or_not_the_client_asked_for_it() -> None:
    counted = Usage(prompt_tokens=3, completion_tokens=4)
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7, "x": {}}
    for payload in (
        chunk("stop", usage=usage),
        json.dumps({"choices": [], "usage": usage}).encode(),
    ):
        reader = reading()
        assert reader.usage is None
        reader.next(payload)
        assert reader.usage == counted
        reader.next(chunk(usage=None))
        reader.next(chunk(usage={"prompt_tokens": "many"}))
        assert reader.usage == counted
    whole = reading()
    whole.read_document(chunk("stop", usage=usage))
    assert whole.usage == counted


@pytest.mark.parametrize(
    "payload",
    [
        b'{"error":{"message":"out of memory","type":"server_error","code":500}}',
        b'{ "error" : {"message":"x" , "more":[1.0]} ,"choices":[]}',
        '{"id":"x","error":{"message":"Größe"},"choices":[{"finish_reason":"error"}]}'.encode(),
    ],
)
def test_an_error_among_the_events_is_passed_on_byte_for_byte(payload: bytes) -> None:
    reader = reading()
    with pytest.raises(BackendFailed) as caught:
        reader.next(payload)
    assert caught.value.payload == caught.value.body() == payload
    assert caught.value.status == 502
    assert not reader.started


@pytest.mark.parametrize(
    "payload",
    [
        b'{"error":"boom in /srv/x/y"}',
        b'{"error":{"text":"boom"}}',
        b'{"error":{"message":null}}',
        b'{"error":true}',
        b'{"error":{"message":"x","message":"y"}}',
        b'{"error":{"message":"x"},"n":%b}' % (b"9" * 5000),
    ],
    ids=lambda payload: payload[:40].decode(),
)
def test_an_error_without_an_envelope_gets_one(payload: bytes) -> None:
    with pytest.raises(BackendFailed) as caught:
        reading().next(payload)
    assert caught.value.payload is None
    assert b"boom" not in caught.value.body()


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("400", 400),
        ("429", 429),
        ("401", 502),
        ("403", 502),
        ("500", 502),
        ("200", 502),
        ("null", 502),
        ('"400"', 502),
        ("true", 502),
        ("400.5", 502),
    ],
)
def test_the_code_of_an_error_is_its_status_if_it_is_a_client_error(code: str, status: int) -> None:
    with pytest.raises(BackendFailed) as caught:
        reading().next(b'{"error":{"message":"x","code":%b}}' % code.encode())
    assert caught.value.status == status


@pytest.mark.parametrize("error", [b"null", b"false", b"{}", b"[]", b'""', b"0"])
def test_an_empty_error_is_not_an_error(error: bytes) -> None:
    assert reading().next(b'{"id":"x","error":%b,"choices":[]}' % error) == (
        b'{"id":"req-1","error":%b,"choices":[]}' % error
    )


@pytest.mark.parametrize(
    "payload",
    [
        b"hello",
        b"<html>",
        b'{"choices":[',
        b'{"choices":[]} {}',
        b"[]",
        b'"x"',
        b'{"choices":[{"index":-1}]}',
        b'{"choices":[{"index":%b}]}' % (b"9" * 5000),
        b'{"choices":{}}',
        b'{"choices":[null]}',
        b'{"choices":[{"index":"0"}]}',
        b'{"choices":[{"finish_reason":5}]}',
        b'{"x":NaN}',
        b'{"x":"\xff"}',
        b'\xef\xbb\xbf{"choices":[]}',
        b'{"x":%b}' % (b"[" * 1000 + b"]" * 1000),
    ],
    ids=lambda payload: repr(payload[:30]),
)
def test_an_event_that_is_not_a_chunk_is_a_bad_reply(payload: bytes) -> None:
    with pytest.raises(BadReply):
        reading().next(payload)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=30) | st.text(alphabet='{}[]:,"\\u0dD8eriocs01 ', max_size=30))
def test_any_event_is_relayed_left_out_or_refused(payload: bytes | str) -> None:
    payload = payload if isinstance(payload, bytes) else payload.encode()
    try:
        relayed = reading().next(payload)
    except (BackendFailed, BadReply):
        return
    assert relayed is None or json.loads(relayed)["id"] == "req-1"


def test_a_completion_gets_the_request_id_and_keeps_its_bytes() -> None:
    body = b'{ "x":1.50 ,"id" : "chatcmpl-1","choices":[{"message":{"id":"y"}}]}\r\n'
    assert reading().read_document(body) == body.replace(b'"chatcmpl-1"', b'"req-1"')
    bare = b'{"choices":[{}]}'
    assert reading().read_document(bare) == b'{"id":"req-1","choices":[{}]}'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        b"null",
        b"[]",
        b'"x"',
        b"{}",
        b'{"choices":null}',
        b'{"choices":[]}',
        b'{"choices":"x"}',
        b'{"choices":[5]}',
        b'{"choices":[{}]',
        b'{"choices":[{"x":NaN}]}',
        b'{"choices":[{"x":"\xff"}]}',
        b'{"choices":%b}' % (b"[" * 1000 + b"]" * 1000),
    ],
    ids=lambda body: repr(body[:30]),
)
def test_a_body_that_is_not_a_completion_is_a_bad_reply(body: bytes) -> None:
    with pytest.raises(BadReply):
        reading().read_document(body)


def test_an_error_in_place_of_a_completion_keeps_its_bytes() -> None:
    body = b'{"error": {"message":"no", "code":404}}'
    with pytest.raises(BackendFailed) as caught:
        reading().read_document(body)
    assert (caught.value.payload, caught.value.status) == (body, 404)


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
    """Each that was begun; and if only the connection ended, as many as were asked for."""
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
    assert Answer(client).complete and gateway.end is End.COMPLETE
