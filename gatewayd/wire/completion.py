"""Completions and their chunks: whether a reply is one, is whole, and how it crosses.

Everything else in them belongs to the client and the backend, and crosses as it came.

Source: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from . import json
from .content import PINGS, Usage, counted, is_blank, is_empty, reported, shows
from .errors import BadReply
from .tokens import FastPath

COMPLETION = "chat.completion"
CHUNK = "chat.completion.chunk"

#: How many choices one stream may have: each that was begun is remembered.
MAX_CHOICES = 4096


class _Choice(msgspec.Struct):
    index: Annotated[int, Meta(ge=0, lt=2**31)] | None = None
    finish_reason: str | None = None
    delta: Raw | UnsetType = UNSET
    text: Raw | UnsetType = UNSET
    logprobs: Raw | UnsetType = UNSET
    token_ids: Raw | UnsetType = UNSET

    def shows(self) -> bool:
        """Whether a client would show something of it, or count it."""
        return (
            (self.delta is not UNSET and shows(self.delta))
            or not is_empty(self.text)
            or not is_empty(self.logprobs)
            or not is_empty(self.token_ids)
        )


class _Reply(msgspec.Struct):
    """The few fields of a completion or chunk that decide how it is relayed."""

    id: Raw | UnsetType = UNSET
    model: Raw | UnsetType = UNSET
    choices: list[_Choice] | UnsetType | None = UNSET
    usage: Raw | UnsetType = UNSET
    prompt_progress: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET


def _read(payload: bytes, depth: int, what: str) -> _Reply:
    """Decode a payload far enough to judge it.

    :raises BackendFailed: it is an error in place of a reply.
    :raises BadReply: it cannot be understood.
    """
    try:
        reply = json.decode(payload, _Reply, depth)
    except json.NotJSON as e:
        raise BadReply(f"The backend sent {what} that is not valid: {e}.") from None
    if not is_empty(reply.error):
        raise reported(payload)
    return reply


class ChatReader:
    """Reads one reply, whole or streamed, and knows whether it is all of it.

    :param request_id: replaces the ``id`` of the completion or of each chunk; None leaves it.
    :param include_usage: whether the client asked for the usage chunk.
    :param choices: how many choices the client asked for.
    :param model: replaces ``model``, where the client knows it by another name.
    """

    #: The end of the stream is the event ``[DONE]``.
    ends_with_done = True

    #: A choice of a chunk that adds nothing to its text.
    _adds_nothing: ClassVar[dict[str, Any]] = {"delta": {}}

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
        self._choices = choices
        self._begun: set[int] = set()
        self._open: set[int] = set()  # begun, and without a finish_reason that says something
        self._blank: set[int] = set()  # finish_reason was ""
        self._finished: tuple[int, str] | None = None  # the last one: index, finish_reason
        tokens = FastPath()
        self._learn = tokens.learn
        #: The fast path, see :meth:`.call.Reader.frames`.
        self.frames = tokens.frames
        self.started = False
        #: Whether the last event taken was content: something that a client would show or count.
        self.content = False
        self.usage: Usage | None = None

    def whole(self, body: bytes) -> bytes:
        """Judge a whole completion; return it as the client shall have it.

        :raises BackendFailed, BadReply: it is no completion.
        """
        reply = _read(body, self._depth, "a reply")
        if not reply.choices:
            raise BadReply("The backend sent a reply without 'choices'.")
        for place, choice in enumerate(reply.choices):
            self._note(place, choice)
        self.usage = counted(reply.usage, self.usage)
        return self._named(body, reply)

    def as_stream(self, body: bytes) -> list[bytes]:
        """The payloads of the stream that a whole completion (from :meth:`whole`) makes."""
        return completion_to_chunks(body, self._include_usage)

    def take(self, name: bytes, payload: bytes) -> bytes | None:
        """Judge the next payload; return it as the client shall have it, None to leave it out.

        :raises BackendFailed, BadReply: the stream ends here.
        """
        self.content = False
        if is_blank(payload) or name.decode("latin-1") in PINGS:
            return None
        reply = _read(payload, self._depth, "an event")
        self.started = True
        begun, text, ended = len(self._begun), False, False
        for place, choice in enumerate(reply.choices or ()):
            text = choice.shows() or text
            ended = choice.finish_reason is not None or ended
            self._note(place if choice.index is None else choice.index, choice)
        if len(self._begun) > MAX_CHOICES:
            raise BadReply("The backend sent more choices than can be kept track of.")
        counts = reply.usage is not UNSET and not is_empty(reply.usage)
        begins = len(self._begun) > begun
        self.content = text or ended or counts or begins or not is_empty(reply.prompt_progress)
        if reply.usage is not UNSET:
            self.usage = counted(reply.usage, self.usage)
            if not (reply.choices or self._include_usage or bytes(reply.usage) == b"null"):
                besides = self._besides_usage(payload)
                return None if besides is None else self._named(besides, reply)
        crossing = self._named(payload, reply)
        if text and not (ended or counts):
            self._learn(payload, crossing)
        return crossing

    def complete(self, done: bool, framed: bool = True) -> bool:
        """Whether every choice that was begun was finished, and at least one was begun.

        :param done: the backend said ``[DONE]``. Alone that proves nothing (vLLM says it after an
            error too), but it lets a ``finish_reason`` of ``""`` count, which Ollama has sent.
        :param framed: the body's framing said that this was its end. If neither did, as many
            choices must be finished as the client asked for: others may have been cut off.
        """
        if not self._begun or not self._open <= (self._blank if done else set()):
            return False
        return done or framed or len(self._begun) >= self._choices

    def _note(self, index: int, choice: _Choice) -> None:
        """Keep track of a choice: begun, open, finished."""
        if index not in self._begun:
            self._begun.add(index)
            self._open.add(index)
        if choice.finish_reason:
            self._open.discard(index)
            self._finished = index, choice.finish_reason
        elif choice.finish_reason is not None:
            self._blank.add(index)

    def _besides_usage(self, payload: bytes) -> bytes | None:
        """The timings of llama.cpp that a usage chunk holds besides, in a chunk without usage.

        A server that is not asked for usage sends them with the choice that it finishes last. There
        they are put, with that choice's ``finish_reason`` again: clients that did not ask for usage
        expect a choice in each chunk. None if there are no timings.
        """
        members = json.decode(payload, dict[str, Raw], self._depth)
        if self._finished is None or is_empty(members.get("timings", UNSET)):
            return None
        index, reason = self._finished
        choice = {"index": index, **self._adds_nothing, "finish_reason": reason}
        old = bytes(members["choices"]) if "choices" in members else None
        payload = json.replace_member(payload, "choices", old, msgspec.json.encode([choice]))
        return json.replace_member(payload, "usage", bytes(members["usage"]), b"null")

    def _named(self, payload: bytes, reply: _Reply) -> bytes:
        if self._id is not None:
            old = None if reply.id is UNSET else bytes(reply.id)
            payload = json.replace_member(payload, "id", old, self._id)
        if self._model is not None and reply.model is not UNSET:
            payload = json.replace_member(payload, "model", bytes(reply.model), self._model)
        return payload


class CompletionReader(ChatReader):
    """Reads completions of the older kind, whose chunks have the shape of the whole."""

    _adds_nothing: ClassVar[dict[str, Any]] = {"text": ""}

    def as_stream(self, body: bytes) -> list[bytes]:
        return [body]


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
