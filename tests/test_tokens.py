"""The fast path of tokens: it gives what decoding gives, or nothing."""

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatewayd.wire import sse
from gatewayd.wire.choices import ChatReader
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
THOUGHT = OLLAMA.replace('"content": "%s"', '"content": "", "reasoning": "%s"')
CALL = VLLM.replace(
    '"content":"%s"', '"tool_calls":[{"index":0,"id":"x","function":{"arguments":"%s"}}]'
)
COMPLETION = VLLM.replace('"delta":{"content":"%s"}', '"text":"%s"')
PROBABLE = VLLM.replace('"logprobs":null', '"logprobs":{"content":[]}')
SHAPES = [LLAMA, VLLM, OPENAI, OLLAMA, THOUGHT, CALL, COMPLETION, PROBABLE]


def segment(*payloads: str) -> bytes:
    return b"".join(b"data: %b\n\n" % payload.encode() for payload in payloads)


def reader(first: str, model: str | None = None, id: str | None = "mine") -> ChatReader:
    """A reader that has decoded a first chunk."""
    made = ChatReader(id, False, 1, 64, model)
    made.read_event(b"", first.encode())
    return made


def decoded(read: ChatReader, *payloads: str) -> list[bytes]:
    taken = (read.read_event(b"", payload.encode()) for payload in payloads)
    return [sse.encode(crossing) for crossing in taken if crossing is not None]


@pytest.mark.parametrize("model", [None, "alias"])
@pytest.mark.parametrize("shape", SHAPES)
def test_tokens_as_servers_send_them_take_the_fast_path(shape: str, model: str | None) -> None:
    texts = ("a", "b", " c", "é", "\\n", "\\u00e9", '\\"id\\":\\"x\\"', "}]}", "\\\\", "\\ud83d")
    first, *tokens = (shape % text for text in texts)
    fast = reader(first, model).frames(segment(*tokens))
    assert fast == decoded(reader(first, model), *tokens)
    assert all(b'"mine"' in frame and b'abc"' not in frame for frame in fast or ())


def test_the_fast_path_needs_a_chunk_that_was_decoded() -> None:
    nothing_yet = ChatReader("mine", False, 1, 64)
    assert nothing_yet.frames(segment(VLLM % "a")) is None
    nothing_yet.read_event(b"", (VLLM % "").encode())  # it has no text, so nothing is learned
    assert nothing_yet.frames(segment(VLLM % "a")) is None


@pytest.mark.parametrize("ends", ["\n\n", "\r\n\r\n"])
def test_both_line_ends_are_accepted(ends: str) -> None:
    tokens = "".join(f"data: {VLLM % text}{ends}" for text in "ab").encode()
    assert reader(VLLM % "x").frames(tokens) == decoded(reader(VLLM % "x"), VLLM % "a", VLLM % "b")


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
    "no text": segment(VLLM % ""),
    "no text behind": segment(VLLM % "a", VLLM % ""),
    "text that is null": segment(VLLM.replace('"%s"', "null")),
    "a quote": segment(VLLM % '"'),
    "a text that does not end": segment(VLLM % "\\"),
    "an escape that is none": segment(VLLM % "\\x"),
    "half an escape": segment(VLLM % "\\u00e"),
    "a tab": segment(VLLM % "\t"),
    "an escaped id": segment((VLLM % "a")[:-1] + ',"\\u0069d":"x"}'),
    "an escaped id in front": segment('{"\\u0069d":"x",' + (VLLM % "a")[1:]),
    "a deep one": segment(VLLM.replace('"%s"', "[" * 70 + "]" * 70)),
    "nothing": b"",
    "an empty line": b"\n",
}


@pytest.mark.parametrize("case", UNUSUAL)
def test_an_unusual_event_does_not_take_the_fast_path(case: str) -> None:
    for shape in (VLLM, OPENAI):
        assert not reader(shape % "x").frames(UNUSUAL[case])


@pytest.mark.parametrize(
    "odd",
    [
        '{"\\u0069d":"chatcmpl-abc","choices":[{"index":0,"delta":{"content":"%s"}}]}',
        '{"choices":[{"index":0,"delta":{"content":"%s"}}],"model":"m","id":"a","id":"b"}',
        '{"choices":[{"index":0,"delta":{"content":"%s"}}],"x":{"model":"m","id":"b"}}',
    ],
)
def test_an_odd_spelling_in_each_chunk_gives_what_decoding_gives(odd: str) -> None:
    fast = reader(odd % "x", "alias").frames(segment(odd % "a", odd % "b"))
    assert fast == decoded(reader(odd % "x", "alias"), odd % "a", odd % "b")


