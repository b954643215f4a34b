"""What the gateway reads of chat requests, completions and chunks, and what it leaves alone."""

import json
import re
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatewayd.wire import chat
from gatewayd.wire.chat import ChatRequest, parse_object, with_model, with_usage
from gatewayd.wire.completion import ChatReader, completion, completion_to_chunks
from gatewayd.wire.content import Usage
from gatewayd.wire.errors import BackendFailed, BadReply, InvalidJSON, InvalidValue

DEPTH = 64

MESSAGES: Any = [{"role": "user", "content": "hi"}]


def request(**fields: Any) -> ChatRequest:
    """Parse a request with these fields; its messages are good unless they are among them."""
    return ChatRequest.parse(json.dumps({"messages": MESSAGES, **fields}).encode(), DEPTH)


def blamed(**fields: Any) -> str | None:
    """The ``param`` with which a request with these fields is refused."""
    with pytest.raises(InvalidValue) as caught:
        request(**fields)
    assert len(caught.value.message) < 200
    return caught.value.param


# -- the request ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":',
        b"",
        b'""',
        b"[]",
        b"null",
        b"42",
        b'{"messages":[]} {}',
        b'{"messages":[],}',
        b'{"messages":[]/**/}',
        b"{'messages':[]}",
        b"[" * 100_000,
        b'{"model":"a","model":"b"}',
        b'{"stream":true,"stream":false}',
        b'{"model":"a","\\u006dodel":"b"}',
        b'{"messages":[{"role":"user","content":"a","content":"b"}]}',
        b'{"messages":"\xff"}',
        b'\xef\xbb\xbf{"messages":[{"role":"user"}]}',
        '{"messages":[{"role":"user"}]}'.encode("utf-16"),
    ],
    ids=lambda body: repr(body[:30]),
)
def test_a_body_that_is_not_one_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidJSON) as caught:
        ChatRequest.parse(body, DEPTH)
    assert caught.value.param is None


def test_messages_must_be_there() -> None:
    with pytest.raises(InvalidValue) as caught:
        ChatRequest.parse(b'{"model":"a"}', DEPTH)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ({}, "messages"),
        ("hi", "messages"),
        ([], "messages"),
        ([1], "messages[0]"),
        ([{}], "messages[0].role"),
        ([{"role": None}], "messages[0].role"),
        ([*MESSAGES, {"role": 5}], "messages[1].role"),
        ([*MESSAGES, None], "messages[1]"),
    ],
)
def test_messages_that_are_none_are_named(messages: Any, param: str) -> None:
    assert blamed(messages=messages) == param


@pytest.mark.parametrize(
    "model",
    [5, True, [], "x" * 10_000, "a\r\nX: y", "a\0", "../../x", "a/../b", "\u202eabc", "\x7f"],
)
def test_a_model_that_is_no_name_is_refused(model: Any) -> None:
    assert blamed(model=model) == "model"


@pytest.mark.parametrize("model", ["a", "org/model:7b-q4.gguf", "x" * 256, "模型", "..."])
def test_a_model_is_read(model: str) -> None:
    assert request(model=model).model == model


def test_a_missing_model_is_fine_and_null_or_an_empty_name_is_as_if_missing() -> None:
    assert request().model is None
    assert request(model=None).model is None
    assert request(model="").model is None


@pytest.mark.parametrize("stream", ["true", "false", "", 1, 1.0, -1, [], {}, [0]])
def test_stream_that_servers_read_differently_is_refused(stream: Any) -> None:
    assert blamed(stream=stream) == "stream"


