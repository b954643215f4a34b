"""Which errors say that a prompt is too long for a model. The bodies are those of real servers."""

from __future__ import annotations

import json

import pytest

from gatewayd.wire.errors import BackendFailed
from gatewayd.wire.failure import error_of_reply
from gatewayd.wire.overlong import says_prompt_too_long

LLAMA = {
    "error": {
        "code": 400,
        "message": "request (4476 tokens) exceeds the available context size (4096 tokens)",
        "type": "exceed_context_size_error",
        "n_prompt_tokens": 4476,
        "n_ctx": 4096,
    }
}
OPENAI = {
    "error": {
        "message": "Your input exceeds the context window of this model.",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "context_length_exceeded",
    }
}
VLLM = {
    "error": {
        "message": "The decoder prompt is too long.",
        "type": "BadRequestError",
        "param": "input_tokens",
        "code": 400,
    }
}
OLD_VLLM = {
    "object": "error",
    "message": "This model's maximum context length is 200 tokens. However, your request has 203.",
    "type": "BadRequestError",
    "param": None,
    "code": 400,
}
ANTHROPIC = {
    "type": "error",
    "error": {
        "type": "invalid_request_error",
        "message": "prompt is too long: 208310 tokens > 200000 maximum",
    },
}
SGLANG = {
    "object": "error",
    "message": "The input (600 tokens) is longer than the model's context length (512 tokens).",
    "type": "BadRequestError",
    "code": 400,
}
OLLAMA = {"error": "the input length exceeds the context length"}


def error(document: object, status: int = 400) -> BackendFailed:
    return error_of_reply(json.dumps(document).encode(), status, (), "")


@pytest.mark.parametrize(
    "document", [LLAMA, OPENAI, VLLM, OLD_VLLM, ANTHROPIC, SGLANG, OLLAMA], ids=str
)
def test_each_server_says_it_in_its_own_way(document: object) -> None:
    assert says_prompt_too_long(error(document))
    assert not says_prompt_too_long(error(document, 500))
    assert not says_prompt_too_long(error(document, 429))


@pytest.mark.parametrize(
    "document",
    [
        {"error": {"message": "context_length_exceeded", "code": None}},
        {"error": {"message": "messages is too long", "code": "string_above_max_length"}},
        {"error": {"message": "no", "type": "invalid_request_error", "param": "messages"}},
        {"error": {"message": "The name is too long.", "code": 400}},
        {"error": "model not found"},
        {"detail": [{"loc": ["body"], "msg": "prompt is too long: no"}]},
        [],
    ],
    ids=str,
)
def test_other_errors_do_not(document: object) -> None:
    assert not says_prompt_too_long(error(document))
