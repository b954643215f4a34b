"""``paths`` of a backend, with llama.cpp's own server: the same reply directly and through it."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration import tinymodel
from tests.integration.processes import Gateway, LlamaServer, Server

PATHS = (
    "/tokenize, /detokenize, /apply-template, /props, /slots, /slots/*, "
    "/lora-adapters, /v1/stream, /v1/streams/lookup"
)
CHAT = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "stream": True}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaServer]:
    folder = tmp_path_factory.mktemp("llama")
    tinymodel.write(folder / "tiny.gguf")
    with LlamaServer(folder / "tiny.gguf", "2", alias="tiny", folder=folder) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(server: LlamaServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    config = f"[backend llama]\nurl = {server.url}\npaths = {PATHS}\n"
    with Gateway(folder=tmp_path_factory.mktemp("gateway"), config=config) as running:
        yield running


def send(
    server: Server, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, str, bytes]:
    """Status, media type with its parameters, and body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    data = None if body is None else json.dumps(body).encode()
    sent = {"Content-Type": "application/json", **headers} if data else headers
    try:
        connection.request(method, path, data, sent)
        response = connection.getresponse()
        return response.status, response.getheader("Content-Type") or "", response.read()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/tokenize", {"content": "hi", "with_pieces": True}, 200),
        ("POST", "/detokenize", {"tokens": [3, 4]}, 200),
        ("POST", "/apply-template", {"messages": [{"role": "user", "content": "hi"}]}, 200),
        ("GET", "/props", None, 200),
        ("GET", "/slots", None, 200),
        ("POST", "/slots/0?action=erase", {}, 501),
        ("GET", "/lora-adapters", None, 200),
        ("POST", "/apply-template", {}, 400),
        ("GET", "/v1/stream?conv_id=nobody", None, 404),
        ("DELETE", "/v1/stream?conv_id=nobody", None, 204),
        ("POST", "/v1/streams/lookup", {"conversation_ids": ["nobody"]}, 200),
    ],
)
def test_a_reply_is_the_same_directly_and_through_the_gateway(
    server: LlamaServer, gateway: Gateway, method: str, path: str, body: Any, status: int
) -> None:
    direct, through = send(server, method, path, body), send(gateway, method, path, body)
    assert status == direct[0]
    assert (through[0], through[2]) == (direct[0], direct[2])
    assert through[1].partition(";")[0] == direct[1].partition(";")[0]


def test_a_stream_crosses_unread(server: LlamaServer, gateway: Gateway) -> None:
    assert send(server, "POST", CHAT, HI, **{"X-Conversation-Id": "kept"})[0] == 200
    path = "/v1/stream?conv_id=kept"
    direct, through = send(server, "GET", path), send(gateway, "GET", path)
    assert direct == through and direct[:2] == (200, "text/event-stream")
    assert direct[2].endswith(b"data: [DONE]\n\n")


def test_a_conversation_id_does_not_keep_a_generation_alive(
    server: LlamaServer, gateway: Gateway
) -> None:
    for each, id, kept in ((server, "direct-1", 200), (gateway, "through-1", 404)):
        assert send(each, "POST", CHAT, HI, **{"X-Conversation-Id": id})[0] == 200
        assert send(gateway, "GET", f"/v1/stream?conv_id={id}")[0] == kept


@pytest.mark.parametrize("path", ["/metrics", "/v1/chat/completions/control", "/slots/%2e%2e/x"])
def test_a_path_that_is_not_declared_does_not_reach_the_server(gateway: Gateway, path: str) -> None:
    status, _, body = send(gateway, "POST", path, {})
    assert status in (404, 405) and b"File Not Found" not in body
