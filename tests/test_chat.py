"""What the gateway reads of requests for chats and completions, and what it leaves alone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gatewayd.wire.chat import ChatCall
from gatewayd.wire.choices import MAX_CHOICES
from gatewayd.wire.errors import InvalidValue
from tests.memory import Answer, FakeBackend, Gateway
from tests.replies import CHAT, COMPLETIONS, endpoint

DEPTH = 64

MESSAGES: Any = [{"role": "user", "content": "hi"}]


def parsed(body: bytes) -> ChatCall:
    return ChatCall.parse(endpoint(CHAT), body, b"", DEPTH)


def request(**fields: Any) -> ChatCall:
    """Parse a request with these fields, and with good messages unless they have others."""
    return parsed(json.dumps({"messages": MESSAGES, **fields}).encode())


def blamed(**fields: Any) -> str | None:
    """The ``param`` with which a request with these fields is refused."""
    with pytest.raises(InvalidValue) as caught:
        request(**fields)
    assert len(caught.value.message) < 200
    return caught.value.param


def test_messages_must_not_be_missing() -> None:
    with pytest.raises(InvalidValue) as caught:
        parsed(b'{"model":"a"}')
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
def test_the_message_that_is_not_valid_is_named(messages: Any, param: str) -> None:
    assert blamed(messages=messages) == param


def test_only_include_usage_true_asks_for_usage() -> None:
    assert request(stream_options={"include_usage": True}).include_usage
    others: list[Any] = [None, {}, {"include_usage": False}, {"include_usage": 1}, "yes", []]
    for options in others:
        assert not request(stream_options=options).include_usage
    assert not request().include_usage


@pytest.mark.parametrize(
    ("n", "choices"),
    [(3, 3), (1, 1), (None, 1), (0, 1), (-2, 1), ("2", 1), (True, 1), (2.0, 2), (4096, 4096)],
)
def test_n_is_read_as_backends_read_it(n: Any, choices: int) -> None:
    assert request(n=n, stream=True).choices == choices


@pytest.mark.parametrize("n", [4097, 1e300, 10**300])
def test_a_stream_of_too_many_choices_is_refused(n: Any) -> None:
    assert blamed(n=n, stream=True) == "n"
    assert request(n=n).choices == 1  # not a stream: the backend judges it


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
def test_members_that_only_the_backend_reads_stay_byte_for_byte(body: bytes) -> None:
    assert parsed(body).body == body


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


def test_a_stream_of_too_many_prompts_is_refused() -> None:
    backend = FakeBackend()
    gateway = Gateway(backend)
    prompts = ["x"] * 1000
    for n, good in ((MAX_CHOICES // 1000, True), (1024, False)):
        client = gateway.post(COMPLETIONS, stream=True, n=n, prompt=prompts)
        assert bool(client.value()) is not good
    assert (Answer(client).status, Answer(client).json["error"]["param"]) == (400, "prompt")
    gateway.post(COMPLETIONS, n=1024, prompt=prompts)
    assert len(backend.calls) == 2  # not a stream: the backend judges it
