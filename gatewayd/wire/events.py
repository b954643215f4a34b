"""Replies that are not completions: responses, messages, embeddings, rankings.

Payloads cross as they came; only ``model`` is changed, where an alias says so. A stream ends with
an event of a certain type: responses with ``response.completed`` or ``response.incomplete``,
messages with ``message_stop``.

Sources: https://platform.openai.com/docs/api-reference/responses-streaming,
https://docs.anthropic.com/en/docs/build-with-claude/streaming
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Raw, UnsetType

from . import json
from .content import PINGS, Usage, counted, is_blank, is_empty, reported, shows
from .errors import BackendFailed, BadReply

T = TypeVar("T")

_FAILED = frozenset({"error", "response.failed"})
#: Events that say only that more will come.
_SILENT = PINGS | {"response.created", "response.queued", "response.in_progress"}


class Payload(msgspec.Struct):
    type: str | UnsetType = UNSET
    object: str | UnsetType = UNSET
    model: Raw | UnsetType = UNSET
    response: Raw | UnsetType = UNSET
    message: Raw | UnsetType = UNSET
    delta: Raw | UnsetType = UNSET
    usage: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET


class _Inner(msgspec.Struct):
    model: Raw | UnsetType = UNSET
    usage: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET


def _failure(payload: bytes, read: Payload) -> BackendFailed:
    """What an event that reports a failure says, as an envelope.

    Servers put it into ``error``, responses into ``response.error`` or the event itself.
    """
    if not is_empty(read.error):
        return reported(payload)
    told: Any = payload
    if read.response is not UNSET:
        try:
            told = msgspec.json.decode(read.response, type=_Inner).error
        except msgspec.ValidationError:
            told = UNSET
    return reported(payload if told is UNSET else b'{"error":%b}' % bytes(told))


class EventReader:
    """Reads a reply whose stream ends with an event of a certain type.

    :param ends: the types of event that end a stream well; empty where there are no streams.
    """

    ends_with_done = False

    def __init__(self, ends: frozenset[str], depth: int, model: str | None) -> None:
        self._ends = ends
        self._depth = depth
        self._model = None if model is None else msgspec.json.encode(model)
        self._ended = False
        self.started = False
        self.content = False
        self.usage: Usage | None = None

    def whole(self, body: bytes) -> bytes:
        if not self._ends and body.lstrip().startswith(b"["):  # rerank, as one of its dialects is
            self._decode(body, list[Raw], "a reply")
            return body
        read = self._read(body, "a reply")
        if not is_empty(read.error) and read.object != "response":  # these say so with a 200
            raise reported(body)
        return self._named(body, read)

    def as_stream(self, body: bytes) -> list[bytes]:
        raise BadReply("The backend sent a whole reply where a stream was asked for.")

    def take(self, name: bytes, payload: bytes) -> bytes | None:
        self.content = False
        if is_blank(payload):
            return None
        read = self._read(payload, "an event")
        kind = read.type if isinstance(read.type, str) else name.decode("latin-1")
        if kind in _FAILED or not is_empty(read.error):
            raise _failure(payload, read)
        if kind in PINGS and not self.started:
            return None  # nothing has begun: the gateway sends comments of its own
        silent = kind in _SILENT or (read.delta is not UNSET and not shows(read.delta))
        self.content = not (silent and self.started)
        self.started = True
        if kind in self._ends:
            self._ended = True
        return self._named(payload, read)

    def frames(self, segment: bytes) -> None:
        """Each event is read with care here: its type decides."""

    def complete(self, done: bool, framed: bool = True) -> bool:
        return self._ended

    def _read(self, payload: bytes, what: str) -> Payload:
        return self._decode(payload, Payload, what)

    def _decode(self, payload: bytes, type: type[T], what: str) -> T:
        try:
            return json.decode(payload, type, self._depth)
        except json.NotJSON as e:
            raise BadReply(f"The backend sent {what} that is not valid: {e}.") from None

    def _named(self, payload: bytes, read: Payload) -> bytes:
        """Count usage and put the asked model's name in, at the top or one level below."""
        inner = _inner(read)
        for usage in (read.usage, *(one.usage for _, _, one in inner)):
            self.usage = counted(usage, self.usage)
        if self._model is None:
            return payload
        halves = json.Halves.of(payload)
        if halves is not None:  # read without stand-ins, an inner object has lost its escapes
            payload = halves.replaced
            read = self._read(payload, "an event")
            inner = _inner(read)
        if read.model is not UNSET:
            payload = json.replace_member(payload, "model", bytes(read.model), self._model)
        for key, old, one in inner:
            if one.model is not UNSET:
                new = json.replace_member(old, "model", bytes(one.model), self._model)
                payload = json.replace_member(payload, key, old, new)
        return payload if halves is None else halves.put_back(payload)


def _inner(read: Payload) -> list[tuple[str, bytes, _Inner]]:
    """The objects one level below that may have usage and a model."""
    return [
        (key, bytes(raw), msgspec.json.decode(raw, type=_Inner))
        for key, raw in (("response", read.response), ("message", read.message))
        if raw is not UNSET and bytes(raw).startswith(b"{")
    ]
