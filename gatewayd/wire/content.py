"""What is said in a reply of any kind: content, counts of tokens, errors.

By these the readers of :mod:`.completion` and :mod:`.events` judge what crosses, and how a reply
ends.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from .errors import BackendFailed, is_envelope
from .failure import error_text, may_be_shown

#: Events by which a server says that it is still there. They have no content.
PINGS = frozenset({"ping", "keepalive"})

_EMPTY = frozenset({b"null", b"false", b"0", b'""', b"[]", b"{}"})
_members = msgspec.json.Decoder(dict[str, Raw]).decode


def is_blank(payload: bytes) -> bool:
    """Whether an event has no payload; llama.cpp sends null where one of several prompts begins."""
    return payload.strip() in (b"", b"null")


def is_empty(value: Raw | UnsetType) -> bool:
    """Whether a member says nothing: it is not there, null, false, 0, or holds nothing."""
    if value is UNSET:
        return True
    text = bytes(value)
    return text in _EMPTY or (text[:1] in (b"[", b"{") and text[1:-1].isspace())


def shows(delta: Raw) -> bool:
    """Whether a ``delta`` has something for the client: a text, or a member that is not empty."""
    if is_empty(delta):
        return False
    try:
        members = _members(delta)
    except msgspec.ValidationError:
        return True  # a text
    for name, value in members.items():
        if name not in ("role", "type") and not is_empty(value):
            return True
    return False


class Usage(msgspec.Struct, frozen=True):
    """Tokens as a backend counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


_Tokens = Annotated[int, Meta(ge=0, le=10**12)]  # more than any reply has is no count


class _Counts(msgspec.Struct):
    """Usage by either name."""

    prompt_tokens: _Tokens | None = None
    completion_tokens: _Tokens | None = None
    input_tokens: _Tokens | None = None
    output_tokens: _Tokens | None = None


_COUNTS = msgspec.json.Decoder(_Counts | None)


def counted(usage: Raw | UnsetType, before: Usage | None) -> Usage | None:
    """The tokens in a ``usage`` member, added to what was known ``before``.

    What cannot be read as a count changes nothing: it is still the client's.
    """
    if usage is UNSET:
        return before
    try:
        counts = _COUNTS.decode(usage)
    except msgspec.ValidationError:
        return before
    if counts is None:
        return before
    prompt = counts.prompt_tokens if counts.input_tokens is None else counts.input_tokens
    made = counts.completion_tokens if counts.output_tokens is None else counts.output_tokens
    if prompt is None and made is None:
        return before
    before = before or Usage()
    return Usage(
        before.prompt_tokens if prompt is None else prompt,
        before.completion_tokens if made is None else made,
    )


def reported(payload: bytes) -> BackendFailed:
    """The error that a backend put where a reply belongs; llama.cpp gives a status as its code."""
    if not is_envelope(payload):
        text = error_text(payload)
        said = f": {text}" if may_be_shown(text) else " without saying which."
        return BackendFailed(f"The backend reported an error{said}")
    code = msgspec.json.decode(payload)["error"].get("code")
    known = isinstance(code, int) and 400 <= code < 500 and code not in (401, 403)
    return BackendFailed("The backend reported an error.", payload, code if known else 502)