def test_stream_is_off_unless_true() -> None:
    assert request(stream=True).stream
    for quiet in (request(), request(stream=None), request(stream=False), request(stream=0)):
        assert quiet.stream is False


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("MODEL", "model"),
        ("Model", "model"),
        ("\\u004dodel", "model"),
        ("Stream", "stream"),
        ("\u017ftream", "stream"),  # a long s is an S in upper case
        ("\\u017fTREAM", "stream"),
        ("Stream_Options", "stream_options"),
        ("stream_opt\u0131ons", "stream_options"),  # a dotless i is an I in upper case
        ("N", "n"),
        ("me\u017f\u017fages", "messages"),
        ("PROMPT", "prompt"),
    ],
)
@pytest.mark.parametrize("before", [True, False])
def test_a_name_that_a_lenient_parser_takes_for_a_known_one_is_refused(
    name: str, known: str, before: bool
) -> None:
    members = [f'"{name}":"b"', '"Other":1', '"messages":[{"role":"user"}]', '"model":"a"']
    body = "{" + ",".join(members if before else members[::-1]) + "}"
    with pytest.raises(InvalidJSON, match=f"'{known}'") as caught:
        ChatRequest.parse(body.encode(), DEPTH)
    assert caught.value.param == known


def test_a_name_in_stream_options_may_not_differ_in_case_either() -> None:
    with pytest.raises(InvalidJSON, match="'include_usage'"):
        request(stream_options={"Include_Usage": True})


def test_other_names_may_have_capitals_and_known_ones_may_stand_deeper() -> None:
    inner = {"Model": "x", "STREAM": True}
    odd = {"Top_P": 1, "": 2, "mode\nl": 3, "K\u212a": 5, "models": 6}
    assert request(model="m", metadata=inner, **odd).model == "m"


def test_a_million_odd_names_are_judged_in_one_pass() -> None:
    names = b",".join(b'"A%x":1' % i for i in range(400_000))
    body = b'{"messages":[{"role":"user"}],%b}' % names
    before = time.perf_counter()
    parse_object(body, DEPTH)
    whole = time.perf_counter() - before
    fields = dict.fromkeys(f"A{i:x}" for i in range(400_000))
    before = time.perf_counter()
    chat._check_names(fields, chat.MEMBERS)
    assert time.perf_counter() - before < whole


def test_usage_is_wanted_only_by_include_usage_true() -> None:
    assert request(stream_options={"include_usage": True}).include_usage
    others: list[Any] = [None, {}, {"include_usage": False}, {"include_usage": 1}, "yes", []]
    for options in others:
        assert not request(stream_options=options).include_usage
    assert not request().include_usage


@pytest.mark.parametrize(
    ("n", "choices"),
    [(3, 3), (1, 1), (None, 1), (0, 1), (-2, 1), ("2", 1), (True, 1), (2.0, 2), (4096, 4096)],
)
def test_choices_are_counted_where_a_backend_may_heed_them(n: Any, choices: int) -> None:
    assert request(n=n, stream=True).choices == choices


@pytest.mark.parametrize("n", [4097, 1e300, 10**300])
def test_a_stream_of_more_choices_than_can_be_kept_track_of_is_refused(n: Any) -> None:
    assert blamed(n=n, stream=True) == "n"
    assert request(n=n).choices == 1  # no stream: the backend's to judge


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages":[{"role":"user","content":[{"type":"text","text":"a"},'
        b'{"type":"image_url","image_url":{"url":"data:"}}]}]}',
        b'{"messages":[{"role":"assistant","content":null,"tool_calls":[{"id":"1"}]}]}',
        b'{"messages":[{"role":"user","content":[]},{"role":"developer","content":{}}]}',
        b'{"messages":[{"role":"tool"},{"role":"function"},{"role":"xyz"}],"unheard_of":{"x":1}}',
        b'\n{ "z" : 12345678901234567890 ,"y":[1.0,1e0,0.1],\t"messages":[{"role":"user"}]}\r\n',
        b'{"messages":[{"role":"user","content":"\\u0000"}]}',
        '{"messages":[{"role":"user","content":"👩\u200d👧 \u202eabc 𝄞"}]}'.encode(),
        b'{"messages":[{"role":"user","content":"%b"}]}' % ("漢" * 300_000).encode(),
    ],
    ids=lambda body: repr(body[:40]),
)
def test_what_the_backend_decides_is_kept_byte_for_byte(body: bytes) -> None:
    assert ChatRequest.parse(body, DEPTH).body == body


def test_a_request_never_shows_its_text() -> None:
    assert "hi" not in repr(request(model="a"))


