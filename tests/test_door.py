"""Who may come in, with what, and how much: tokens, origins, limits; in memory and on a clock."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatewayd.api.limits import Bucket
from gatewayd.exchange import End
from tests.memory import Answer, FakeBackend, Gateway, completion, settings

ALICE, BOB = "gw-alice", "gw-bob"
HASHES = {
    f"token_{name}_sha256": hashlib.sha256(token.encode()).hexdigest()
    for name, token in (("alice", ALICE), ("bob", BOB))
}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def guarded(**values: str) -> tuple[Gateway, FakeBackend]:
    backend = FakeBackend()
    return Gateway(backend, settings=settings(**HASHES, **values)), backend


# -- tokens --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        *(bearer(ALICE), {"Authorization": f"bearer {ALICE}"}, {"x-api-key": ALICE}, bearer(BOB)),
        *({"Authorization": f"Bearer   {ALICE}"}, {"Authorization": f"Bearer {ALICE} \t"}),
        {"x-api-key": f"{ALICE} "},
    ],
)
def test_a_token_lets_in(headers: dict[str, str]) -> None:
    gateway, backend = guarded()
    client = gateway.chat(headers=headers)
    backend.calls[0].whole(completion())
    assert Answer(client).status == 200
    assert gateway.ended[0].caller == ("bob" if headers == bearer(BOB) else "alice")


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ("", "missing_api_key"),
        ("Authorization: Basic x", "missing_api_key"),
        ("Authorization: Bearer", "missing_api_key"),
        (f"Authorization: Bearer\t{ALICE}", "missing_api_key"),
        (f"Authorization: Bearer{ALICE}", "missing_api_key"),
        (f"Authorization: Bearer {ALICE}\xa0", "missing_api_key"),
        (f"Authorization: Bearer {ALICE} extra", "missing_api_key"),
        (f"Authorization: Bearer {ALICE}\r\nAuthorization: Bearer no", "missing_api_key"),
        (f"Authorization: Bearer no\r\nAuthorization: Bearer {ALICE}", "missing_api_key"),
        (f"Authorization: Basic x\r\nx-api-key: {ALICE}", "missing_api_key"),
        (f"x-api-key: {ALICE}\r\nx-api-key: {ALICE}", "missing_api_key"),
        (f"Cookie: api_key={ALICE}", "missing_api_key"),
        ("Authorization: Bearer gw-alicf", "invalid_api_key"),
        ("x-api-key: no", "invalid_api_key"),
    ],
)
def test_anything_else_is_a_401_before_its_body_is_read(header: str, code: str) -> None:
    gateway, backend = guarded()
    transport = gateway.connect()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 1048576\r\n"
    transport.protocol.dataReceived((head + (header + "\r\n" if header else "")).encode() + b"\r\n")
    answer = Answer(transport)
    assert (answer.status, answer.code) == (401, code)
    assert answer.header("www-authenticate") == "Bearer" and answer.header("x-request-id")
    assert answer.closed and not backend.calls
    assert ALICE not in str(answer.json) and gateway.ended[0].caller is None


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", path) for path in ("/v1/models", "/v1/models/m", "/v1/x", "/", "/healthz/")),
        *(("HEAD", "/v1/models"), ("OPTIONS", "/v1/models"), ("DELETE", "/healthz/x")),
    ],
)
@pytest.mark.parametrize("token", [None, "wrong"])
def test_401_comes_before_404_and_405(method: str, path: str, token: str | None) -> None:
    gateway, _ = guarded()
    headers = {} if token is None else bearer(token)
    transport = gateway.request(method, path, headers=headers)
    assert transport.value().startswith(b"HTTP/1.1 401 ")


def test_health_needs_no_token_and_tells_nothing() -> None:
    gateway, _ = guarded()
    assert Answer(gateway.request("GET", "/healthz")).json == {"status": "ok"}


def test_a_token_may_be_for_some_models_only() -> None:
    gateway, backend = guarded(token_alice_models="m, llama-*")
    for model in ("other", "M", None):
        answer = Answer(gateway.chat(headers=bearer(ALICE), model=model))
        assert (answer.status, answer.json["error"]["type"]) == (403, "permission_error")
        assert answer.json["error"]["param"] == "model"
    for model in ("m", "llama-3"):
        gateway.chat(headers=bearer(ALICE), model=model)
    gateway.chat(headers=bearer(BOB), model="other")
    assert len(backend.calls) == 3
    gateway, _ = guarded(token_alice_models="other")
    for token, names in ((ALICE, []), (BOB, ["m"])):
        listed = Answer(gateway.request("GET", "/v1/models", headers=bearer(token))).json
        assert [model["id"] for model in listed["data"]] == names
    missing = Answer(gateway.request("GET", "/v1/models/m", headers=bearer(ALICE)))
    assert missing.code == "model_not_found"


def test_promise_8_a_token_does_not_reach_the_backend() -> None:
    gateway, backend = guarded()
    gateway.chat(headers=bearer(ALICE))
    assert ALICE.encode() not in backend.calls[0].body
    assert ALICE not in repr(gateway.settings) and HASHES["token_alice_sha256"] not in repr(
        gateway.settings
    )


# -- limits of a caller --------------------------------------------------------------------------


def test_a_caller_has_its_own_limit_in_flight() -> None:
    gateway, backend = guarded(token_alice_in_flight="1")
    gateway.chat(headers=bearer(ALICE))
    refused = Answer(gateway.chat(headers=bearer(ALICE)))
    assert (refused.status, refused.code) == (429, "rate_limit_exceeded")
    assert int(refused.header("retry-after") or 0) >= 1
    gateway.chat(headers=bearer(BOB))
    backend.calls[0].whole(completion())
    gateway.chat(headers=bearer(ALICE))
    assert len(backend.calls) == 3


def test_a_caller_has_its_own_rate() -> None:
    gateway, backend = guarded(token_alice_requests_per_minute="2")
    for left in (b"1", b"0"):
        client = gateway.chat(headers=bearer(ALICE))
        backend.calls[-1].whole(completion())
        assert Answer(client).header("x-ratelimit-remaining-requests") == left.decode()
        assert Answer(client).header("x-ratelimit-limit-requests") == "2"
    refused = Answer(gateway.chat(headers=bearer(ALICE)))
    assert refused.status == 429 and refused.header("retry-after") == "30"
    assert refused.header("x-ratelimit-remaining-requests") == "0"
    gateway.chat(headers=bearer(BOB))
    gateway.clock.advance(30)
    gateway.chat(headers=bearer(ALICE))
    assert len(backend.calls) == 4
    assert [e.end for e in gateway.ended].count(End.REFUSED) == 1


@given(
    size=st.integers(1, 100),
    gaps=st.lists(st.floats(0, 30, allow_nan=False), min_size=1, max_size=200),
)
def test_no_minute_lets_more_than_two_buckets_through(size: int, gaps: list[float]) -> None:
    bucket, now, taken = Bucket(size, size, 0.0), 0.0, []
    for gap in gaps:
        now += gap
        if bucket.take(now):
            taken.append(now)
        else:
            assert bucket.next_in > 0
    for first in taken:
        assert sum(first <= at < first + 60 for at in taken) <= 2 * size


# -- browsers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil.example"])
def test_a_page_that_is_not_allowed_is_a_403(origin: str) -> None:
    backend = FakeBackend()
    answer = Answer(Gateway(backend).chat(headers={"Origin": origin}))
    assert (answer.status, answer.json["error"]["type"]) == (403, "permission_error")
    assert answer.header("access-control-allow-origin") is None and not backend.calls


@pytest.mark.parametrize(
    "origin", ["http://localhost:3000", "http://127.0.0.1", "http://[::1]:8080"]
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_page_of_this_machine_may_call(origin: str, stream: bool) -> None:
    backend = FakeBackend()
    client = Gateway(backend).chat(stream=stream, headers={"Origin": origin})
    backend.calls[0].whole(completion())
    answer = Answer(client)
    assert answer.status == 200 and answer.header("access-control-allow-origin") == origin
    assert answer.header("vary") == "Origin"
    assert "X-Request-ID" in (answer.header("access-control-expose-headers") or "")


def test_a_page_may_be_allowed_and_may_ask_what_it_may_send() -> None:
    origin = "https://chat.example.com"
    gateway, _ = guarded(gateway_allowed_origins=origin)
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    answer = Answer(gateway.request("OPTIONS", "/v1/chat/completions", headers=headers))
    assert answer.status == 200 and answer.header("access-control-allow-origin") == origin
    assert answer.header("access-control-allow-headers") == "authorization,content-type"
    refused = Answer(gateway.chat(headers={"Origin": origin}))  # asking is free, calling is not
    assert refused.status == 401 and refused.header("access-control-allow-origin") == origin


# -- metrics -------------------------------------------------------------------------------------

PROXIED = [
    "Forwarded: for=192.0.2.7",
    "Via: 1.1 proxy",
    "X-Forwarded-For: 192.0.2.7",
    "X-Forwarded-Proto: https",
    "x-real-ip: 192.0.2.7",
]


def metrics(gateway: Gateway, *lines: str, host: str = "127.0.0.1:8000") -> Answer:
    transport = gateway.connect()
    head = ["GET /metrics HTTP/1.1", f"Host: {host}", *lines, "", ""]
    transport.protocol.dataReceived("\r\n".join(head).encode())
    return Answer(transport)


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000"])
def test_metrics_on_a_loopback_address_are_for_this_machine_without_a_token(host: str) -> None:
    assert metrics(guarded()[0], host=host).status == 200
    assert metrics(Gateway(), host=host).status == 200


@pytest.mark.parametrize("line", PROXIED)
def test_metrics_need_a_token_where_a_proxy_passed_the_request_on(line: str) -> None:
    gateway, _ = guarded()
    assert metrics(gateway, line).code == "missing_api_key"
    assert metrics(gateway, line, f"Authorization: Bearer {ALICE}").status == 200


@pytest.mark.parametrize("host", ["inference.example.com", "127.0.0.1.example.com", ""])
def test_metrics_need_a_token_where_the_host_is_not_this_machine(host: str) -> None:
    gateway, _ = guarded()
    assert metrics(gateway, host=host).code == "missing_api_key"
    assert metrics(gateway, f"Authorization: Bearer {ALICE}", host=host).status == 200


def test_without_tokens_a_proxy_cannot_make_the_metrics_public() -> None:
    gateway = Gateway()
    for answer in (metrics(gateway, PROXIED[0]), metrics(gateway, host="inference.example.com")):
        assert (answer.status, answer.code) == (403, "metrics_not_local")
    everywhere = Gateway(settings=settings(gateway_listen="0.0.0.0"))
    assert metrics(everywhere, host="gateway.lan").status == 200
    assert metrics(everywhere, PROXIED[2], host="gateway.lan").status == 403
    assert [exchange.end for exchange in everywhere.ended] == [End.COMPLETE, End.REFUSED]


def test_json_of_an_answer_is_an_envelope_with_four_keys() -> None:
    gateway, _ = guarded()
    answer = Answer(gateway.chat())
    assert set(json.loads(answer.body)["error"]) == {"message", "type", "param", "code"}
