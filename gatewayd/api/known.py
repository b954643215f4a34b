"""Remembers the heads of admitted requests, because clients send nearly the same head each time.

The heads of one client's requests mostly differ in one value, their ``Content-Length``. For a head
that is known but for the digits of that value, neither HTTP, nor the origin, nor the token is
looked at again: the results depend on nothing else but the settings. A change of the settings
forgets all heads.

Only heads of admitted requests are kept, so a client without a token cannot fill the memory. A head
is not kept if it has an id or a trace, which are different for each request, or if it is long.
"""

from __future__ import annotations

import msgspec

from gatewayd.http1.head import Fields, Framing, RequestLine

from .security import Caller

#: How many heads are kept. With one more, all are forgotten.
MAX_HEADS = 256
#: The longest head that is kept, in bytes.
MAX_HEAD_BYTES = 2048

_LENGTH = b"ength: "
_NAMES = frozenset({b"\r\nContent-Length: ", b"\r\ncontent-length: "})
_NAME_BYTES = len(b"\r\nContent-Length: ")
#: The most digits of a length (:mod:`gatewayd.http1.head`).
_MAX_DIGITS = 18


class KnownHead(msgspec.Struct, frozen=True):
    """What was read in a head, and decided from it.

    :param framing: its ``length`` is that of the first such request.
    :param headers: for the answer, by name as it is sent.
    """

    line: RequestLine
    fields: Fields
    framing: Framing
    caller: Caller
    headers: dict[bytes, bytes]


class KnownHeads:
    """The heads that are kept, by their bytes without the digits of the length."""

    def __init__(self) -> None:
        self._heads: dict[bytes, KnownHead] = {}

    def find(self, raw: bytes) -> tuple[KnownHead, int] | None:
        """What is known of a head, and the length of its request's body; None if it is unknown."""
        start = raw.find(_LENGTH) + len(_LENGTH)
        end = raw.find(b"\r", start)
        known = self._heads.get(raw[:start] + raw[end:])
        if known is None:
            return None
        digits = raw[start:end]
        return (known, int(digits)) if digits.isdigit() and len(digits) <= _MAX_DIGITS else None

    def keep(self, raw: bytes, known: KnownHead) -> None:
        """Keep a head that has been read and whose request was admitted."""
        start = raw.find(_LENGTH) + len(_LENGTH)
        if len(raw) > MAX_HEAD_BYTES or raw[start - _NAME_BYTES : start] not in _NAMES:
            return
        if len(self._heads) >= MAX_HEADS:
            self._heads.clear()
        self._heads[raw[:start] + raw[raw.find(b"\r", start) :]] = known

    def forget(self) -> None:
        """Forget all heads: the settings have changed."""
        self._heads.clear()