def test_the_limit_of_depth_holds_on_the_fast_path() -> None:
    """A chunk as deep as the limit is learned. A deeper one does not match it."""
    at_limit = VLLM.replace('"logprobs":null', '"logprobs":' + "[" * 61 + "]" * 61)
    deeper = at_limit.replace("[]", "[[]]")
    read = reader(at_limit % "x")
    assert read.frames(segment(at_limit % "a")) and not read.frames(segment(deeper % "a"))
    with pytest.raises(GatewayError):
        read.read_event(b"", (deeper % "a").encode())


def test_another_choice_takes_the_fast_path_once_it_was_decoded() -> None:
    read, other = reader(VLLM % "x"), VLLM.replace('"index":0', '"index":1')
    assert read.frames(segment(other % "a")) is None
    read.read_event(b"", (other % "a").encode())
    tokens = other % "b", VLLM % "b"
    assert read.frames(segment(*tokens)) == decoded(read, *tokens)


def test_few_kinds_of_chunks_are_remembered() -> None:
    kinds = [VLLM.replace('"index":0', f'"index":{index}') for index in range(20)]
    read = reader(kinds[0] % "x")
    for kind in kinds[1:]:
        read.read_event(b"", (kind % "x").encode())
    known = [kind for kind in kinds if read.frames(segment(kind % "a"))]
    assert known == kinds[-8:]


def test_a_long_text_that_does_not_match_takes_linear_time() -> None:
    read, long = reader(VLLM % "x"), "a\\n" * 200_000
    began = time.process_time()
    for end in ("\\x", '"', "\t"):
        assert read.frames(segment(VLLM % (long + end))) is None
    assert time.process_time() - began < 1


# Chunks of all sorts: members in any order, values that look like members, nested ids.
words = st.sampled_from([*"a]}{,:é\u2028", "", "id", '"id":"x"', "model"])
plain = words | st.none() | st.integers(0, 9) | st.booleans()
named = {"id": words, "model": words, "usage": st.none()}
extra = st.dictionaries(words, plain | st.lists(plain, max_size=2), max_size=3)


@st.composite
def chunks(draw: st.DrawFn) -> dict[str, Any]:
    delta = draw(extra | st.fixed_dictionaries({"content": words}) | st.just({"content": "a"}))
    choice = {"index": draw(st.integers(0, 1)), "delta": delta, "finish_reason": None}
    members: dict[str, Any] = {
        "choices": [choice] * draw(st.sampled_from([1, 1, 1, 0, 2])),
        **draw(extra),
        **draw(st.fixed_dictionaries({}, optional=named)),
    }
    return {key: members[key] for key in draw(st.permutations(list(members)))}


def like(chunk: dict[str, Any], text: str) -> dict[str, Any]:
    """The chunk with another text in its choices."""
    choices = [{**c, "delta": {**c["delta"], "content": text}} for c in chunk["choices"]]
    return {**chunk, "choices": choices}


@settings(max_examples=600)
@given(
    first=chunks(),
    others=st.lists(chunks(), min_size=1, max_size=3),
    texts=st.lists(words, min_size=1, max_size=3),
    alias=st.booleans(),
    ascii=st.booleans(),
    spaced=st.sampled_from([(",", ":"), (", ", ": "), (" ,", " :")]),
)
def test_the_fast_path_gives_what_decoding_gives(
    first: dict[str, Any],
    others: list[dict[str, Any]],
    texts: list[str],
    alias: bool,
    ascii: bool,
    spaced: tuple[str, str],
) -> None:
    """For any chunks. Only those that differ from the first in their text alone match."""

    def spelled(chunk: dict[str, Any]) -> str:
        return json.dumps(chunk, ensure_ascii=ascii, separators=spaced)

    model = "alias" if alias else None
    for following in (others, [like(first, text) for text in texts]):
        try:
            fast = reader(spelled(first), model).frames(segment(*map(spelled, following)))
        except GatewayError:
            return  # the first was no chunk
        if fast is not None:
            assert fast == decoded(reader(spelled(first), model), *map(spelled, following))
    if len(first["choices"]) == 1 and first["choices"][0]["delta"].get("content") and all(texts):
        assert fast is not None
