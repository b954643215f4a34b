"""What replies of every kind have in common: what counts as content, tokens, and errors.

The readers of :mod:`.choices` and :mod:`.events` judge with these functions what crosses and how a
reply ends.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from .dialects import status_of_type
from .envelope import is_envelope
from .errors import BackendFailed
from .failure import error_text, may_be_shown

#: The types of event that a server sends to keep a connection open. They have no content.
PINGS = frozenset({"ping", "keepalive"})

_EMPTY = frozenset({b"null", b"false", b"0", b'""', b"[]", b"{}"})
_members = msgspec.json.Decoder(dict[str, Raw]).decode


def is_blank(payload: bytes) -> bool:
    """Whether an event has no payload. llama.cpp sends null where a prompt begins."""
    return payload.strip() in (b"", b"null")


def is_empty(value: Raw | UnsetType) -> bool:
    """Whether a member is missing, null, false, 0, or an empty string, list or object."""
    if value is UNSET:
        return True
    text = bytes(value)
    return text in _EMPTY or (text[:1] in (b"[", b"{") and text[1:-1].isspace())


def has_content(delta: Raw) -> bool:
    """Whether a ``delta`` has something that a client would show or count.

    That is a text that is not empty, or a member besides ``role`` and ``type`` that is not empty.
    """
    if is_empty(delta):
        return False
    try:
        members = _members(delta)
    except msgspec.ValidationError:
        return True  # it is a text
    for name, value in members.items():
        if name not in ("role", "type") and not is_empty(value):
            return True
    return False


class Usage(msgspec.Struct, frozen=True):
    """Tokens as a backend counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


_Tokens = Annotated[int, Meta(ge=0, le=10**12)]  # more is taken for no count


class _Counts(msgspec.Struct):
    """A ``usage`` member, with the names of completions or of responses and messages."""

    prompt_tokens: _Tokens | None = None
    completion_tokens: _Tokens | None = None
    input_tokens: _Tokens | None = None
    output_tokens: _Tokens | None = None
    # Of messages only: there the input tokens are those that were in no cache.
    cache_read_input_tokens: _Tokens | None = None
    cache_creation_input_tokens: _Tokens | None = None


_COUNTS = msgspec.json.Decoder(_Counts | None)


def latest_usage(usage: Raw | UnsetType, before: Usage | None) -> Usage | None:
    """The tokens that a ``usage`` member reports; ``before`` for a count that it does not report.

    A ``usage`` that cannot be read reports nothing. It is no error: it crosses to the client.

    :param before: what was reported earlier in the reply.
    """
    if usage is UNSET:
        return before
    try:
        counts = _COUNTS.decode(usage)
    except msgspec.ValidationError:
        return before
    if counts is None:
        return before
    prompt = counts.prompt_tokens
    if counts.input_tokens is not None:
        cached = (counts.cache_read_input_tokens or 0) + (counts.cache_creation_input_tokens or 0)
        prompt = counts.input_tokens + cached
    output = counts.completion_tokens if counts.output_tokens is None else counts.output_tokens
    if prompt is None and output is None:
        return before
    before = before or Usage()
    return Usage(
        before.prompt_tokens if prompt is None else prompt,
        before.completion_tokens if output is None else output,
    )


def reported_error(payload: bytes) -> BackendFailed:
    """The error that a backend sent in place of a reply or an event.

    Its status is the error's ``code`` if that is one of the client's errors: llama.cpp puts a
    status there. In Anthropic's envelope the error's type stands for a status. Otherwise it is 502.
    """
    if not is_envelope(payload):
        text = error_text(payload)
        reason = f": {text}" if may_be_shown(text) else " without saying which."
        return BackendFailed(f"The backend reported an error{reason}")
    document = msgspec.json.decode(payload)
    error, status = document["error"], None
    if document.get("type") == "error":
        status = status_of_type(error.get("type"))
    elif isinstance(error.get("code"), int) and 400 <= error["code"] < 500:
        status = error["code"]
    if status is None or status in (401, 403):  # the gateway's own credentials
        status = 502
    return BackendFailed("The backend reported an error.", payload, status)
