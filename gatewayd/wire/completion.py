"""Chat completions as documents: one is made into the chunks of a stream, or encoded.

What reads completions and chunks is in :mod:`.choices`.

Source: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

from . import json
from .errors import BadReply

COMPLETION = "chat.completion"
CHUNK = "chat.completion.chunk"


def to_chunks(body: bytes, include_usage: bool) -> list[bytes]:
    """The payloads of the stream that a chat completion makes: one chunk, then usage if asked for.

    Every member stays as it came, except these: ``object`` is that of a chunk, ``message`` becomes
    ``delta``, and tool calls get the ``index`` that they have in streams.

    :param body: a completion that was found good.
    :raises BadReply: a ``message`` is not valid.
    """
    halves = json.Halves.of(body)
    if halves is not None:  # msgspec refuses half of a surrogate pair
        payloads = to_chunks(halves.replaced, include_usage)
        return [halves.put_back(payload) for payload in payloads]
    fields = msgspec.json.decode(body, type=dict[str, Raw])
    usage = fields.pop("usage", None)
    choices = []
    for i, choice in enumerate(msgspec.json.decode(fields["choices"], type=list[dict[str, Raw]])):
        choices.append(
            {
                "index": choice.pop("index", i),
                "delta": _delta(choice.pop("message", None)),
                **choice,
            }
        )
    fields["object"] = Raw(msgspec.json.encode(CHUNK))
    chunk: dict[str, Any] = {**fields, "choices": choices}
    if not include_usage:
        return [msgspec.json.encode(chunk)]
    chunks = [msgspec.json.encode({**chunk, "usage": None})]
    if usage is not None:
        chunks.append(msgspec.json.encode({**fields, "choices": [], "usage": usage}))
    return chunks


def _delta(message: Raw | None) -> Any:
    """The ``delta`` that a ``message`` becomes; null if it is null."""
    try:
        delta: dict[str, Any] = msgspec.json.decode(message or b"{}", type=dict[str, Raw])
        if "tool_calls" in delta:
            calls = msgspec.json.decode(delta["tool_calls"], type=list[dict[str, Raw]] | None)
            if calls is not None:
                delta["tool_calls"] = [{"index": i, **c} for i, c in enumerate(calls)]
    except msgspec.ValidationError:
        raise BadReply("The backend sent a reply whose 'message' is not valid.") from None
    return delta


def encode(
    request_id: str, created: int, model: str, content: str, prompt_tokens: int, tokens: int
) -> bytes:
    """A chat completion with one finished choice, as JSON.

    :param created: seconds since 1970.
    :param tokens: of ``content``.
    """
    return msgspec.json.encode(
        {
            "id": request_id,
            "object": COMPLETION,
            "created": created,
            "model": model,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": content},
                    "finish_reason": "stop",
                }
            ],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": tokens,
                "total_tokens": prompt_tokens + tokens,
            },
        }
    )
