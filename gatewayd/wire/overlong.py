"""Errors with which servers say that a prompt is too long for a model.

Sources, as the servers send them with status 400: OpenAI's ``code``; the ``type`` of llama.cpp's
server, which Ollama passes on; vLLM's ``param`` (since 2025). Older vLLM, Anthropic, SGLang and
Ollama's embeddings say it only in the message.
"""

from __future__ import annotations

import re
from typing import Any

from .errors import BackendFailed
from .json import parse

_CODE = "context_length_exceeded"
_TYPE = "exceed_context_size_error"
_PARAM = "input_tokens"
_MESSAGE = re.compile(
    r"maximum context length is \d"  # vLLM, and OpenAI together with the code
    r"|^prompt is too long: \d"  # Anthropic
    r"|is longer than the model's context length"  # SGLang
    r"|input length exceeds the context length"  # Ollama
)


def says_prompt_too_long(problem: BackendFailed) -> bool:
    """Whether the error says that another model, with a longer context, could take the prompt."""
    if not 400 <= problem.status < 500 or problem.status == 429:
        return False
    if problem.payload is None:
        return _MESSAGE.search(f"{problem.message} {problem.detail}") is not None
    error: dict[str, Any] = parse(problem.payload, 64)["error"]
    if error.get("code") == _CODE or error.get("type") == _TYPE or error.get("param") == _PARAM:
        return True
    message = error.get("message")
    return isinstance(message, str) and _MESSAGE.search(message) is not None
