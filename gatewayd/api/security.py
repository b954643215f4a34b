"""Who is calling."""

from __future__ import annotations

import attrs
from twisted.web.iweb import IRequest


@attrs.frozen
class Caller:
    """Who sent a request. There are no tokens yet, so everyone is the same."""

    name: str | None = None


ANYONE = Caller()


def verify_token(request: IRequest) -> Caller:
    """Say who is calling. Without configured tokens everyone may."""
    return ANYONE
