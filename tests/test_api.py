"""Promises that the API keeps: one end for each request, and one id."""

from __future__ import annotations

import re

import pytest

from gatewayd.exchange import End
from tests.memory import Answer, FakeBackend, Gateway, completion, echo_gateway, send_raw


def test_promise_1_every_request_has_one_end() -> None:
    gateway = echo_gateway()
    gateway.chat()
    gateway.request("GET", "/nothing")
    gateway.request("GET", "/healthz")
    send_raw(gateway, b"not http\r\n\r\n")
    send_raw(gateway, b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab").leave()
    assert [(e.status, e.end) for e in gateway.ended] == [
        (200, End.COMPLETE),
        (404, End.REFUSED),
        (200, End.COMPLETE),
        (400, End.REFUSED),
        (499, End.CLIENT_GONE),
    ]
    assert not gateway.site.state.active


@pytest.mark.parametrize("header", ["X-Request-ID", "Request-Id"])
def test_promise_10_a_good_request_id_is_kept(header: str) -> None:
    answer = Answer(echo_gateway().request("GET", "/healthz", headers={header: "a:b/c=1@2~3"}))
    assert answer.header("x-request-id") == "a:b/c=1@2~3"


def test_promise_10_white_space_around_an_id_is_no_part_of_it() -> None:
    gateway = echo_gateway()
    gateway.request("GET", "/healthz", headers={"X-Request-ID": "  req-2 \t"})
    assert gateway.ended[0].id == "req-2"


@pytest.mark.parametrize("bad", ["a" * 129, "a b", '"', "<script>", "${jndi:", ""])
def test_promise_10_any_other_is_replaced_by_a_uuid(bad: str) -> None:
    gateway = echo_gateway()
    answer = Answer(gateway.request("GET", "/healthz", headers={"X-Request-ID": bad}))
    made = answer.header("x-request-id") or ""
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", made)
    assert gateway.ended[0].id == made


def test_promise_10_the_reply_the_backend_and_the_completion_carry_it() -> None:
    backend = FakeBackend()
    client = Gateway(backend).chat()
    backend.calls[0].whole(completion())
    assert backend.calls[0].request_id == "req-1"
    assert Answer(client).header("x-request-id") == Answer(client).json["id"] == "req-1"
