"""Finds the backend that has a stored response, when no reply has shown which one made it.

This happens after a restart, with several workers, and for responses that were not made through
this gateway. Each backend is asked with ``GET /v1/responses/{id}``, which executes nothing, until
one has the response. Only then is the client's request sent, once, to that backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.interfaces import IReactorTime

from gatewayd.backend.interface import Reply
from gatewayd.exchange import Exchange
from gatewayd.routing.target import Target
from gatewayd.wire.call import Call
from gatewayd.wire.errors import GatewayError, Overloaded, ResponseNotFound

#: Seconds that one backend is waited for.
SEARCH_SECONDS = 5.0

#: Statuses that say that a backend does not have the response, or has no endpoint for it.
_MISSING = frozenset({404, 405, 501})


async def find(
    call: Call, targets: Sequence[Target], exchange: Exchange, clock: IReactorTime
) -> Target:
    """The first target that has the response that ``call`` asks for.

    These questions are no attempts at the client's request, so the exchange does not list them.

    :param call: with the method GET.
    :raises ResponseNotFound: no target has it.
    :raises Overloaded: no target is known to have it, and at least one could not say.
    """
    silent: list[str] = []
    for target in targets:
        if not (target.health.usable or target.health.usable_as_last_resort):
            silent.append(target.backend.name)
            continue
        sent = target.backend.send(call, exchange.id, exchange.traceparent)
        sent.addTimeout(SEARCH_SECONDS, clock, _timed_out)
        try:
            reply = await sent
        except GatewayError:
            silent.append(target.backend.name)
            continue
        reply.body.deliverBody(_Discard())  # type: ignore[arg-type]  # has what Body calls
        if reply.status == 200:
            return target
        if reply.status not in _MISSING:
            silent.append(target.backend.name)
    if silent:
        message = "A backend that may have this response did not say whether it has it."
        raise Overloaded(message, detail=", ".join(silent))
    raise ResponseNotFound("No backend has this response.", param="response_id")


def _timed_out(result: Any, _: float) -> Reply:
    """An error that is caught above; the request was cancelled."""
    del result
    raise Overloaded("The backend took too long.")


class _Discard:
    """Drops the body; its connection is kept if the body is short."""

    def makeConnection(self, transport: Any) -> None:
        transport.loseConnection()

    def dataReceived(self, data: bytes) -> None: ...
    def connectionLost(self, reason: object) -> None: ...
