"""Requests for a WebSocket: who may open one, how many, and what is told where it does not fit."""

from __future__ import annotations

import json

import pytest

from gatewayd.exchange import End
from gatewayd.telemetry.access import as_json, as_text
from tests.callers import ALICE, HASHES, bearer
from tests.memory import Answer, Gateway, connect, echo_gateway
from tests.websocket import HANDSHAKE, TEXT, TunnelWorld, accepting, frame

KEY_PROTOCOL = "openai-insecure-api-key."


def test_a_connection_that_has_served_a_request_may_become_a_tunnel() -> None:
    made = TunnelWorld()
    client = made.gateway.request("GET", "/healthz")
    client.clear()
    made.gateway.request("GET", "/v1/realtime", headers=HANDSHAKE, transport=client)
    server = made.accept()
    server.protocol.dataReceived(accepting() + frame(TEXT, b"hi"))
    assert Answer(client).status == 101
    assert client.value().endswith(b"\r\n\r\n" + frame(TEXT, b"hi"))


@pytest.mark.parametrize("path", ["/v1/realtime", "/v1/responses"])
def test_both_endpoints_open_a_tunnel(path: str) -> None:
    made = TunnelWorld()
    client, backend = made.open(path)
    client.sends(TEXT, b"hi")
    assert backend.frames == [(TEXT, b"hi", True, True)]
    assert made.gateway.ended == []


def test_a_root_path_is_left_out_of_the_path_for_the_backend() -> None:
    made = TunnelWorld(gateway_root_path="/llm")
    made.upgrade("/llm/v1/realtime?model=m")
    assert made.accept().value().startswith(b"GET /v1/realtime?model=m HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("path", "headers", "status", "code"),
    [
        ("/v1/realtime", {}, 426, "upgrade_required"),
        ("/v1/realtime", {**HANDSHAKE, "Sec-WebSocket-Version": "8"}, 426, "upgrade_required"),
        ("/v1/responses", {**HANDSHAKE, "Sec-WebSocket-Version": "8"}, 426, "upgrade_required"),
        ("/v1/responses", {}, 405, "method_not_allowed"),
        ("/v1/realtime", {**HANDSHAKE, "Sec-WebSocket-Key": "x"}, 400, "bad_http"),
        ("/v1/realtime?model=a&model=b", HANDSHAKE, 400, "invalid_value"),
        ("/v1/models/x", HANDSHAKE, 404, "model_not_found"),
    ],
)
def test_a_request_that_does_not_fit_is_refused_and_the_connection_kept(
    path: str, headers: dict[str, str], status: int, code: str
) -> None:
    gateway = echo_gateway()
    client = gateway.request("GET", path, headers=headers)
    answer = Answer(client)
    assert (answer.status, answer.code, answer.closed) == (status, code, False)
    if status == 426:
        assert answer.header("sec-websocket-version") == "13"
        assert answer.header("upgrade") == "websocket"
    client.clear()
    assert Answer(gateway.request("GET", "/healthz", transport=client)).status == 200


def test_a_websocket_begins_with_get_and_without_a_body() -> None:
    gateway = echo_gateway()
    assert Answer(gateway.request("GET", "/v1/realtime", b"{}", HANDSHAKE)).status == 400
    head = gateway.request("HEAD", "/v1/realtime", headers=HANDSHAKE)
    assert head.value().startswith(b"HTTP/1.1 400 ") and head.value().endswith(b"\r\n\r\n")
    posted = Answer(gateway.request("POST", "/v1/realtime", b"{}", HANDSHAKE))
    assert (posted.status, posted.code) == (405, "method_not_allowed")


def test_http_1_0_is_refused() -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in HANDSHAKE.items())
    head = f"GET /v1/realtime HTTP/1.0\r\nHost: g\r\n{lines}\r\n".encode()
    assert Answer(connect(echo_gateway().site, head)).status == 400


def test_the_echo_has_no_websockets() -> None:
    gateway = echo_gateway()
    answer = Answer(gateway.request("GET", "/v1/realtime", headers=HANDSHAKE))
    assert (answer.status, answer.code) == (404, "unknown_url")
    assert "No backend is configured" in answer.json["error"]["message"]


