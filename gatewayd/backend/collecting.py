"""Reads a backend's short replies whole: its list of models, its health, its slots."""

from __future__ import annotations

from typing import Any

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss

from gatewayd.wire import json, models
from gatewayd.wire.errors import AuthRefused, BadReply, UpstreamError

from .interface import Reply

#: The longest reply that is read, in bytes.
MOST_BYTES = 4 * 1024 * 1024


def read_models(reply: Reply, depth: int) -> Deferred[dict[str, Any]]:
    """The entries of a list of models, by name.

    :param depth: how deep its JSON may be nested.
    :raises AuthRefused, BadReply: the reply is not such a list.
    """
    if reply.status in (401, 403):
        raise _discarded(reply, AuthRefused("The backend refused the gateway's credentials."))
    if reply.status != 200:
        detail = f"status {reply.status}"
        problem = BadReply("The backend refused to list its models.", detail=detail)
        raise _discarded(reply, problem)
    return _collect(reply).addCallback(models.decode_list, depth)


def read_health(reply: Reply) -> Deferred[bool]:
    """True if the backend is healthy, False if it is still loading.

    While it loads a model, llama.cpp's server sends 503 ``Loading model``.

    :raises BadReply: any other reply.
    """

    def judge(body: bytes) -> bool:
        if reply.status != 200 and not (reply.status == 503 and b"oading model" in body):
            raise BadReply(f"The backend's health is {reply.status}.")
        return reply.status == 200

    return _collect(reply).addCallback(judge)


class _Props(msgspec.Struct):
    total_slots: int | None = None


_PROPS = msgspec.json.Decoder(_Props)


def read_slots(reply: Reply, depth: int) -> Deferred[int | None]:
    """How many slots the ``/props`` of llama.cpp's server report; None if they report none.

    Other servers do not have this path. llama.cpp's router has it, but no slots of its own.

    :raises AuthRefused, BadReply: the backend may say it later.
    """
    if reply.status in (401, 403):
        raise _discarded(reply, AuthRefused("The backend refused the gateway's credentials."))
    if reply.status != 200:
        problem = BadReply(
            "The backend refused to show its slots.", detail=f"status {reply.status}"
        )
        discarded = _discarded(reply, problem)
        if reply.status not in (404, 405, 501):
            raise discarded
        return succeed(None)

    def read(body: bytes) -> int | None:
        try:
            slots = json.decode(body, _PROPS, depth).total_slots
        except json.NotJSON:
            return None
        return slots if slots is not None and slots > 0 else None

    return _collect(reply).addCallback(read)


def _collect(reply: Reply) -> Deferred[bytes]:
    collector = _Collector(MOST_BYTES)
    reply.body.deliverBody(collector)
    return collector.result


def _discarded(reply: Reply, problem: UpstreamError) -> UpstreamError:
    """``problem``, after the body was dropped. If the body is short, its connection is kept."""
    collector = _Collector(MOST_BYTES)
    reply.body.deliverBody(collector)
    collector.transport.loseConnection()
    return problem


class _Collector(Protocol):
    """Gathers a body.

    :param limit: the most bytes; a longer body fails the result.
    """

    transport: Any

    def __init__(self, limit: int) -> None:
        #: Fires with the body. Cancelling it closes the connection.
        self.result: Deferred[bytes] = Deferred(lambda _: self.transport.abortConnection())
        self._limit = limit
        self._body = bytearray()

    def dataReceived(self, data: bytes) -> None:
        self._body += data
        if len(self._body) > self._limit and not self.result.called:
            self.transport.abortConnection()
            self.result.errback(BadReply("The backend's answer is too long."))

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        if self.result.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.result.callback(bytes(self._body))
        else:
            self.result.errback(reason)
