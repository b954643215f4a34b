"""Reads replies whose streams end with an event of a certain type, and replies without streams.

Those are responses, messages, embeddings and rankings. Payloads cross as they came; only ``model``
is changed, if the client used an alias.

Sources: https://platform.openai.com/docs/api-reference/responses-streaming,
https://docs.anthropic.com/en/docs/build-with-claude/streaming
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Raw, UnsetType

from . import json
from .content import PINGS, Usage, has_content, is_blank, is_empty, latest_usage, reported_error
from .errors import BackendFailed, BadReply

T = TypeVar("T")

#: The types of event that report a failure.
_FAILED = frozenset({"error", "response.failed"})
#: The types of event without content: more events will follow.
_SILENT = PINGS | {"response.created", "response.queued", "response.in_progress"}


class Payload(msgspec.Struct):
    """The members of a document or event that decide how it is relayed."""

    type: str | UnsetType = UNSET
    object: str | UnsetType = UNSET
    model: Raw | UnsetType = UNSET
    response: Raw | UnsetType = UNSET
    message: Raw | UnsetType = UNSET
    delta: Raw | UnsetType = UNSET
    usage: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET


class _Inner(msgspec.Struct):
    """The same of an object one level below: ``response`` or ``message``."""

    model: Raw | UnsetType = UNSET
    usage: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET


_PAYLOAD = msgspec.json.Decoder(Payload)
_INNER = msgspec.json.Decoder(_Inner)
_LIST = msgspec.json.Decoder(list[Raw])


def _failure(payload: bytes, read: Payload) -> BackendFailed:
    """The error that an event reports.

    Servers put it into ``error``. Responses put it into ``response.error``, or the event itself is
    the error.
    """
    if not is_empty(read.error):
        return reported_error(payload)
    error: Any = payload
    if read.response is not UNSET:
        try:
            error = msgspec.json.decode(read.response, type=_Inner).error
        except msgspec.ValidationError:
            error = UNSET
    return reported_error(payload if error is UNSET else b'{"error":%b}' % bytes(error))


class EventReader:
    """The reader of such a reply: a :class:`.call.Reader`.

    :param ends: the types of event that end a stream well; empty if the endpoint has no streams.
    :param depth: how many levels of JSON may nest.
    :param model: replaces ``model`` if the client used an alias; None keeps it.
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
        self.made: str | None = None

    def read_document(self, body: bytes) -> bytes:
        # Some servers answer a rerank with a list.
        if not self._ends and body.lstrip().startswith(b"["):
            return self.read_list(body)
        read = self._read(body, "a reply")
        # A response that failed is a good reply with the status 200.
        if not is_empty(read.error) and read.object != "response":
            raise reported_error(body)
        return self._rewritten(body, read)

    def read_list(self, body: bytes) -> bytes:
        """Judge a reply that is a list; return it as it came."""
        self._decode(body, _LIST, "a reply")
        return body

    def as_stream(self, body: bytes) -> list[bytes]:
        raise BadReply("The backend sent a whole reply where a stream was asked for.")

    def read_event(self, name: bytes, payload: bytes) -> bytes | None:
        self.content = False
        if is_blank(payload):
            return None
        read = self._read(payload, "an event")
        kind = read.type if isinstance(read.type, str) else name.decode("latin-1")
        # llama.cpp names an event of a message "error", and gives it a type of its own.
        if kind in _FAILED or name == b"error" or not is_empty(read.error):
            raise _failure(payload, read)
        if kind in PINGS and not self.started:
            return None  # until the reply has begun, the gateway sends comments of its own
        silent = kind in _SILENT or (read.delta is not UNSET and not has_content(read.delta))
        self.content = not (silent and self.started)
        self.started = True
        if kind in self._ends:
            self._ended = True
        return self._rewritten(payload, read)

    def frames(self, segment: bytes) -> None:
        """There is no fast path: the type of each event must be read."""

    def is_complete(self, done: bool, framed: bool = True) -> bool:
        """Whether an event has come that ends the stream well."""
        return self._ended

    def _read(self, payload: bytes, what: str) -> Payload:
        return self._decode(payload, _PAYLOAD, what)

    def _decode(self, payload: bytes, decoder: msgspec.json.Decoder[T], what: str) -> T:
        try:
            return json.decode(payload, decoder, self._depth)
        except json.NotJSON as e:
            raise BadReply(f"The backend sent {what} that is not valid: {e}.") from None

    def _rewritten(self, payload: bytes, read: Payload) -> bytes:
        """Take the usage, and return the payload with the model that the client asked for.

        Both are at the top level or one level below.
        """
        inner = _inner(read)
        for usage in (read.usage, *(one.usage for _, _, one in inner)):
            self.usage = latest_usage(usage, self.usage)
        if self._model is None:
            return payload
        halves = json.Halves.of(payload)
        if halves is not None:  # without the stand-ins, an inner object would lose its escapes
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
    """The objects one level below that may have usage and a model: key, bytes, members."""
    return [
        (key, bytes(raw), _INNER.decode(raw))
        for key, raw in (("response", read.response), ("message", read.message))
        if raw is not UNSET and bytes(raw).startswith(b"{")
    ]
