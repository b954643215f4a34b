"""What a handler may return, and how that becomes the answer to its request.

As in Klein, a handler returns its answer or a Deferred of it, and a coroutine counts as a Deferred.
The answer is an :class:`Answer`, or None from a handler that has written to the request and ended
it, as a relay does. Klein also accepts text, bytes, elements and resources. Here they are errors,
and so is None while the request has no end: the client receives a 500, and the reason is logged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from gatewayd.wire.errors import GatewayError, Internal

from .request import HeaderPairs, Request

_log = Logger()


@attrs.frozen
class Answer:
    """A whole answer.

    :param headers: further headers; names in lower case.
    """

    status: int
    body: bytes
    media_type: bytes = b"application/json"
    headers: HeaderPairs = ()


class WrongResult(Exception):
    """A handler returned something that is no answer."""


def handle(request: Request, handler: Callable[[Request], Any]) -> None:
    """Call the handler of a request. The request ends whatever the handler returns or raises."""
    try:
        result = handler(request)
    except BaseException:
        _end(Failure(), request)  # not by a variable, which would be a reference cycle
        return
    if isinstance(result, Deferred):
        request.handling = result
        result.addBoth(_end, request)
    else:
        _end(result, request)


def _end(result: object, request: Request) -> None:
    """Answer with what a handler has returned or raised, and give back what the request took."""
    if result is not None or request.exchange.end is None:
        try:
            _answer(result, request)
        except BaseException:
            _fail(Failure(), request)
    release, request.release = request.release, None
    if release is not None:
        request.when_taken(release)


def _answer(result: object, request: Request) -> None:
    if isinstance(result, Failure):
        _fail(result, request)
    elif isinstance(result, Answer):
        request.respond(result.status, result.body, result.headers, result.media_type)
    elif result is not None:
        raise WrongResult(f"the handler returned an object of type {type(result).__name__}")
    else:
        raise WrongResult("the handler returned None before the request was answered")


def _fail(failure: Failure, request: Request) -> None:
    if failure.check(CancelledError) and request.exchange.end is not None:
        return  # the client has disconnected
    if isinstance(failure.value, GatewayError):
        request.fail(failure.value)
        return
    _log.failure("handling {id} failed", failure, id=request.exchange.id)
    request.fail(Internal("The gateway met an internal error."))
