"""What the gateway reads of any JSON request, what it refuses, and what it changes."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from gatewayd.wire import request
from gatewayd.wire.errors import InvalidJSON, InvalidValue
from gatewayd.wire.request import JSON_TYPE, JSONCall, parse_object
from tests.replies import COMPLETIONS, RESPONSES, endpoint

DEPTH = 64


def parsed(body: bytes) -> JSONCall:
    return JSONCall.parse(endpoint(RESPONSES), body, b"", DEPTH)


def read(**fields: Any) -> JSONCall:
    return parsed(json.dumps(fields).encode())


def blamed(**fields: Any) -> str | None:
    """The ``param`` with which a request with these fields is refused."""
    with pytest.raises(InvalidValue) as caught:
        read(**fields)
    assert len(caught.value.message) < 200
    return caught.value.param


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
        parsed(body)
    assert caught.value.param is None


@pytest.mark.parametrize(
    "model",
    [5, True, [], "x" * 10_000, "a\r\nX: y", "a\0", "../../x", "a/../b", "\u202eabc", "\x7f"],
)
def test_a_model_that_is_not_a_name_is_refused(model: Any) -> None:
    assert blamed(model=model) == "model"


@pytest.mark.parametrize("model", ["a", "org/model:7b-q4.gguf", "x" * 256, "模型", "..."])
def test_a_model_is_read(model: str) -> None:
    assert read(model=model).model == model


def test_a_model_may_be_missing_null_or_empty() -> None:
    assert read().model is None
    assert read(model=None).model is None
    assert read(model="").model is None


@pytest.mark.parametrize("stream", ["true", "false", "", 1, 1.0, -1, [], {}, [0]])
def test_stream_that_servers_read_differently_is_refused(stream: Any) -> None:
    assert blamed(stream=stream) == "stream"


def test_stream_is_off_unless_true() -> None:
    assert read(stream=True).stream
    for quiet in (read(), read(stream=None), read(stream=False), read(stream=0)):
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
def test_a_name_that_differs_from_a_known_one_only_in_case_is_refused(
    name: str, known: str, before: bool
) -> None:
    members = [f'"{name}":"b"', '"Other":1', '"messages":[{"role":"user"}]', '"model":"a"']
    body = "{" + ",".join(members if before else members[::-1]) + "}"
    with pytest.raises(InvalidJSON, match=f"'{known}'") as caught:
        parsed(body.encode())
    assert caught.value.param == known


def test_a_name_in_stream_options_may_not_differ_in_case_either() -> None:
    with pytest.raises(InvalidJSON, match="'include_usage'"):
        read(stream_options={"Include_Usage": True})


def test_other_names_may_have_capitals_and_known_ones_may_stand_deeper() -> None:
    inner = {"Model": "x", "STREAM": True}
    odd = {"Top_P": 1, "": 2, "mode\nl": 3, "K\u212a": 5, "models": 6}
    assert read(model="m", metadata=inner, **odd).model == "m"


def test_many_unusual_names_are_checked_in_one_pass() -> None:
    names = b",".join(b'"A%x":1' % i for i in range(400_000))
    body = b'{"messages":[{"role":"user"}],%b}' % names
    before = time.perf_counter()
    parse_object(body, DEPTH)
    whole = time.perf_counter() - before
    fields = dict.fromkeys(f"A{i:x}" for i in range(400_000))
    before = time.perf_counter()
    request._check_names(fields, request.MEMBERS)
    assert time.perf_counter() - before < whole


def test_a_request_never_shows_its_text() -> None:
    assert "hi" not in repr(read(model="a"))


def test_a_renamed_request_asks_for_another_model() -> None:
    body = b'{ "model" : "a", "x":{"model":"a"},"messages":[{"role":"user"}], "n":1.0}'
    call = parsed(body).renamed('b"')
    assert call.body == body.replace(b': "a"', b': "b\\""') and call.model == 'b"'
    odd = b'{"mod\\u0065l":"a","x":{"model":"a"}}'
    assert parsed(odd).renamed("b").body == b'{"mod\\u0065l":"b","x":{"model":"a"}}'


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
def test_stream_options_are_changed_to_ask_for_usage(before: bytes, after: bytes) -> None:
    call = JSONCall(endpoint(COMPLETIONS), before, JSON_TYPE, None, True)
    assert call.counting_usage().body == after


def test_usage_is_not_requested_where_every_stream_reports_it() -> None:
    for path, stream in ((COMPLETIONS, False), (RESPONSES, True)):
        call = JSONCall(endpoint(path), b"{}", JSON_TYPE, None, stream)
        assert call.counting_usage() is call
