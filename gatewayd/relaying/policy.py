"""What an operator allows for a request beyond one attempt, and what of it the client may see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from urllib.parse import quote

import msgspec

from gatewayd.routing.router import Candidate
from gatewayd.wire.call import Call
from gatewayd.wire.tunnels import TunnelCall

#: Printable ASCII, which needs no encoding in a header. The percent sign would be ambiguous.
_PLAIN = "".join(chr(code) for code in range(0x20, 0x7F) if code != ord("%"))


class Policy(msgspec.Struct, frozen=True):
    """
    :param attempts: how many backends may execute the request, one after the other.
    :param show_backend: whether the client is told which backend, and which model behind an alias,
        has answered.
    :param fallback: finds the same request for the model that is declared for longer prompts, and
        the backends to ask for it; None if there is none, or the caller may not use that model.
    """

    attempts: int = 1
    show_backend: bool = False
    fallback: Callable[[Call], tuple[Call, Sequence[Candidate]] | None] | None = None


def headers_for(
    candidate: Candidate | None, call: Call | TunnelCall, fell_back: bool, show: bool
) -> list[tuple[bytes, bytes]]:
    """The headers that say who has answered.

    A client is told of another model in any case. An alias is not resolved for it unless ``show``.

    :param candidate: None while it is not certain which one will have answered. All candidates
        serve the same model, so its name is told nevertheless.
    :param call: as it was sent to the candidate, under the name that clients use.
    :param fell_back: whether its model is not the one that the client named.
    """
    if not (show or fell_back):
        return []
    found, real = list[tuple[bytes, bytes]](), None
    if candidate is not None:
        found.append((b"x-gatewayd-backend", _encoded(candidate.target.backend.name)))
        real = candidate.model if show else None
    if fell_back or real is not None:
        found.append((b"x-gatewayd-model", _encoded(real or call.model or "")))
    return found


def _encoded(name: str) -> bytes:
    """A name as the value of a header; characters other than printable ASCII percent-encoded."""
    return quote(name, safe=_PLAIN).encode("ascii")