@pytest.mark.parametrize(
    ("content", "prompt"),
    [
        ("hello", "hello"),
        ("", ""),
        (None, ""),
        (
            [
                {"type": "text", "text": "a"},
                {"type": "image_url", "image_url": {"url": "x"}},
                {"type": "text", "text": "b"},
            ],
            "a\nb",
        ),
        ([{"type": "text"}, {"type": "text", "text": 5}, "x", {"text": "y"}], ""),
        ({"text": "x"}, ""),
    ],
)
def test_the_prompt_is_the_text_of_the_last_user_message(content: Any, prompt: str) -> None:
    messages = [
        {"role": "user", "content": "before"},
        {"role": "user", "content": content},
        {"role": "assistant", "content": "after"},
    ]
    assert request(messages=messages).prompt() == prompt


def test_without_a_user_message_there_is_no_prompt() -> None:
    with pytest.raises(InvalidValue) as caught:
        request(messages=[{"role": "system", "content": "x"}]).prompt()
    assert caught.value.param == "messages"


def test_a_request_may_be_sent_on_for_another_model() -> None:
    body = b'{ "model" : "a", "x":{"model":"a"},"messages":[{"role":"user"}], "n":1.0}'
    assert with_model(body, 'b"') == body.replace(b': "a"', b': "b\\""')
    odd = b'{"mod\\u0065l":"a","x":{"model":"a"}}'
    assert with_model(odd, "b") == b'{"mod\\u0065l":"b","x":{"model":"a"}}'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"{}", b'{"stream_options":{"include_usage":true}}'),
        (b'{"stream_options": null}', b'{"stream_options": {"include_usage":true}}'),
        (b'{"stream_options": {}}', b'{"stream_options": {"include_usage":true}}'),
        (
            b'{"a":1.0 ,"stream_options":{"x":1.0,"include_usage":false} }',
            b'{"a":1.0 ,"stream_options":{"x":1.0,"include_usage":true} }',
        ),
        (b'{"stream_options":[]}', b'{"stream_options":[]}'),
        (b'{"stream_options":"x"}', b'{"stream_options":"x"}'),
    ],
)
def test_usage_may_be_asked_for_on_the_clients_behalf(before: bytes, after: bytes) -> None:
    assert with_usage(before) == after


# -- streams -------------------------------------------------------------------------------------


class Reading(ChatReader):
    """Reads a reply whose events have no names."""

    def next(self, payload: bytes) -> bytes | None:
        return self.take(b"", payload)


def reading(*, choices: int = 1, include_usage: bool = False, model: str | None = None) -> Reading:
    return Reading("req-1", include_usage, choices, DEPTH, model)


def chunk(finish: str | None = None, index: int = 0, **more: Any) -> bytes:
    choice = {"index": index, "delta": {}, "finish_reason": finish}
    return json.dumps({"id": "x", "choices": [choice], **more}).encode()


USAGE = b'{"id":"x","choices":[],"usage":{"total_tokens":3}}'


def test_a_stream_is_whole_when_its_choice_is_finished() -> None:
    following = reading()
    assert not following.started
    for payload, whole in ((chunk(), False), (chunk("stop"), True), (USAGE, True)):
        following.next(payload)
        assert following.complete(done=False) is following.complete(done=True) is whole
    assert following.started


def test_done_alone_proves_nothing() -> None:
    following = reading()
    assert not following.complete(done=True)
    following.next(chunk())
    assert not following.complete(done=True)


def test_a_choice_that_was_asked_for_and_never_begun_is_not_open() -> None:
    """A backend that ignores ``n`` makes one choice."""
    following = reading(choices=3)
    following.next(chunk("stop", 0))
    assert following.complete(done=True) and following.complete(done=False)


def test_every_choice_that_was_asked_for_must_be_there_where_only_the_connection_ended() -> None:
    following = reading(choices=3)
    for index in (2, 0):
        following.next(chunk("length", index))
        assert not following.complete(done=False, framed=False)
    following.next(chunk("stop", 1))
    assert following.complete(done=False, framed=False)


