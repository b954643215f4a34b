"""What handlers may return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.logger import capturedLogs
from twisted.web.server import NOT_DONE_YET

from gatewayd.api.handling import Answer as Returned
from gatewayd.api.request import Request
from gatewayd.exchange import End
from gatewayd.wire.errors import ModelNotFound
from tests.handlers import serving
from tests.memory import Answer, echo_gateway


def test_an_exception_of_a_handler_is_a_500_and_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = echo_gateway()
    monkeypatch.setattr(gateway.api.router, "route", None)  # what a bug might do
    with capturedLogs() as events:
        answer = Answer(gateway.chat())
    assert (answer.status, answer.code) == (500, "internal_error")
    assert gateway.ended[0].end is End.INTERNAL
    (event,) = events
    assert event["log_format"].format(**event) == "handling req-1 failed"
    assert event["log_failure"].check(TypeError)


async def _coroutine() -> Returned:
    return Returned(201, b"[1]")


@pytest.mark.parametrize(
    "returned",
    [lambda: Returned(201, b"[1]"), lambda: succeed(Returned(201, b"[1]")), _coroutine],
    ids=["answer", "deferred", "coroutine"],
)
def test_a_handler_returns_an_answer_or_a_deferred_or_is_a_coroutine(
    returned: Callable[[], Any],
) -> None:
    gateway = serving(lambda request: returned())
    got = Answer(gateway.request("GET", "/"))
    assert (got.status, got.body, got.header("content-type")) == (201, b"[1]", "application/json")
    assert [(e.status, e.end, e.bytes_out) for e in gateway.ended] == [(201, End.COMPLETE, 3)]


def test_an_answer_has_a_media_type_and_headers() -> None:
    answer = Returned(200, b"x", b"text/plain", ((b"retry-after", b"1"),))
    got = Answer(serving(lambda request: answer).request("GET", "/"))
    assert (got.header("content-type"), got.header("retry-after")) == ("text/plain", "1")


@pytest.mark.parametrize("result", [None, "text", b"bytes", NOT_DONE_YET, {"a": 1}])
@pytest.mark.parametrize("later", [False, True])
def test_what_a_handler_may_not_return_is_a_500_and_is_logged(result: object, later: bool) -> None:
    gateway = serving(lambda request: succeed(result) if later else result)
    with capturedLogs() as events:
        got = Answer(gateway.request("GET", "/"))
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
    assert (Answer(first).status, Answer(first).code) == (404, "model_not_found")
    with capturedLogs() as events:
        results[1].errback(ValueError("a bug"))
    assert Answer(second).status == 500
    assert [event["log_failure"].type for event in events] == [ValueError]


def test_a_handler_that_cancels_itself_still_answers() -> None:
    def handler(request: Request) -> Deferred[Any]:
        result: Deferred[Any] = Deferred()
        result.cancel()
        return result

    with capturedLogs() as events:
        assert Answer(serving(handler).request("GET", "/")).status == 500
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
    result: Deferred[Any] = Deferred(lambda _: result.callback(Returned(200, b"late")))
    gateway = serving(lambda request: result)
    client = gateway.request("GET", "/")
    with capturedLogs() as events:
        client.leave()
    assert client.value() == b"" and not events


def test_a_body_that_its_handler_does_not_finish_is_cut() -> None:
    def handler(request: Any) -> None:
        request.write(b"half")

    gateway = serving(handler)
    with capturedLogs() as events:
        got = Answer(gateway.request("GET", "/"))
    assert (got.status, got.body, got.complete, got.closed) == (200, b"half", False, True)
    assert gateway.ended[0].end is End.INTERNAL and len(events) == 1


def test_a_second_answer_cuts_the_first() -> None:
    def handler(request: Any) -> Returned:
        request.write(b"first")
        return Returned(200, b"second")

    with capturedLogs() as events:
        got = Answer(serving(handler).request("GET", "/"))
    assert (got.body, got.complete) == (b"first", False) and len(events) == 1
