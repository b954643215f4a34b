"""Chat completions: what the gateway must know of a request, a completion and a chunk.

Everything else in them belongs to the client and the backend, and crosses as it came.

Source: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

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

    path: ClassVar[str] = "/v1/chat/completions"
    content_type: ClassVar[bytes] = b"application/json"

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
        fields = parse_object(body, depth)
        options = fields.get("stream_options")
        n = fields.get("n")
        return cls(
            body=body,
            messages=_messages(fields),
            model=check_model(fields.get("model")),
            stream=check_flag(fields.get("stream"), "stream"),
            include_usage=isinstance(options, dict) and options.get("include_usage") is True,
            choices=int(n) if isinstance(n, (int, float)) and 1 <= n <= 1024 else 1,
        )

    def reader(self, request_id: str, depth: int, model: str | None) -> ChatReader:
        """What reads the reply to this request; ``model`` is the name to put into it, if any."""
        return ChatReader(request_id, self.include_usage, self.choices, depth, model)

    def prompt(self) -> str:
        """The last user message: its text, or its text parts joined by newlines.

        :raises InvalidValue: when there is none.
        """
        for message in reversed(self.messages):
            if message["role"] == "user":
                return _text_of(message.get("content"))
        raise InvalidValue("'messages' has no message with role 'user'.", param="messages")


def parse_object(body: bytes, depth: int) -> dict[str, Any]:
    """Read a request body that must be a JSON object, strictly.

    :raises InvalidJSON: it is not, or two parsers could differ about it.
    """
    try:
        fields = json.parse(body, depth)
    except json.NotJSON as e:
        raise InvalidJSON(f"The request body is not valid JSON: {e}.") from None
    if not isinstance(fields, dict):
        raise InvalidJSON("The request body must be a JSON object.")
    return fields


def with_model(body: bytes, model: str) -> bytes:
    """A request body that was found good, asking for another model."""
    old = msgspec.json.decode(body, type=_Asked).model
    return json.replace_member(body, "model", bytes(old), _quoted(model))


def with_usage(body: bytes) -> bytes:
    """A request body that was found good, asking for ``stream_options.include_usage``."""
    options = msgspec.json.decode(body, type=_Asked).stream_options
    if options is UNSET or bytes(options) == b"null":
        old = None if options is UNSET else bytes(options)
        return json.replace_member(body, "stream_options", old, b'{"include_usage":true}')
    if not bytes(options).startswith(b"{"):
        return body  # the backend's to judge
    fields = msgspec.json.decode(options, type=dict[str, Raw])
    fields["include_usage"] = Raw(b"true")
    return json.replace_member(body, "stream_options", bytes(options), msgspec.json.encode(fields))


class _Asked(msgspec.Struct):
    model: Raw = Raw(b"null")
    stream_options: Raw | UnsetType = UNSET


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


def check_model(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise InvalidValue("'model' must be a string that is not empty.", param="model")
    if len(value) > MAX_MODEL:
        raise InvalidValue(f"'model' is longer than {MAX_MODEL} characters.", param="model")
    if not value.isprintable() or ".." in value.split("/"):
        raise InvalidValue("'model' has characters that no model name has.", param="model")
    return value


def check_flag(value: Any, name: str) -> bool:
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
    model: Raw | UnsetType = UNSET
    choices: list[_Choice] | UnsetType | None = UNSET
    usage: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET


_DECODER = msgspec.json.Decoder(_Reply)

_FIRST_ID = re.compile(rb'\{\s*"id"\s*:\s*("[^"\\]*")')

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
        raise reported(payload)
    return reply


def reported(payload: bytes) -> BackendFailed:
    """The error that a backend put where a reply belongs; llama.cpp gives a status as its code."""
    if not is_envelope(payload):
        return BackendFailed("The backend reported an error without saying which.")
    code = msgspec.json.decode(payload)["error"].get("code")
    known = isinstance(code, int) and 400 <= code < 500 and code not in (401, 403)
    return BackendFailed("The backend reported an error.", payload, code if known else 502)


class Usage(msgspec.Struct, frozen=True):
    """Tokens as a backend counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


_USAGE = msgspec.json.Decoder(Usage | None)


