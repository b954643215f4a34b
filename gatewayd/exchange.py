"""The record of one request: its id, caller, backends, stages, and its one end.

An :class:`Exchange` is made when a request's head has been read. It ends exactly once, with an
:class:`End`. The log line and the metrics are made from the ended exchange alone, and the call that
ends it also decides what the client is sent. So they cannot disagree.
"""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@~-]{1,128}")

#: For 128 ids.
_RANDOM_BYTES = 128 * 16
#: The digit of a UUID that has its variant in two bits, by a random digit.
_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}

_TRACEPARENT = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)


class _RandomIDs:
    """Makes UUIDs (version 4) from random bytes that are requested for many ids at once."""

    def __init__(self) -> None:
        self._digits = ""  # hexadecimal, 32 for each id
        self._used = 0
        os.register_at_fork(after_in_child=self._discard)  # else two processes make equal ids

    def new(self) -> str:
        start = self._used
        if start == len(self._digits):
            start, self._digits = 0, os.urandom(_RANDOM_BYTES).hex()
        self._used = end = start + 32
        text = self._digits[start:end]
        return (
            f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{_VARIANT[text[16]]}{text[17:20]}-{text[20:]}"
        )

    def _discard(self) -> None:
        self._digits, self._used = "", 0


_random_ids = _RandomIDs()


class End(enum.StrEnum):
    """How an exchange ended."""

    COMPLETE = "complete"
    REFUSED = "refused"
    CLIENT_GONE = "client_gone"
    BACKEND_UNREACHABLE = "backend_unreachable"
    BACKEND_ERROR = "backend_error"
    BACKEND_TRUNCATED = "backend_truncated"
    BACKEND_TIMEOUT = "backend_timeout"
    DRAINED = "drained"
    INTERNAL = "internal"


def traceparent(candidates: Sequence[bytes]) -> str | None:
    """The ``traceparent`` of a request, if it has one and it is valid.

    :param candidates: the values of all headers of that name.

    Source: W3C Trace Context, level 1.
    """
    if len(candidates) == 1 and _TRACEPARENT.fullmatch(candidates[0]):
        return candidates[0].decode("ascii")
    return None


def request_id(candidates: Sequence[bytes]) -> str:
    """Keep the id that a client sent, or make one.

    An id is kept if there is one header with 1 to 128 characters of
    ``A-Z a-z 0-9 . _ : / + = @ ~ -``. Anything else is replaced as a whole and never trimmed: a
    trimmed id could be that of another request.

    :param candidates: the values of all headers of that name.
    """
    if len(candidates) == 1 and _REQUEST_ID.fullmatch(candidates[0]):
        return candidates[0].decode("ascii")
    return _random_ids.new()


class Tried(msgspec.Struct, frozen=True):
    """A backend that was asked and did not give the reply.

    :param end: how the attempt ended: a value of :class:`End`.
    :param code: of the backend's error, or of the gateway's error about it.
    :param began: when it was asked; ``left`` is when the attempt was over.
    """

    backend: str
    end: str
    code: str
    began: float
    left: float


class Exchange(msgspec.Struct, eq=False):
    """What is known of one request. Times are seconds of the reactor's clock.

    :param started: when its head had been read.
    :param client: the address of the client.
    :param on_end: called once, with this exchange, when it has ended.
    :param caller: the name of the token that the client sent; None without a token.
    """

    id: str
    started: float
    client: str
    on_end: Callable[[Exchange], None]
    caller: str | None = None
    #: W3C trace context, as the client sent it. The backend is sent the same.
    traceparent: str | None = None
    method: str = ""
    route: str = ""
    model: str | None = None
    stream: bool = False
    status: int = 0
    backends: list[str] = []  # those that were asked, in order
    #: The ``priority`` of the last of them.
    priority: int = 0
    #: Those of them that were asked in vain, in order; None while there is none.
    tried: list[Tried] | None = None
    #: The model that was asked instead of :attr:`model`, for which the prompt was too long.
    fallback: str | None = None
    #: Ends the exchange early, with an error for the client. Set while a reply is relayed.
    stop: Callable[[Any], None] | None = None

    #: Seconds that connecting to the backend took; 0 if an open connection was used.
    connected: float | None = None
    #: When the first byte of content came from the backend.
    first_byte: float | None = None
    #: When the first event was sent to the client.
    first_event: float | None = None
    #: The longest time between two pieces of content, in seconds.
    longest_gap: float = 0.0
    #: How many events were sent to the client.
    events: int = 0
    #: The tokens that the backend counted (:class:`gatewayd.wire.content.Usage`). None if it
    #: reported none, or if the reply was not whole.
    usage: Any = None
    #: Bytes of the answer's body, or those that a tunnel relayed to the client.
    bytes_out: int = 0
    #: Bytes that a tunnel relayed from the client; None without a tunnel.
    bytes_in: int | None = None

    end: End | None = None
    code: str = ""  # of the error envelope, if one was sent
    detail: str = ""  # of the error, for the log only
    ended: float = 0.0

    def add_tried(self, tried: Tried) -> None:
        """Record a backend that was asked in vain."""
        self.tried = [*(self.tried or ()), tried]

    def finish(self, end: End, now: float, *, code: str = "", detail: str = "") -> bool:
        """End the exchange. Later calls return False and change nothing."""
        if self.end is not None:
            return False
        self.end, self.ended, self.code, self.detail = end, now, code, detail
        self.on_end(self)
        return True
