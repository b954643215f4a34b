"""Chat completions: what the gateway must know of a request, a completion and a chunk.

Everything else in them belongs to the client and the backend, and crosses as it came.

Source: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from typing import Any

import attrs
import msgspec
from msgspec import UNSET, Raw, UnsetType

from . import json
from .errors import BackendFailed, BadReply, InvalidJSON, InvalidValue, is_envelope

MAX_MODEL = 256

COMPLETION = "chat.completion"
CHUNK = "chat.completion.chunk"


# -- the request ---------------------------------------------------------------------------------


@attrs.frozen
class ChatRequest:
    """A chat request that was found good.

    ``body`` is what the client sent, byte for byte; the rest was read from it.
    """

    body: bytes = attrs.field(repr=False)
    messages: list[dict[str, Any]] = attrs.field(repr=False)
    model: str | None
    stream: bool
    include_usage: bool
    choices: int

    @classmethod
    def parse(cls, body: bytes, depth: int) -> ChatRequest:
        """Read and check a request body.

        :param depth: how many levels of JSON may nest.
        :raises InvalidJSON: when two parsers could differ about it.
        :raises InvalidValue: naming the field in ``param``.
        """
        try:
            fields = json.parse(body, depth)
        except json.NotJSON as e:
            raise InvalidJSON(f"The request body is not valid JSON: {e}.") from None
        if not isinstance(fields, dict):
            raise InvalidJSON("The request body must be a JSON object.")
        options = fields.get("stream_options")
        n = fields.get("n")
        return cls(
            body=body,
            messages=_messages(fields),
            model=_model(fields.get("model")),
            stream=_flag(fields.get("stream"), "stream"),
            include_usage=isinstance(options, dict) and options.get("include_usage") is True,
            choices=int(n) if isinstance(n, float) and 1 <= n <= 1024 else 1,
        )

    def prompt(self) -> str:
        """The last user message: its text, or its text parts joined by newlines.

        :raises InvalidValue: when there is none.
        """
        for message in reversed(self.messages):
            if message["role"] == "user":
                return _text_of(message.get("content"))
        raise InvalidValue("'messages' has no message with role 'user'.", param="messages")


def _messages(fields: dict[str, Any]) -> list[dict[str, Any]]:
    if "messages" not in fields:
        raise InvalidValue("'messages' is missing: a list of messages is needed.", param="messages")
    messages = fields["messages"]
    if not isinstance(messages, list) or not messages:
        raise InvalidValue("'messages' must be a list with at least one message.", param="messages")
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InvalidValue(f"'messages[{i}]' must be an object.", param=f"messages[{i}]")
        if not isinstance(message.get("role"), str):
            raise InvalidValue(
                f"'messages[{i}].role' must be a string.", param=f"messages[{i}].role"
            )
    return messages


def _model(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise InvalidValue("'model' must be a string that is not empty.", param="model")
    if len(value) > MAX_MODEL:
        raise InvalidValue(f"'model' is longer than {MAX_MODEL} characters.", param="model")
    if not value.isprintable() or ".." in value.split("/"):
        raise InvalidValue("'model' has characters that no model name has.", param="model")
    return value


def _flag(value: Any, name: str) -> bool:
    if value is not None and not isinstance(value, bool):
        raise InvalidValue(f"'{name}' must be true or false.", param=name)
    return bool(value)


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [p.get("text") for p in parts if isinstance(p, dict) and p.get("type") == "text"]
    return "\n".join(t for t in texts if isinstance(t, str))


# -- the reply -----------------------------------------------------------------------------------


class _Choice(msgspec.Struct):
    index: int = 0
    finish_reason: str | None = None


class _Reply(msgspec.Struct):
    """The few fields of a completion or chunk that decide how it is relayed."""

    id: Raw | UnsetType = UNSET
    choices: list[_Choice] | UnsetType | None = UNSET
    usage: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET


_NOTHING = (b"null", b"false", b"{}", b"[]", b'""', b"0")


def _read(payload: bytes, depth: int, what: str) -> _Reply:
    """Decode a payload far enough to judge it.

    :raises BackendFailed: it is an error in place of a reply.
    :raises BadReply: it cannot be understood.
    """
    try:
        reply = json.decode(payload, _Reply, depth)
    except json.NotJSON as e:
        raise BadReply(f"The backend sent {what} that is not valid: {e}.") from None
    if reply.error is not UNSET and bytes(reply.error) not in _NOTHING:
        raise _reported(payload)
    return reply


def _reported(payload: bytes) -> BackendFailed:
    """The error that a backend put where a reply belongs; llama.cpp gives a status as its code."""
    if not is_envelope(payload):
        return BackendFailed("The backend reported an error without saying which.")
    code = msgspec.json.decode(payload)["error"].get("code")
    known = isinstance(code, int) and 400 <= code < 500 and code not in (401, 403)
    return BackendFailed("The backend reported an error.", payload, code if known else 502)


def _with_id(payload: bytes, reply: _Reply, id: bytes) -> bytes:
    old = None if reply.id is UNSET else bytes(reply.id)
    return json.replace_member(payload, "id", old, id)


def check_completion(body: bytes, request_id: str, depth: int) -> bytes:
    """Judge a backend's whole completion; return it with ``id`` replaced, otherwise as it came.

    :raises BackendFailed, BadReply: it is no completion.
    """
    reply = _read(body, depth, "a reply")
    if not reply.choices:
        raise BadReply("The backend sent a reply without 'choices'.")
    return _with_id(body, reply, _quoted(request_id))


def completion_to_chunks(body: bytes, include_usage: bool) -> list[bytes]:
    """Turn a whole completion into the payloads of a stream: one chunk, and usage if asked for.

    Every member crosses as it came; only ``object``, ``message`` -> ``delta`` and the ``index``
    that streamed tool calls carry are made here.
    """
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
    try:
        delta: dict[str, Any] = msgspec.json.decode(message or b"{}", type=dict[str, Raw])
        if "tool_calls" in delta:
            calls = msgspec.json.decode(delta["tool_calls"], type=list[dict[str, Raw]] | None)
            if calls is not None:
                delta["tool_calls"] = [{"index": i, **c} for i, c in enumerate(calls)]
    except msgspec.ValidationError:
        raise BadReply("The backend sent a reply whose 'message' is not valid.") from None
    return delta


class ChatStream:
    """Follows the payloads of one streamed reply and knows whether they make a whole one.

    :param request_id: replaces each chunk's ``id``.
    :param choices: how many choices the client asked for.
    """

    def __init__(self, request_id: str, include_usage: bool, choices: int, depth: int) -> None:
        self._id = _quoted(request_id)
        self._include_usage = include_usage
        self._depth = depth
        self._seen = set(range(choices))
        self._finished: set[int] = set()
        self._blank: set[int] = set()
        self.started = False

    def take(self, payload: bytes) -> bytes | None:
        """Judge the next payload; return it as the client shall have it, None to leave it out.

        :raises BackendFailed, BadReply: the stream ends here.
        """
        reply = _read(payload, self._depth, "an event")
        self.started = True
        for choice in reply.choices or ():
            self._seen.add(choice.index)
            if choice.finish_reason:
                self._finished.add(choice.index)
            elif choice.finish_reason == "":
                self._blank.add(choice.index)
        if not reply.choices and reply.usage is not UNSET and not self._include_usage:
            return None  # a usage chunk that nobody asked for
        return _with_id(payload, reply, self._id)

    def complete(self, done: bool) -> bool:
        """Whether every choice was finished.

        :param done: the backend said ``[DONE]``. Alone that proves nothing (vLLM says it after an
            error too), but it lets a ``finish_reason`` of ``""`` count, which Ollama has sent.
        """
        return self._seen <= (self._finished | self._blank if done else self._finished)


# -- made here -----------------------------------------------------------------------------------


def completion(
    request_id: str, created: int, model: str, content: str, prompt_tokens: int, tokens: int
) -> bytes:
    """Encode a completion of one finished choice."""
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


def _quoted(text: str) -> bytes:
    return msgspec.json.encode(text)