class ChatReader:
    """Reads one reply, whole or streamed, and knows whether it is all of it.

    :param request_id: replaces the ``id`` of the completion or of each chunk; None leaves it.
    :param include_usage: whether the client asked for the usage chunk.
    :param choices: how many choices the client asked for.
    :param model: replaces ``model``, where the client knows it by another name.
    """

    #: The end of the stream is the event ``[DONE]``.
    by_done = True

    def __init__(
        self,
        request_id: str | None,
        include_usage: bool,
        choices: int,
        depth: int,
        model: str | None = None,
    ) -> None:
        self._id = None if request_id is None else _quoted(request_id)
        self._model = None if model is None else _quoted(model)
        self._include_usage = include_usage
        self._depth = depth
        self._seen = set(range(choices))
        self._finished: set[int] = set()
        self._blank: set[int] = set()
        self._prefix = self._new_prefix = b""
        self.started = False
        self.usage: Usage | None = None

    def whole(self, body: bytes) -> bytes:
        """Judge a whole completion; return it as the client shall have it.

        :raises BackendFailed, BadReply: it is no completion.
        """
        reply = _read(body, self._depth, "a reply")
        if not reply.choices:
            raise BadReply("The backend sent a reply without 'choices'.")
        self._count(reply)
        return self._named(body, reply)

    def as_stream(self, body: bytes) -> list[bytes]:
        """The payloads of the stream that a whole completion (from :meth:`whole`) makes."""
        return completion_to_chunks(body, self._include_usage)

    def take(self, name: bytes, payload: bytes) -> bytes | None:
        """Judge the next payload; return it as the client shall have it, None to leave it out.

        :raises BackendFailed, BadReply: the stream ends here.
        """
        try:  # the quick way for a token; whatever is wrong with it, the careful one will say
            reply = _DECODER.decode(payload) if payload.isascii() else None
        except (msgspec.DecodeError, RecursionError):
            reply = None
        if reply is None or reply.error is not UNSET:
            reply = _read(payload, self._depth, "an event")
        self.started = True
        for choice in reply.choices or ():
            if choice.finish_reason is None:
                if choice.index not in self._seen:
                    self._seen.add(choice.index)
                continue
            self._seen.add(choice.index)
            if choice.finish_reason:
                self._finished.add(choice.index)
            else:
                self._blank.add(choice.index)
        if reply.usage is not UNSET:
            self._count(reply)
            if not reply.choices and not self._include_usage:
                return None  # a usage chunk that this client did not ask for
        return self._named(payload, reply)

    def complete(self, done: bool) -> bool:
        """Whether every choice was finished.

        :param done: the backend said ``[DONE]``. Alone that proves nothing (vLLM says it after an
            error too), but it lets a ``finish_reason`` of ``""`` count, which Ollama has sent.
        """
        return self._seen <= (self._finished | self._blank if done else self._finished)

    def _named(self, payload: bytes, reply: _Reply) -> bytes:
        if self._id is not None:
            # Most servers begin every chunk with the same id.
            if self._prefix and payload.startswith(self._prefix) and payload.count(b'"id"') == 1:
                payload = self._new_prefix + payload[len(self._prefix) :]
            else:
                payload = self._with_id(payload, reply)
        if self._model is not None and reply.model is not UNSET:
            payload = json.replace_member(payload, "model", bytes(reply.model), self._model)
        return payload

    def _with_id(self, payload: bytes, reply: _Reply) -> bytes:
        assert self._id is not None
        old = None if reply.id is UNSET else bytes(reply.id)
        if old is not None and (match := _FIRST_ID.match(payload)) and match[1] == old:
            self._prefix = match[0]
            self._new_prefix = match[0][: -len(old)] + self._id
        return json.replace_member(payload, "id", old, self._id)

    def _count(self, reply: _Reply) -> None:
        if reply.usage is not UNSET:
            try:
                self.usage = _USAGE.decode(reply.usage) or self.usage
            except msgspec.ValidationError:
                return  # what cannot be counted is still the client's


def completion_to_chunks(body: bytes, include_usage: bool) -> list[bytes]:
    """Turn a whole completion into the payloads of a stream: one chunk, and usage if asked for.

    Every member crosses as it came; only ``object``, ``message`` -> ``delta`` and the ``index``
    that streamed tool calls carry are made here.
    """
    halves = json.Halves.of(body)
    if halves is not None:  # half an emoji, say: msgspec lets none pass
        payloads = completion_to_chunks(halves.replaced, include_usage)
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
    try:
        delta: dict[str, Any] = msgspec.json.decode(message or b"{}", type=dict[str, Raw])
        if "tool_calls" in delta:
            calls = msgspec.json.decode(delta["tool_calls"], type=list[dict[str, Raw]] | None)
            if calls is not None:
                delta["tool_calls"] = [{"index": i, **c} for i, c in enumerate(calls)]
    except msgspec.ValidationError:
        raise BadReply("The backend sent a reply whose 'message' is not valid.") from None
    return delta


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
