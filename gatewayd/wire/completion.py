"""Completions and their chunks: whether a reply is one, is whole, and how it crosses.

Everything else in them belongs to the client and the backend, and crosses as it came.

Source: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from . import json
from .errors import BackendFailed, BadReply, is_envelope
from .tokens import Frames

COMPLETION = "chat.completion"
CHUNK = "chat.completion.chunk"


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
        self._id = None if request_id is None else msgspec.json.encode(request_id)
        self._model = None if model is None else msgspec.json.encode(model)
        self._include_usage = include_usage
        self._depth = depth
        self._seen = set(range(choices))
        self._finished: set[int] = set()
        self._blank: set[int] = set()
        changed = (("id", request_id), ("model", model))
        tokens = Frames([name for name, value in changed if value is not None], self._seen)
        self._learn = tokens.learn
        #: The quick way: what crosses for a segment of usual tokens, each framed as an event. None
        #: where they are not for certain: :meth:`take` says what they are.
        self.frames = tokens.frames
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
        crossing = self._named(payload, reply)
        self._learn(payload, crossing)
        return crossing

    def complete(self, done: bool) -> bool:
        """Whether every choice was finished.

        :param done: the backend said ``[DONE]``. Alone that proves nothing (vLLM says it after an
            error too), but it lets a ``finish_reason`` of ``""`` count, which Ollama has sent.
        """
        return self._seen <= (self._finished | self._blank if done else self._finished)

    def _named(self, payload: bytes, reply: _Reply) -> bytes:
        if self._id is not None:
            old = None if reply.id is UNSET else bytes(reply.id)
            payload = json.replace_member(payload, "id", old, self._id)
        if self._model is not None and reply.model is not UNSET:
            payload = json.replace_member(payload, "model", bytes(reply.model), self._model)
        return payload

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
