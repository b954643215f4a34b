"""What handlers may return, and what they find in the request; with plain Klein handlers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from klein import Klein
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from twisted.web.server import NOT_DONE_YET

from gatewayd.api.handling import Answer
from gatewayd.api.request import Request
from gatewayd.api.routes import Routes
from gatewayd.exchange import End
from gatewayd.wire.errors import ModelNotFound
from tests.memory import Answer as Got
from tests.memory import ClientTransport, Gateway


def serving(handler: Callable[[Any], Any]) -> Gateway:
    """A gateway whose only route, ``/``, has this handler."""
    app = Klein()
    app.route("/", methods=["GET", "POST"])(handler)
    gateway = Gateway()
    gateway.site.replace(Routes(app, ""), gateway.api.admit)
    return gateway


async def _coroutine() -> Answer:
    return Answer(201, b"[1]")


@pytest.mark.parametrize(
    "returned",
    [lambda: Answer(201, b"[1]"), lambda: succeed(Answer(201, b"[1]")), _coroutine],
    ids=["answer", "deferred", "coroutine"],
)
def test_a_handler_returns_its_answer_or_something_that_will_be_it(
    returned: Callable[[], Any],
) -> None:
    gateway = serving(lambda request: returned())
    got = Got(gateway.request("GET", "/"))
    assert (got.status, got.body, got.header("content-type")) == (201, b"[1]", "application/json")
    assert [(e.status, e.end, e.bytes_out) for e in gateway.ended] == [(201, End.COMPLETE, 3)]


def test_an_answer_has_a_media_type_and_headers() -> None:
    answer = Answer(200, b"x", b"text/plain", ((b"retry-after", b"1"),))
    got = Got(serving(lambda request: answer).request("GET", "/"))
    assert (got.header("content-type"), got.header("retry-after")) == ("text/plain", "1")


@pytest.mark.parametrize("result", [None, "text", b"bytes", NOT_DONE_YET, {"a": 1}])
@pytest.mark.parametrize("later", [False, True])
def test_what_a_handler_may_not_return_is_a_500_and_is_logged(result: object, later: bool) -> None:
    gateway = serving(lambda request: succeed(result) if later else result)
    with capturedLogs() as events:
        got = Got(gateway.request("GET", "/"))
    assert (got.status, got.code) == (500, "internal_error")
    assert gateway.ended[0].end is End.INTERNAL
    (event,) = events
    assert "the handler returned" in str(event["log_failure"].value)
    assert "text" not in str(event["log_failure"].value)


def test_a_deferred_that_fails_is_the_error_that_it_fails_with() -> None:
    results: list[Deferred[Any]] = []

    def handler(request: Request) -> Deferred[Any]:
        results.append(Deferred())
        return results[-1]

    gateway = serving(handler)
    first, second = gateway.request("GET", "/"), gateway.request("GET", "/")
    assert first.value() == b""
    results[0].errback(ModelNotFound("There is no such model."))
    assert (Got(first).status, Got(first).code) == (404, "model_not_found")
    with capturedLogs() as events:
        results[1].errback(ValueError("a bug"))
    assert Got(second).status == 500
    assert [event["log_failure"].type for event in events] == [ValueError]


def test_a_handler_that_cancels_itself_still_answers() -> None:
    def handler(request: Request) -> Deferred[Any]:
        result: Deferred[Any] = Deferred()
        result.cancel()
        return result

    with capturedLogs() as events:
        assert Got(serving(handler).request("GET", "/")).status == 500
    assert len(events) == 1


def test_a_handler_is_cancelled_when_the_client_disconnects() -> None:
    cancelled: list[object] = []
    gateway = serving(lambda request: Deferred(cancelled.append))
    client = gateway.request("GET", "/")
    with capturedLogs() as events:
        client.leave()
    assert len(cancelled) == 1 and not events
    assert [(e.status, e.end) for e in gateway.ended] == [(499, End.CLIENT_GONE)]


def test_an_answer_for_a_client_that_has_disconnected_is_dropped() -> None:
    result: Deferred[Any] = Deferred(lambda _: result.callback(Answer(200, b"late")))
    gateway = serving(lambda request: result)
    client = gateway.request("GET", "/")
    with capturedLogs() as events:
        client.leave()
    assert client.value() == b"" and not events


# -- the part of Twisted's request that is offered -------------------------------------------------


def plain(request: Any) -> None:
    """A handler as one writes it for Klein."""
    request.setResponseCode(202)
    request.setHeader("content-type", "text/plain")
    request.setHeader(b"X-Sent", request.getHeader("x-custom") or "-")
    request.write(b"%s " % request.method)
    request.write(request.content.read())
    request.write(b" %d" % len(request.requestHeaders.getRawHeaders("x-custom", [])))
    request.finish()


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_a_plain_klein_handler_works(version: bytes) -> None:
    gateway = serving(plain)
    client = gateway.connect()
    head = b"POST / HTTP/%b\r\nHost: a\r\nX-Custom: 1\r\nX-Custom: 2\r\nContent-Length: 4\r\n\r\n"
    client.protocol.dataReceived(head % version + b"body")
    got = Got(client)
    assert (got.status, got.body, got.complete) == (202, b"POST body 2", True)
    assert (got.header("content-type"), got.header("x-sent")) == ("text/plain", "2")
    assert got.closed is (version == b"1.0")
    assert [(e.status, e.end, e.bytes_out) for e in gateway.ended] == [(202, End.COMPLETE, 11)]


def test_a_plain_klein_handler_answers_head_without_a_body() -> None:
    gateway = serving(plain)
    client = gateway.request("HEAD", "/")
    head, _, body = client.value().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 202 ") and not body
    assert gateway.ended[0].bytes_out == 0
    assert Got(gateway.request("GET", "/")).complete


def finishing(request: Any) -> None:
    request.setResponseCode(204)
    request.finish()


def test_an_answer_without_a_body_has_none() -> None:
    client = serving(finishing).request("GET", "/")
    head, _, body = client.value().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 204 ") and b"Transfer-Encoding" not in head and not body


def test_a_body_that_its_handler_does_not_finish_is_cut() -> None:
    def handler(request: Any) -> None:
        request.write(b"half")

    gateway = serving(handler)
    with capturedLogs() as events:
        got = Got(gateway.request("GET", "/"))
    assert (got.status, got.body, got.complete, got.closed) == (200, b"half", False, True)
    assert gateway.ended[0].end is End.INTERNAL and len(events) == 1


def test_a_second_answer_is_no_answer() -> None:
    def handler(request: Any) -> Answer:
        request.write(b"first")
        return Answer(200, b"second")

    with capturedLogs() as events:
        got = Got(serving(handler).request("GET", "/"))
    assert (got.body, got.complete) == (b"first", False) and len(events) == 1


@pytest.mark.parametrize(
    "misuse",
    [
        lambda request: request.setHeader("Content-Length", "5"),
        lambda request: request.setHeader("connection", "close"),
        lambda request: request.setHeader("x-request-id", "other"),
        lambda request: request.setResponseCode(404, b"Gone fishing"),
        lambda request: request.registerProducer(object(), False),
        lambda request: request.args,
        lambda request: request.addCookie("a", "b"),
        lambda request: request.setResponseCode(204) or request.write(b"x"),
        lambda request: request.write(b"x") or request.setHeader("x-late", "1"),
        lambda request: request.write(b"x") or request.setResponseCode(404),
    ],
)
def test_what_is_not_offered_raises(misuse: Callable[[Any], Any]) -> None:
    errors: list[str] = []

    def handler(request: Any) -> None:
        try:
            misuse(request)
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            errors.append(str(error))
        request.finish()

    serving(handler).request("GET", "/")
    assert len(errors) == 1 and errors[0]


def test_a_line_break_ends_no_header() -> None:
    def handler(request: Any) -> None:
        request.setHeader("x-a", "1\r\nX-B: 2")
        request.finish()

    got = Got(serving(handler).request("GET", "/"))
    assert got.header("x-a") == "1 X-B: 2" and got.header("x-b") is None


def test_notify_finish_says_whether_the_answer_was_written() -> None:
    results: list[object] = []

    def handler(request: Any) -> Deferred[Any]:
        request.notifyFinish().addBoth(results.append)
        request.notifyFinish().addBoth(results.append)
        return Deferred()

    def answering(request: Any) -> None:
        request.notifyFinish().addBoth(results.append)
        plain(request)

    serving(answering).request("GET", "/")
    assert results == [None]
    client: ClientTransport = serving(handler).request("GET", "/")
    assert len(results) == 1
    client.leave()
    assert [type(result) for result in results[1:]] == [Failure, Failure]
    assert all(isinstance(r, Failure) and r.check(ConnectionDone) for r in results[1:])