def test_a_stream_without_a_choice_is_never_whole() -> None:
    following = reading()
    following.next(b'{"choices":[]}')
    following.next(b'{"object":"chat.completion.chunk"}')
    assert following.started and not following.complete(done=True)


def test_a_stream_may_begin_so_many_choices_and_no_more() -> None:
    following = reading()
    for index in range(4096):
        following.next(chunk("stop", index))
    assert following.complete(done=False)
    with pytest.raises(BadReply):
        following.next(chunk("stop", 4096))


@pytest.mark.parametrize("index", ["null", None])
def test_a_choice_without_an_index_has_its_place_in_the_list(index: str | None) -> None:
    said = "" if index is None else f'"index":{index},'
    following = reading()
    following.next(f'{{"choices":[{{{said}"delta":{{}}}},{{{said}"delta":{{}}}}]}}'.encode())
    following.next(f'{{"choices":[{{{said}"finish_reason":"stop"}}]}}'.encode())
    assert not following.complete(done=True)
    following.next(chunk("stop", 1))
    assert following.complete(done=True)


def test_every_choice_that_was_begun_must_be_finished() -> None:
    following = reading()
    following.next(chunk("stop", 0))
    following.next(chunk(None, 1))
    assert not following.complete(done=True)
    following.next(chunk("tool_calls", 1))
    assert following.complete(done=False)


def test_choices_may_finish_in_one_chunk() -> None:
    following = reading(choices=2)
    following.next(b'{"choices":[{"finish_reason":"stop"},{"index":1,"finish_reason":"stop"}]}')
    assert following.complete(done=False)


def test_an_empty_finish_reason_counts_only_with_done() -> None:
    following = reading(choices=2)
    following.next(chunk("", 0))
    following.next(chunk("stop", 1))
    assert not following.complete(done=False)
    assert following.complete(done=True)


@pytest.mark.parametrize(
    "usage_only",
    [USAGE, b'{"choices":null,"usage":{}}', b'{"id":"x","usage":{"total_tokens":3}}'],
)
def test_a_usage_chunk_reaches_only_who_asked_for_it(usage_only: bytes) -> None:
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
def test_what_rides_on_a_usage_chunk_that_was_not_asked_for_is_kept(choices: bytes) -> None:
    """llama.cpp's timings. Clients that did not ask for usage expect a choice in each chunk."""
    payload = b'{%b"id":"x","usage":{"prompt_tokens":3},"timings":{"prompt_n":3}}' % choices
    following = reading(choices=2)
    following.next(chunk("stop", 0))
    following.next(chunk("length", 1))
    kept = following.next(payload)
    assert kept is not None and json.loads(kept) == {
        "choices": [{"index": 1, "delta": {}, "finish_reason": "length"}],
        "id": "req-1",
        "usage": None,
        "timings": {"prompt_n": 3},
    }
    assert following.usage == Usage(3, 0) and following.complete(done=False)
    padded = payload.replace(b'"timings":{"prompt_n":3}', b'"timings":{ },"obfuscation":"xyz"')
    assert following.next(padded) is None


def test_what_rides_on_a_usage_chunk_is_dropped_where_no_choice_was_finished() -> None:
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
    following = reading()
    if kind != "begins a choice":
        following.next(chunk())
    following.next(CONTENT[kind])
    assert following.content


@pytest.mark.parametrize("kind", NO_CONTENT)
def test_what_is_empty_is_no_content(kind: str) -> None:
    following = reading()
    following.next(chunk("stop"))
    following.next(NO_CONTENT[kind])
    assert not following.content


@pytest.mark.parametrize("name", [b"ping", b"keepalive"])
def test_a_ping_is_left_out(name: bytes) -> None:
    following = reading()
    assert following.take(name, b'{"type":"ping"}') is None
    assert not following.started and not following.content


@pytest.mark.parametrize("payload", [b"null", b" null ", b" ", b"\n"])
def test_null_or_nothing_in_place_of_a_chunk_is_left_out(payload: bytes) -> None:
    """llama.cpp sends it where one of several prompts begins."""
    following = reading()
    assert following.next(payload) is None and not following.started


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


