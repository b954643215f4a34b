"""Requests for a backend: their media types, and how many may be under way."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.memory import (
    BODY,
    JSON,
    Answer,
    FakeBackend,
    Gateway,
    completion,
    echo_gateway,
    settings,
)
from tests.wired import CHAT, KIB, Wired, chat_body, tls_or_not


@pytest.mark.parametrize(
    "value", [None, "text/plain", "application/x-www-form-urlencoded", "\\xff;;=", "multipart/form"]
)
def test_a_chat_must_be_json_without_a_coding(value: str | None) -> None:
    headers = {} if value is None else {"Content-Type": value}
    gateway = echo_gateway()
    assert Answer(gateway.request("POST", "/v1/chat/completions", BODY, headers)).status == 415
    gzip = {**JSON, "Content-Encoding": "gzip"}
    assert Answer(gateway.request("POST", "/v1/chat/completions", BODY, gzip)).status == 415


@pytest.mark.parametrize("value", ["application/json; charset=utf-8", "APPLICATION/JSON"])
def test_the_media_type_may_have_parameters_and_capitals(value: str) -> None:
    headers = {"Content-Type": value}
    client = echo_gateway().request("POST", "/v1/chat/completions", BODY, headers)
    assert Answer(client).status == 200


@pytest.mark.parametrize("coding", ["identity", "Identity , identity", "", "identity,"])
def test_the_identity_coding_is_accepted(coding: str) -> None:
    headers = {**JSON, "Content-Encoding": coding}
    answer = Answer(echo_gateway().request("POST", "/v1/chat/completions", BODY, headers))
    assert answer.status == 200


@pytest.mark.parametrize("coding", ["gzip", "identity, gzip", "identity;q=1", "x"])
def test_any_other_coding_is_refused_also_for_uploads(coding: str) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x", "Content-Encoding": coding}
    for path, kind in (("/v1/audio/transcriptions", headers), ("/v1/chat/completions", JSON)):
        answer = Answer(echo_gateway().request("POST", path, BODY, {**headers, **kind}))
        assert (answer.status, answer.code) == (415, "unsupported_media_type")


def test_a_request_over_the_limit_in_flight_is_refused_at_once() -> None:
    backend = FakeBackend()
    gateway = Gateway(backend, settings=settings(limits_in_flight="1"))
    first = gateway.chat()
    second = Answer(gateway.chat())
    assert (second.status, second.code) == (503, "overloaded") and second.header("retry-after")
    assert Answer(gateway.request("GET", "/healthz")).status == 200
    backend.calls[0].whole(completion())
    assert Answer(first).status == 200
    gateway.chat()
    assert len(backend.calls) == 2


@tls_or_not
def test_a_reply_that_waits_to_be_taken_is_still_in_flight(tls: bool, tmp_path: Path) -> None:
    """So ``in_flight`` also bounds the memory for clients that do not read."""
    backend = FakeBackend()
    limits = settings(limits_in_flight="2")
    with Wired(backend, folder=tmp_path, settings=limits) as wired:
        clients = [wired.connect(tls) for _ in range(3)]
        for number in (0, 1):
            clients[number].send(clients[number].request("POST", CHAT, chat_body()))
            backend.calls[number].whole(completion("x" * 400 * KIB))
        wired.settle()
        data = clients[2].request("POST", CHAT, chat_body())
        clients[2].send(data)
        assert clients[2].read().startswith(b"HTTP/1.1 503 ")
        clients[0].read()
        clients[2].send(data)
        assert len(backend.calls) == 3
        backend.calls[2].whole(completion())
        clients[1].close()  # a client that disconnects takes nothing more
        wired.until(lambda: clients[1].is_gone)
        for _ in range(2):
            clients[2].send(data)
            backend.calls[-1].whole(completion())
        assert clients[2].read().count(b"HTTP/1.1 200 OK") == 3


def test_a_request_is_no_longer_in_flight_when_its_reply_was_read() -> None:
    """A client that sends one request after the other never exceeds the limit."""
    backend = FakeBackend()
    with Wired(backend, settings=settings(limits_in_flight="1")) as wired:
        client, headers = wired.connect(), ["Connection: close"]
        client.send(client.request("POST", CHAT, chat_body(), *headers))
        backend.calls[0].whole(completion("x" * 400 * KIB))
        client.read(400 * KIB)
        client.read()
        again = wired.connect()
        again.send(again.request("POST", CHAT, chat_body()))
        assert len(backend.calls) == 2
