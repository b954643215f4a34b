"""The quick way of tokens: it gives what the careful way gives, or nothing."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gatewayd.wire import sse
from gatewayd.wire.completion import ChatReader
from gatewayd.wire.errors import GatewayError

LLAMA = (
    '{"choices":[{"finish_reason":null,"index":0,"delta":{"content":"%s"}}],"created":1700000000,'
    '"id":"chatcmpl-abc","model":"m","system_fingerprint":"b1","object":"chat.completion.chunk"}'
)
VLLM = (
    '{"id":"chatcmpl-abc","object":"chat.completion.chunk","created":1700000000,"model":"m",'
    '"choices":[{"index":0,"delta":{"content":"%s"},"logprobs":null,"finish_reason":null}]}'
)
OPENAI = (
    '{"id":"chatcmpl-abc","object":"chat.completion.chunk","created":1700000000,"model":"m",'
    '"service_tier":"default","system_fingerprint":null,"choices":[{"index":0,"delta":'
    '{"content":"%s"},"logprobs":null,"finish_reason":null}],"usage":null,"obfuscation":"x"}'
)
OLLAMA = (
    '{"id": "chatcmpl-7", "object": "chat.completion.chunk", "created": 1700000000, "model": "m", '
    '"system_fingerprint": "fp_ollama", "choices": [{"index": 0, "delta": {"role": "assistant", '
    '"content": "%s"}, "finish_reason": null}]}'
)
SHAPES = [LLAMA, VLLM, OPENAI, OLLAMA]


def segment(*payloads: str) -> bytes:
    return b"".join(b"data: %b\n\n" % payload.encode() for payload in payloads)


def reader(first: str, model: str | None = None, id: str | None = "mine") -> ChatReader:
    """One that has taken a first chunk with care."""
    made = ChatReader(id, False, 1, 64, model)
    made.take(b"", first.encode())
    return made


def carefully(read: ChatReader, *payloads: str) -> list[bytes]:
    taken = (read.take(b"", payload.encode()) for payload in payloads)
    return [sse.encode(crossing) for crossing in taken if crossing is not None]


@pytest.mark.parametrize("model", [None, "alias"])
@pytest.mark.parametrize("shape", SHAPES)
def test_tokens_as_servers_send_them_go_the_quick_way(shape: str, model: str | None) -> None:
    first, *tokens = (shape % text for text in ("", "a", " b", "é", "\\n", "\\u00e9", '\\"id\\"'))
    quick = reader(first, model).frames(segment(*tokens))
    assert quick == carefully(reader(first, model), *tokens)
    assert all(b'"mine"' in frame and b'abc"' not in frame for frame in quick or ())


def test_nothing_is_known_before_a_chunk_was_taken_with_care() -> None:
    assert ChatReader("mine", False, 1, 64).frames(segment(VLLM % "a")) is None


@pytest.mark.parametrize("ends", ["\n\n", "\r\n\r\n"])
def test_either_line_end_will_do(ends: str) -> None:
    tokens = "".join(f"data: {VLLM % text}{ends}" for text in "ab").encode()
    assert reader(VLLM % "").frames(tokens) == carefully(
        reader(VLLM % ""), VLLM % "a", VLLM % "b"
    )


CHOICE = '{"index":0,"delta":{"content":"a"},"logprobs":null,"finish_reason":null}'
FINISH = VLLM.replace('"finish_reason":null', '"finish_reason":"stop"')
UNUSUAL = {
    "cut": segment(VLLM % "a")[:-1],
    "cut amid": segment(VLLM % "a")[:-9],
    "a half line behind": segment(VLLM % "a") + b"data: {",
    "a comment": b": ping\n\n",
    "a comment before": b": ping\n\n" + segment(VLLM % "a"),
    "named": b"event: message\n" + segment(VLLM % "a"),
    "two lines of data": segment(VLLM % "a")[:-1] + b"data: \n\n",
    "a second line": segment(VLLM % "a")[:-1] + b"data: x\n",
    "CR alone": segment(VLLM % "a")[:-1] + b"\r",
    "without the space": segment(VLLM % "a").replace(b": ", b":", 1),
    "done": b"data: [DONE]\n\n",
    "done behind": segment(VLLM % "a") + b"data: [DONE]\n\n",
    "finished": segment(FINISH % "a"),
    "finished behind": segment(VLLM % "a", FINISH % "b"),
    "usage": segment((OPENAI % "a").replace('"usage":null', '"usage":{"prompt_tokens":1}')),
    "an error": segment((VLLM % "a")[:-1] + ',"error":{"message":"x"}}'),
    "another id": segment((VLLM % "a").replace("abc", "abd")),
    "another model": segment((VLLM % "a").replace('"m"', '"n"')),
    "no id": segment((VLLM % "a").replace('"id":"chatcmpl-abc",', "")),
    "a second id": segment((VLLM % "a")[:-1] + ',"id":"x"}'),
    "an id within": segment(VLLM.replace('"content":"%s"', '"tool_calls":[{"id":"x"}]')),
    "another choice": segment((VLLM % "a").replace('"index":0', '"index":1')),
    "choices that are none": segment((OPENAI % "a").replace(CHOICE, "")),
    "no choices": segment('{"id":"chatcmpl-abc","object":"chat.completion.chunk"}'),
    "not JSON": segment((VLLM % "a")[:-1]),
    "not closed": segment((VLLM % "a").replace("}", "", 1)),
    "not UTF-8": segment(VLLM % "a").replace(b'"a"', b'"\xff"'),
    "half an emoji": segment(VLLM % "\\ud83d"),
    "nothing": b"",
    "an empty line": b"\n",
}


@pytest.mark.parametrize("case", UNUSUAL)
def test_what_is_unusual_is_left_to_care(case: str) -> None:
    for shape in (VLLM, OPENAI):
        assert not reader(shape % "").frames(UNUSUAL[case])


def test_another_choice_goes_the_quick_way_once_it_is_known() -> None:
    read, other = reader(VLLM % ""), (VLLM % "a").replace('"index":0', '"index":1')
    read.take(b"", other.encode())
    assert read.frames(segment(other, VLLM % "b")) is not None


# Chunks of all sorts: members in any order, values that look like members, nested ids.
words = st.sampled_from([*"a]}{,:é\u2028", "", "id", '"id":"x"', "model"])
plain = words | st.none() | st.integers(0, 9) | st.booleans()
named = {"id": words, "model": words, "usage": st.none()}
extra = st.dictionaries(words, plain | st.lists(plain, max_size=2), max_size=3)


@st.composite
def chunks(draw: st.DrawFn) -> str:
    choice = {"index": draw(st.integers(0, 1)), "delta": draw(extra), "finish_reason": None}
    members: dict[str, Any] = {
        "choices": [choice] * draw(st.integers(0, 2)),
        **draw(extra),
        **draw(st.fixed_dictionaries({}, optional=named)),
    }
    order = draw(st.permutations(list(members)))
    spaced = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,", " :")]))
    document = {key: members[key] for key in order}
    return json.dumps(document, ensure_ascii=draw(st.booleans()), separators=spaced)


@settings(max_examples=600)
@given(st.lists(chunks(), min_size=1, max_size=3), chunks(), st.booleans(), st.booleans())
@example([VLLM % "a"], VLLM % "", True, True)
def test_the_quick_way_gives_what_the_careful_way_gives(
    following: list[str], first: str, alias: bool, same_around: bool
) -> None:
    """Whatever the chunks are; half of the time the following are like the first."""
    if same_around:
        contents = [json.loads(chunk)["choices"] for chunk in following]
        following = [
            json.dumps({**json.loads(first), "choices": c}, separators=(",", ":")) for c in contents
        ]
        first = json.dumps(json.loads(first), separators=(",", ":"))
    model = "alias" if alias else None
    try:
        quick = reader(first, model).frames(segment(*following))
    except GatewayError:
        return  # the first was none
    if quick is not None:
        assert quick == carefully(reader(first, model), *following)
