"""The echo, which answers when no backend is configured."""

from __future__ import annotations

import json
import time

import pytest

from gatewayd.backend.echo import approximate_tokens
from tests.memory import Answer, echo_gateway


def test_the_echo_answers_with_the_last_user_message() -> None:
    answer = Answer(echo_gateway().chat(model="any"))
    reply = answer.json
    usage = reply.pop("usage")
    assert reply.pop("created") == pytest.approx(time.time(), abs=60)
    assert reply == {
        "id": "req-1",
        "object": "chat.completion",
        "model": "any",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Echo: hi"},
                "finish_reason": "stop",
            }
        ],
    }
    assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"] > 0


@pytest.mark.parametrize("usage", [False, True])
def test_the_echo_streams_one_chunk_and_usage_if_asked(usage: bool) -> None:
    client = echo_gateway().chat(stream=True, stream_options={"include_usage": usage})
    *chunks, done = Answer(client).payloads
    assert done == b"[DONE]" and len(chunks) == 1 + usage
    first = json.loads(chunks[0])
    assert first["id"] == "req-1" and first["model"] == "echo"
    assert first["choices"][0]["delta"]["content"] == "Echo: hi"
    assert first["choices"][0]["finish_reason"] == "stop"
    assert not usage or json.loads(chunks[1])["choices"] == []


def test_the_echo_needs_a_user_message() -> None:
    answer = Answer(echo_gateway().chat(messages=[{"role": "system", "content": "x"}]))
    assert (answer.status, answer.json["error"]["param"]) == (400, "messages")


def test_the_echo_has_only_chat_completions() -> None:
    assert Answer(echo_gateway().post("/v1/embeddings", input="hi")).status == 404


@pytest.mark.parametrize(
    ("text", "tokens"), [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2), ("\u00e9" * 3, 2)]
)
def test_tokens_are_approximated_by_bytes(text: str, tokens: int) -> None:
    assert approximate_tokens(text) == tokens
