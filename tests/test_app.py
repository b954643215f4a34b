"""The routes that the gateway answers itself, and who may ask for them."""

from __future__ import annotations

import pytest

from tests.memory import (
    Answer,
    FakeBackend,
    Gateway,
    chunk,
    echo_gateway,
)

JSON = {"Content-Type": "application/json"}
BODY = b'{"messages":[{"role":"user","content":"hi"}]}'


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