def test_an_alias_stays_the_name_that_the_client_knows() -> None:
    aliased = reading(model="mine")
    assert aliased.next(b'{"id":"x","choices":[], "model" : "real"}') == (
        b'{"id":"req-1","choices":[], "model" : "mine"}'
    )
    assert aliased.next(b'{"id":"x","choices":[]}') == b'{"id":"req-1","choices":[]}'
    assert aliased.whole(b'{"model":null,"id":"x","choices":[{"model":"real"}]}') == (
        b'{"model":"mine","id":"req-1","choices":[{"model":"real"}]}'
    )


def test_without_an_id_and_an_alias_every_byte_is_kept() -> None:
    payload = b'{ "id":"x" ,"choices":[],"model":"real"}'
    assert ChatReader(None, False, 1, DEPTH).take(b"", payload) == payload


def test_usage_is_counted_whoever_asked_for_it() -> None:
    counted = Usage(prompt_tokens=3, completion_tokens=4)
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7, "x": {}}
    for payload in (
        chunk("stop", usage=usage),
        json.dumps({"choices": [], "usage": usage}).encode(),
    ):
        following = reading()
        assert following.usage is None
        following.next(payload)
        assert following.usage == counted
        following.next(chunk(usage=None))
        following.next(chunk(usage={"prompt_tokens": "many"}))
        assert following.usage == counted
    whole = reading()
    whole.whole(chunk("stop", usage=usage))
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
    following = reading()
    with pytest.raises(BackendFailed) as caught:
        following.next(payload)
    assert caught.value.payload == caught.value.body() == payload
    assert caught.value.status == 502
    assert not following.started


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
def test_an_error_that_is_no_envelope_gets_one_of_ours(payload: bytes) -> None:
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
def test_the_code_of_an_error_is_its_status_where_it_can_be(code: str, status: int) -> None:
    with pytest.raises(BackendFailed) as caught:
        reading().next(b'{"error":{"message":"x","code":%b}}' % code.encode())
    assert caught.value.status == status


@pytest.mark.parametrize("error", [b"null", b"false", b"{}", b"[]", b'""', b"0"])
def test_an_error_that_says_nothing_is_none(error: bytes) -> None:
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
def test_an_event_that_is_no_chunk_is_a_bad_reply(payload: bytes) -> None:
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


# -- whole completions ---------------------------------------------------------------------------


def test_a_completion_gets_the_request_id_and_keeps_its_bytes() -> None:
    body = b'{ "x":1.50 ,"id" : "chatcmpl-1","choices":[{"message":{"id":"y"}}]}\r\n'
    assert reading().whole(body) == body.replace(b'"chatcmpl-1"', b'"req-1"')
    bare = b'{"choices":[{}]}'
    assert reading().whole(bare) == b'{"id":"req-1","choices":[{}]}'


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
def test_a_body_that_is_no_completion_is_a_bad_reply(body: bytes) -> None:
    with pytest.raises(BadReply):
        reading().whole(body)


def test_an_error_in_place_of_a_completion_keeps_its_bytes() -> None:
    body = b'{"error": {"message":"no", "code":404}}'
    with pytest.raises(BackendFailed) as caught:
        reading().whole(body)
    assert (caught.value.payload, caught.value.status) == (body, 404)


def test_a_completion_made_here_is_one_and_can_be_streamed() -> None:
    body = completion("req-1", 17, "echo", 'hi "you" 🎉', 3, 4)
    assert reading().whole(body) == body
    following = reading(include_usage=True)
    for payload in completion_to_chunks(body, include_usage=True):
        assert following.next(payload) == payload
    assert following.complete(done=False)


# -- a completion as a stream --------------------------------------------------------------------

WHOLE = (
    b'{"id":"req-1","object":"chat.completion","created":17,"model":"m","unheard_of":[1.50, 2],'
    b'"choices":[{"index":0,"message":{"role":"assistant","content":"a\\u00e4","x":1e0},'
    b'"logprobs":{"content":[{"logprob":-0.50}]},"finish_reason":"stop"}],'
    b'"usage":{"total_tokens": 3}}'
)


