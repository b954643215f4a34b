"""The part of Twisted's request that handlers can use, and what of it raises an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from gatewayd.exchange import End
from tests.handlers import serving
from tests.memory import Answer, ClientTransport


def plain(request: Any) -> None:
    """A handler as it is written for Klein."""
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
    got = Answer(client)
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
    assert Answer(gateway.request("GET", "/")).complete


def finishing(request: Any) -> None:
    request.setResponseCode(204)
    request.finish()


def test_an_answer_without_a_body_has_none() -> None:
    client = serving(finishing).request("GET", "/")
    head, _, body = client.value().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 204 ") and b"Transfer-Encoding" not in head and not body


@pytest.mark.parametrize(
    "misuse",
    [
        lambda request: request.setHeader("Content-Length", "5"),
        lambda request: request.setHeader("connection", "close"),
        lambda request: request.setHeader("x-request-id", "other"),
        lambda request: request.setResponseCode(404, b"Gone fishing"),
        lambda request: request.registerProducer(object(), False),
        lambda request: request.responseHeaders,
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


def test_the_arguments_of_the_query() -> None:
    found: list[dict[bytes, list[bytes]]] = []

    def handler(request: Any) -> None:
        found.append(request.args)
        request.finish()

    serving(handler).request("GET", "/?a=1&a=2&b=&c=%2F")
    assert found == [{b"a": [b"1", b"2"], b"b": [b""], b"c": [b"/"]}]


def test_a_line_break_ends_no_header() -> None:
    def handler(request: Any) -> None:
        request.setHeader("x-a", "1\r\nX-B: 2")
        request.finish()

    got = Answer(serving(handler).request("GET", "/"))
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


def test_the_attributes_say_how_far_the_answer_is() -> None:
    requests: list[Any] = []
    states: list[tuple[object, ...]] = []

    def note(request: Any) -> None:
        states.append((request.startedWriting, request.sentLength, request.finished))

    def handler(request: Any) -> None:
        requests.append(request)
        note(request)
        request.write(b"body")
        note(request)
        request.finish()
        note(request)

    serving(handler).request("GET", "/")
    assert states == [(0, 0, 0), (1, 4, 0), (1, 4, 1)]
    assert (requests[0].clientproto, requests[0].code) == (b"HTTP/1.1", 200)