def test_a_page_of_another_origin_cannot_open_a_websocket() -> None:
    """A browser asks no preflight for it, and sends it wherever the page wants."""
    made = TunnelWorld(gateway_allowed_origins="https://app.example")
    answer = Answer(made.upgrade(Origin="https://evil.example"))
    assert (answer.status, answer.code) == (403, "origin_not_allowed") and made.attempts == []
    made.open(Origin="https://app.example")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Sec-WebSocket-Protocol": "realtime"}, 401),
        ({"Sec-WebSocket-Protocol": f"realtime, {KEY_PROTOCOL}wrong"}, 401),
        ({"Sec-WebSocket-Protocol": f"realtime, {KEY_PROTOCOL}{ALICE}"}, 101),
        ({"Authorization": "Bearer x", "Sec-WebSocket-Protocol": KEY_PROTOCOL + ALICE}, 401),
        (bearer(ALICE), 101),
        ({"x-api-key": ALICE}, 101),
    ],
)
def test_promise_8_a_token_is_needed_and_stays_here(headers: dict[str, str], status: int) -> None:
    made = TunnelWorld(**HASHES)
    client = made.upgrade(**headers)
    if status == 101:
        server = made.accept()
        assert ALICE.encode() not in server.value()
        server.protocol.dataReceived(accepting())
        assert ALICE.encode() not in client.value()
        (exchange,) = made.gateway.site.state.active
        assert exchange.caller == "alice"
    assert Answer(client).status == status


def test_a_key_among_subprotocols_is_for_websockets_only() -> None:
    gateway = Gateway(settings=TunnelWorld(**HASHES).gateway.settings)
    headers = {"Sec-WebSocket-Protocol": KEY_PROTOCOL + ALICE}
    assert Answer(gateway.request("GET", "/v1/models", headers=headers)).status == 401


def test_a_token_opens_tunnels_for_its_models_only() -> None:
    made = TunnelWorld(**HASHES, token_alice_models="voice*")
    for path in ("/v1/realtime?model=other", "/v1/realtime", "/v1/responses?model=voice-1"):
        answer = Answer(made.upgrade(path, **bearer(ALICE)))
        assert (answer.status, answer.code) == (403, "model_not_allowed")
    assert made.attempts == []
    made.open("/v1/realtime?model=voice-1", **bearer(ALICE))


def test_a_token_that_is_limited_to_paths_opens_tunnels_at_these_only() -> None:
    made = TunnelWorld(**HASHES, token_alice_paths="/v1/chat/completions")
    answer = Answer(made.upgrade(**bearer(ALICE)))
    assert (answer.status, answer.code) == (403, "path_not_allowed") and made.attempts == []
    TunnelWorld(**HASHES, token_alice_paths="/v1/realtime").open(**bearer(ALICE))


def test_a_tunnel_counts_as_a_request_until_it_has_ended() -> None:
    made = TunnelWorld(**HASHES, token_alice_in_flight="1", limits_in_flight="2")
    client, backend = made.open(**bearer(ALICE))
    refused = Answer(made.upgrade(**bearer(ALICE)))
    assert (refused.status, refused.code) == (429, "rate_limit_exceeded")
    client.closes()
    backend.closes()
    client, backend = made.open(**bearer(ALICE))
    client.transport.leave()
    made.open(**bearer(ALICE))


def test_a_backend_that_is_full_takes_no_tunnel() -> None:
    made = TunnelWorld()
    made.target._limit = 1
    made.open()
    answer = Answer(made.upgrade())
    assert (answer.status, answer.code) == (503, "overloaded")


def test_a_refused_request_is_given_back() -> None:
    made = TunnelWorld(limits_in_flight="1")
    assert Answer(made.upgrade("/v1/realtime?model=%ff")).status == 400
    made.open()


def test_promise_10_the_log_has_one_line_with_the_bytes_of_each_way() -> None:
    made = TunnelWorld()
    client, backend = made.open("/v1/responses?model=m")
    client.sends(TEXT, b"hello")
    backend.sends(TEXT, b"hi")
    client.closes()
    backend.closes()
    (exchange,) = made.gateway.ended
    line = json.loads(as_json(exchange))
    assert (line["bytes"], line["bytes_in"]) == (4 + 4, 11 + 8)
    assert (line["id"], line["end"], line["status"]) == ("ws-1", "complete", 101)
    assert (line["route"], line["model"]) == ("/v1/responses (WebSocket)", "m")
    assert line["method"] == "GET" and line["backend"] == ["a"] and line["stream"] is False
    assert line["connect_ms"] is not None and line["first_byte_ms"] is not None
    assert b"bytes_in=19" in as_text(exchange)


def test_the_lines_of_other_requests_have_no_bytes_in() -> None:
    gateway = echo_gateway()
    gateway.chat()
    (exchange,) = gateway.ended
    assert b"bytes_in" not in as_json(exchange) and b"bytes_in" not in as_text(exchange)


def test_a_tunnel_of_a_draining_gateway_is_refused() -> None:
    made = TunnelWorld()
    made.gateway.api.draining = True
    answer = Answer(made.upgrade())
    assert (answer.status, answer.code) == (503, "draining")
    assert made.gateway.end is End.REFUSED


def test_promise_5_a_client_that_sends_too_much_before_the_101_is_disconnected() -> None:
    made = TunnelWorld()
    client = made.upgrade()
    client.protocol.dataReceived(frame(TEXT, b"x" * 65536, masked=True))
    assert client.aborted and made.gateway.end is End.CLIENT_GONE
