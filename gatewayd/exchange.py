"""One request's life: its id, who asked, which backend, its stages, its one end.

An :class:`Exchange` is made when a request's head has been read and ends exactly once, with an
:class:`End`. The log line and the metrics are made from the ended exchange alone, and what the
client saw was decided by the same call, so they cannot disagree.
"""

from __future__ import annotations

import enum
import re
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import attrs

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@~-]{1,128}")

_TRACEPARENT = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)


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
    """The one ``traceparent`` of a request, if it is a good one (W3C Trace Context, level 1)."""
    if len(candidates) == 1 and _TRACEPARENT.fullmatch(candidates[0]):
        return candidates[0].decode("ascii")
    return None


def request_id(candidates: Sequence[bytes]) -> str:
    """Keep the id that a client sent, or make one.

    One header with 1 to 128 characters of ``A-Z a-z 0-9 . _ : / + = @ ~ -`` is kept; anything else
    is replaced as a whole: a trimmed id would be somebody else's.
    """
    if len(candidates) == 1 and _REQUEST_ID.fullmatch(candidates[0]):
        return candidates[0].decode("ascii")
    return str(uuid.uuid4())


@attrs.define(eq=False)
class Exchange:
    """What is known about one request. Times are seconds of the reactor's clock.

    :param started: when its head had been read.
    :param on_end: told once, with this exchange, when it has ended.
    """

    id: str
    started: float
    client: str
    on_end: Callable[[Exchange], None]
    caller: str | None = None
    #: W3C trace context, as the client sent it; it goes on to the backend.
    traceparent: str | None = None
    method: str = ""
    route: str = ""
    model: str | None = None
    stream: bool = False
    status: int = 0
    backends: list[str] = attrs.field(factory=list)  # tried, in order
    #: Ends the exchange early, with an error for the client; set while a reply is relayed.
    stop: Callable[[Any], None] | None = None

    # Stages: when the connection to the backend stood, its first byte and first event came; the
    # longest gap between two events; what went to the client.
    connected: float | None = None
    first_byte: float | None = None
    first_event: float | None = None
    longest_gap: float = 0.0
    events: int = 0
    #: Tokens as the backend counted them: ``prompt_tokens``, ``completion_tokens``. None where it
    #: did not, or was cut short.
    usage: Any = None
    bytes_out: int = 0

    end: End | None = None
    code: str = ""  # of the error envelope, where there was one
    detail: str = ""
    ended: float = 0.0

    def finish(self, end: End, now: float, *, code: str = "", detail: str = "") -> bool:
        """End the exchange. The first call decides; later ones return False and change nothing."""
        if self.end is not None:
            return False
        self.end, self.ended, self.code, self.detail = end, now, code, detail
        self.on_end(self)
        return True
