"""Reads replies that consist of choices: completions and their chunks, of chats and of prompts.

The gateway reads the few members that decide what crosses and whether a reply is complete.
Everything else belongs to the client and the backend, and crosses as it came.

Source: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from . import json
from .completion import to_chunks
from .content import PINGS, Usage, has_content, is_blank, is_empty, latest_usage, reported_error
from .errors import BadReply
from .tokens import FastPath

#: How many choices one stream may have: the reader remembers each one.
MAX_CHOICES = 4096


class _Choice(msgspec.Struct):
    index: Annotated[int, Meta(ge=0, lt=2**31)] | None = None
    finish_reason: str | None = None
    delta: Raw | UnsetType = UNSET
    text: Raw | UnsetType = UNSET
    logprobs: Raw | UnsetType = UNSET
    token_ids: Raw | UnsetType = UNSET

    def has_content(self) -> bool:
        """Whether the choice has something that a client would show or count."""
        return (
            (self.delta is not UNSET and has_content(self.delta))
            or not is_empty(self.text)
            or not is_empty(self.logprobs)
            or not is_empty(self.token_ids)
        )


class _Reply(msgspec.Struct):
    """The members of a completion or chunk that decide how it is relayed."""

    id: Raw | UnsetType = UNSET
    model: Raw | UnsetType = UNSET
    choices: list[_Choice] | UnsetType | None = UNSET
    usage: Raw | UnsetType = UNSET
    prompt_progress: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET


_REPLY = msgspec.json.Decoder(_Reply)
_MEMBERS = msgspec.json.Decoder(dict[str, Raw])


def _read(payload: bytes, depth: int, what: str) -> _Reply:
    """Decode the members that are needed.

    :param what: names the payload in the message of an error.
    :raises BackendFailed: the payload is an error.
    :raises BadReply: the payload is not valid.
    """
    try:
        reply = json.decode(payload, _REPLY, depth)
    except json.NotJSON as e:
        raise BadReply(f"The backend sent {what} that is not valid: {e}.") from None
    if not is_empty(reply.error):
        raise reported_error(payload)
    return reply


class ChatReader:
    """The reader of a chat completion: a :class:`.call.Reader`.

    :param request_id: replaces the ``id`` of the completion or of each chunk; None keeps it.
    :param include_usage: whether the client asked for the usage chunk.
    :param choices: how many choices the client asked for.
    :param depth: how many levels of JSON may nest.
    :param model: replaces ``model`` if the client used an alias; None keeps it.
    """

    ends_with_done = True

    #: The members of a choice whose chunk adds no text.
    _no_text: ClassVar[dict[str, Any]] = {"delta": {}}

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
        # Indexes of choices.
        self._begun: set[int] = set()
        self._open: set[int] = set()  # begun, without a finish_reason that is not empty
        self._blank: set[int] = set()  # the finish_reason was ""
        self._finished: tuple[int, str] | None = None  # the last one: index, finish_reason
        tokens = FastPath()
        self._learn = tokens.learn
        self.frames = tokens.frames
        self.started = False
        self.content = False
        self.usage: Usage | None = None
        self.made: str | None = None

    def read_document(self, body: bytes) -> bytes:
        reply = _read(body, self._depth, "a reply")
        if not reply.choices:
            raise BadReply("The backend sent a reply without 'choices'.")
        for place, choice in enumerate(reply.choices):
            self._track(place, choice)
        self.usage = latest_usage(reply.usage, self.usage)
        return self._rewritten(body, reply)

    def as_stream(self, body: bytes) -> list[bytes]:
        return to_chunks(body, self._include_usage)

    def read_event(self, name: bytes, payload: bytes) -> bytes | None:
        self.content = False
        if is_blank(payload) or name.decode("latin-1") in PINGS:
            return None
        reply = _read(payload, self._depth, "an event")
        self.started = True
        begun, text, ended = len(self._begun), False, False
        for place, choice in enumerate(reply.choices or ()):
            text = choice.has_content() or text
            ended = choice.finish_reason is not None or ended
            self._track(place if choice.index is None else choice.index, choice)
        if len(self._begun) > MAX_CHOICES:
            raise BadReply("The backend sent more choices than a stream may have.")
        counts = reply.usage is not UNSET and not is_empty(reply.usage)
        begins = len(self._begun) > begun
        self.content = text or ended or counts or begins or not is_empty(reply.prompt_progress)
        if reply.usage is not UNSET:
            self.usage = latest_usage(reply.usage, self.usage)
            if not (reply.choices or self._include_usage or bytes(reply.usage) == b"null"):
                rest = self._without_usage(payload)
                return None if rest is None else self._rewritten(rest, reply)
        crossing = self._rewritten(payload, reply)
        if text and not (ended or counts):
            self._learn(payload, crossing)
        return crossing

    def is_complete(self, done: bool, framed: bool = True) -> bool:
        """Whether every choice that was begun is finished, and at least one was begun.

        ``[DONE]`` alone proves nothing: vLLM sends it after an error too. But with it a
        ``finish_reason`` of ``""`` counts, which Ollama has sent. With neither ``[DONE]`` nor
        framing, as many choices must be finished as the client asked for: others may have been
        cut off.
        """
        if not self._begun or not self._open <= (self._blank if done else set()):
            return False
        return done or framed or len(self._begun) >= self._choices

    def _track(self, index: int, choice: _Choice) -> None:
        """Remember whether a choice is begun, open, or finished."""
        if index not in self._begun:
            self._begun.add(index)
            self._open.add(index)
        if choice.finish_reason:
            self._open.discard(index)
            self._finished = index, choice.finish_reason
        elif choice.finish_reason is not None:
            self._blank.add(index)

    def _without_usage(self, payload: bytes) -> bytes | None:
        """A usage chunk with the timings of llama.cpp and without its usage; None without timings.

        If llama.cpp is not asked for usage, it sends its timings with the choice that it finishes
        last. So the chunk gets that choice, with its ``finish_reason`` again: clients that did not
        ask for usage expect a choice in each chunk.
        """
        members = json.decode(payload, _MEMBERS, self._depth)
        if self._finished is None or is_empty(members.get("timings", UNSET)):
            return None
        index, reason = self._finished
        choice = {"index": index, **self._no_text, "finish_reason": reason}
        old = bytes(members["choices"]) if "choices" in members else None
        payload = json.replace_member(payload, "choices", old, msgspec.json.encode([choice]))
        return json.replace_member(payload, "usage", bytes(members["usage"]), b"null")

    def _rewritten(self, payload: bytes, reply: _Reply) -> bytes:
        """The payload with the ``id`` and ``model`` that the client expects."""
        if self._id is not None:
            old = None if reply.id is UNSET else bytes(reply.id)
            payload = json.replace_member(payload, "id", old, self._id)
        if self._model is not None and reply.model is not UNSET:
            payload = json.replace_member(payload, "model", bytes(reply.model), self._model)
        return payload


class CompletionReader(ChatReader):
    """The reader of completions of prompts. Their chunks have the shape of the document."""

    _no_text: ClassVar[dict[str, Any]] = {"text": ""}

    def as_stream(self, body: bytes) -> list[bytes]:
        return [body]
