"""Which tokens and which web pages are admitted."""

from __future__ import annotations

import json

import pytest

from tests.callers import ALICE, BOB, HASHES, bearer, guarded
from tests.memory import Answer, FakeBackend, Gateway, completion


@pytest.mark.parametrize(
    "headers",
    [
        *(bearer(ALICE), {"Authorization": f"bearer {ALICE}"}, {"x-api-key": ALICE}, bearer(BOB)),
        *({"Authorization": f"Bearer   {ALICE}"}, {"Authorization": f"Bearer {ALICE} \t"}),
        {"x-api-key": f"{ALICE} "},
    ],
)
def test_a_configured_token_is_accepted(headers: dict[str, str]) -> None:
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
def test_a_missing_or_wrong_token_is_a_401_before_the_body_is_read(header: str, code: str) -> None:
    gateway, backend = guarded()
    transport = gateway.connect()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 1048576\r\n"
    transport.protocol.dataReceived((head + (header + "\r\n" if header else "")).encode() + b"\r\n")
    answer = Answer(transport)
    assert (answer.status, answer.code) == (401, code)
    assert answer.header("www-authenticate") == "Bearer" and answer.header("x-request-id")
    assert answer.closed and not backend.calls
    assert ALICE not in str(answer.json) and gateway.ended[0].caller is None


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


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost.evil.example"]
)
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


def test_an_allowed_origin_gets_its_preflight_answered_without_a_token() -> None:
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


def test_an_error_is_an_envelope_with_four_keys() -> None:
    gateway, _ = guarded()
    answer = Answer(gateway.chat())
    assert set(json.loads(answer.body)["error"]) == {"message", "type", "param", "code"}
