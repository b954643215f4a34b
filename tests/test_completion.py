"""Chat completions as documents: the chunks that one makes, and one that is made here."""

from __future__ import annotations

import json
import re

import pytest

from gatewayd.wire.choices import ChatReader
from gatewayd.wire.completion import encode, to_chunks
from gatewayd.wire.errors import BadReply


def reader(include_usage: bool = False) -> ChatReader:
    return ChatReader("req-1", include_usage, 1, 64)


def test_an_encoded_completion_is_valid_and_can_be_streamed() -> None:
    body = encode("req-1", 17, "echo", 'hi "you" 🎉', 3, 4)
    assert reader().read_document(body) == body
    streamed = reader(include_usage=True)
    for payload in to_chunks(body, include_usage=True):
        assert streamed.read_event(b"", payload) == payload
    assert streamed.is_complete(done=False)


WHOLE = (
    b'{"id":"req-1","object":"chat.completion","created":17,"model":"m","unheard_of":[1.50, 2],'
    b'"choices":[{"index":0,"message":{"role":"assistant","content":"a\\u00e4","x":1e0},'
    b'"logprobs":{"content":[{"logprob":-0.50}]},"finish_reason":"stop"}],'
    b'"usage":{"total_tokens": 3}}'
)


def test_a_completion_becomes_one_chunk_with_everything_in_it() -> None:
    [payload] = to_chunks(WHOLE, include_usage=False)
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
    first, last = to_chunks(WHOLE, include_usage=True)
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
    [payload] = to_chunks(b'{"choices":[{"message":{}}]}', include_usage=True)
    assert json.loads(payload)["usage"] is None


def test_streamed_tool_calls_have_an_index() -> None:
    body = (
        b'{"choices":[{"message":{"content":null,"tool_calls":['
        b'{"id":"a","function":{"name":"f","arguments":"{\\"x\\": 1.0}"}},{"id":"b"}]}}]}'
    )
    [payload] = to_chunks(body, include_usage=False)
    [choice] = json.loads(payload)["choices"]
    first, second = choice["delta"]["tool_calls"]
    assert first == {
        "index": 0,
        "id": "a",
        "function": {"name": "f", "arguments": '{"x": 1.0}'},
    }
    assert second == {"index": 1, "id": "b"}
    assert b'{"name":"f","arguments":"{\\"x\\": 1.0}"}' in payload


def test_tool_calls_that_are_null_stay_null() -> None:
    [payload] = to_chunks(b'{"choices":[{"message":{"tool_calls":null}}]}', False)
    assert json.loads(payload)["choices"] == [{"index": 0, "delta": {"tool_calls": None}}]


def test_every_choice_crosses_and_has_an_index() -> None:
    body = b'{"choices":[{"message":{"content":"a"}},{"index":5,"message":{}},{"x":1}]}'
    [payload] = to_chunks(body, include_usage=False)
    assert json.loads(payload)["choices"] == [
        {"index": 0, "delta": {"content": "a"}},
        {"index": 5, "delta": {}},
        {"index": 2, "delta": {}, "x": 1},
    ]


@pytest.mark.parametrize(
    "message", [b"5", b"null", b"[]", b'{"tool_calls":5}', b'{"tool_calls":[5]}']
)
def test_a_message_that_is_not_valid_is_a_bad_reply(message: bytes) -> None:
    body = b'{"choices":[{"message":%b}]}' % message
    with pytest.raises(BadReply):
        to_chunks(reader().read_document(body), include_usage=False)


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
    payload, *_ = to_chunks(reader().read_document(body), include_usage=True)
    [half] = re.findall(rb"\\ud[0-9a-f]{3}", body)
    assert half in payload
