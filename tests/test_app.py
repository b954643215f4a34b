"""The routes that the gateway answers itself, and which of them need a token."""

from __future__ import annotations

import pytest

from gatewayd.exchange import End
from tests.callers import ALICE, bearer, guarded
from tests.memory import BODY, JSON, Answer, FakeBackend, Gateway, chunk, echo_gateway, settings


@pytest.mark.parametrize("root", ["", "/llm"])
def test_every_route_answers_under_root_path(root: str) -> None:
    gateway = echo_gateway(gateway_root_path=root)
    for path in ("/healthz", "/v1/models", "/v1/models/echo"):
        assert Answer(gateway.request("GET", root + path)).status == 200
    assert Answer(gateway.request("GET", "/healthz")).status == (404 if root else 200)
    chat = gateway.request("POST", root + "/v1/chat/completions", BODY, JSON)
    assert Answer(chat).status == 200


def test_health_says_ok() -> None:
    answer = Answer(echo_gateway().request("GET", "/healthz"))
    assert (answer.status, answer.json) == (200, {"status": "ok"})


def test_models_are_listed_and_retrieved() -> None:
    gateway = Gateway(FakeBackend())
    listed = Answer(gateway.request("GET", "/v1/models")).json
    assert listed == {"object": "list", "data": [{"id": "m", "object": "model"}]}
    assert Answer(gateway.request("GET", "/v1/models/m")).json["id"] == "m"
    missing = Answer(gateway.request("GET", "/v1/models/org%2Fother"))
    assert (missing.status, missing.code) == (404, "model_not_found")


def test_while_draining_new_requests_are_refused_and_health_says_why() -> None:
    backend = FakeBackend()
    gateway = Gateway(backend)
    client, other = gateway.chat(stream=True), gateway.connect()
    gateway.api.draining = gateway.site.state.draining = True
    refused = Answer(gateway.chat(transport=other))
    assert (refused.status, refused.code) == (503, "draining") and refused.closed
    health = Answer(gateway.request("GET", "/healthz"))
    assert (health.status, health.json) == (503, {"status": "draining"})
    backend.calls[0].head()
    backend.calls[0].send(b"data: " + chunk(finish="stop") + b"\n\ndata: [DONE]\n\n")
    answer = Answer(client)
    assert answer.complete and answer.closed and answer.header("connection") == "close"


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


def test_health_needs_no_token_and_gives_no_details() -> None:
    gateway, _ = guarded()
    assert Answer(gateway.request("GET", "/healthz")).json == {"status": "ok"}


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