def test_a_completion_becomes_one_chunk_with_everything_in_it() -> None:
    [payload] = completion_to_chunks(WHOLE, include_usage=False)
    made = json.loads(payload)
    whole = json.loads(WHOLE)
    [choice] = whole["choices"]
    assert made == {
        **{key: value for key, value in whole.items() if key != "usage"},
        "object": "chat.completion.chunk",
        "choices": [
            {
                "index": 0,
                "delta": choice["message"],
                "logprobs": choice["logprobs"],
                "finish_reason": "stop",
            }
        ],
    }
    for kept in (b"[1.50, 2]", b'"a\\u00e4"', b"1e0", b'{"content":[{"logprob":-0.50}]}'):
        assert kept in payload


def test_usage_comes_in_a_chunk_of_its_own_if_asked_for() -> None:
    first, last = completion_to_chunks(WHOLE, include_usage=True)
    assert json.loads(first)["usage"] is None
    assert json.loads(last) == {
        "id": "req-1",
        "object": "chat.completion.chunk",
        "created": 17,
        "model": "m",
        "unheard_of": [1.5, 2],
        "choices": [],
        "usage": {"total_tokens": 3},
    }
    assert b'{"total_tokens": 3}' in last


def test_usage_that_the_backend_did_not_send_is_not_invented() -> None:
    [payload] = completion_to_chunks(b'{"choices":[{"message":{}}]}', include_usage=True)
    assert json.loads(payload)["usage"] is None


def test_streamed_tool_calls_have_an_index() -> None:
    body = (
        b'{"choices":[{"message":{"content":null,"tool_calls":['
        b'{"id":"a","function":{"name":"f","arguments":"{\\"x\\": 1.0}"}},{"id":"b"}]}}]}'
    )
    [payload] = completion_to_chunks(body, include_usage=False)
    [choice] = json.loads(payload)["choices"]
    first, second = choice["delta"]["tool_calls"]
    assert first == {
        "index": 0,
        "id": "a",
        "function": {"name": "f", "arguments": '{"x": 1.0}'},
    }
    assert second == {"index": 1, "id": "b"}
    assert b'{"name":"f","arguments":"{\\"x\\": 1.0}"}' in payload


def test_no_tool_calls_stay_none() -> None:
    [payload] = completion_to_chunks(b'{"choices":[{"message":{"tool_calls":null}}]}', False)
    assert json.loads(payload)["choices"] == [{"index": 0, "delta": {"tool_calls": None}}]


def test_every_choice_crosses_and_has_an_index() -> None:
    body = b'{"choices":[{"message":{"content":"a"}},{"index":5,"message":{}},{"x":1}]}'
    [payload] = completion_to_chunks(body, include_usage=False)
    assert json.loads(payload)["choices"] == [
        {"index": 0, "delta": {"content": "a"}},
        {"index": 5, "delta": {}},
        {"index": 2, "delta": {}, "x": 1},
    ]


@pytest.mark.parametrize(
    "message", [b"5", b"null", b"[]", b'{"tool_calls":5}', b'{"tool_calls":[5]}']
)
def test_a_message_that_is_none_is_a_bad_reply(message: bytes) -> None:
    body = b'{"choices":[{"message":%b}]}' % message
    with pytest.raises(BadReply):
        completion_to_chunks(reading().whole(body), include_usage=False)


@pytest.mark.parametrize(
    "body",
    [
        b'{"choices":[{"message":{"content":"\\ud83c"}}]}',
        b'{"choices":[{"message":{"content":"\\udf89 x"}}],"usage":{}}',
        b'{"choices":[{"message":{"tool_calls":[{"function":{"arguments":"\\ud83cx"}}]}}]}',
    ],
)
def test_half_of_a_surrogate_pair_crosses_as_it_came(body: bytes) -> None:
    """A reply cut off at ``max_tokens`` may end within an emoji."""
    payload, *_ = completion_to_chunks(reading().whole(body), include_usage=True)
    [half] = re.findall(rb"\\ud[0-9a-f]{3}", body)
    assert half in payload
