"""The same request, sent to llama.cpp's server directly and through the gateway.

The replies may differ in nothing that ``docs/protocol.rst`` does not name. The tests walk the table
of endpoints: for each path there is an example that llama.cpp answers, or the path is listed in
:data:`NOT_SERVED`, and then its own 404 must cross.
"""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import attrs
import pytest

from gatewayd.wire.endpoints import ENDPOINTS
from gatewayd.wire.upload import FormCall
from tests.integration import tinymodel
from tests.integration.processes import Gateway, LlamaServer, Server
from tests.uploads import FORM, form, sound

HI = [{"role": "user", "content": "hi"}]
LONG = [{"role": "user", "content": "x" * 9000}]
#: llama.cpp's prompt cache would make the second of two equal requests differ from the first.
SHORT: dict[str, Any] = {"max_tokens": 5, "temperature": 0, "cache_prompt": False}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}
SOUND = sound(b"RIFF....WAVE") + form(("model", b"tiny"))

#: What each server is for: chat, embeddings, and the ranking of documents.
CHAT, VECTORS, RANKS = "chat", "vectors", "ranks"


@attrs.frozen
class Example:
    """A request that llama.cpp's server answers with this status."""

    path: str
    body: Any
    status: int = 200
    server: str = CHAT

    def __str__(self) -> str:
        options = json.dumps(self.body)[:60] if isinstance(self.body, dict) else "form"
        return f"{self.path} {self.status} {options}"


def examples() -> Iterator[Example]:
    """At least one for each path that llama.cpp serves; good requests, streams and refusals."""
    for path in ("/v1/chat/completions", "/chat/completions"):
        for more in ({}, {"n": 2}, {"tools": [TOOL]}, {"logprobs": True, "top_logprobs": 2}):
            yield Example(path, {"messages": HI, **SHORT, **more})
            yield Example(path, {"messages": HI, **SHORT, **more, "stream": True})
            yield Example(path, {"messages": HI, **SHORT, **more, **USAGE})
        yield Example(path, {"messages": LONG}, 400)
        yield Example(path, {"messages": LONG, "stream": True}, 400)
        yield Example(path, {"messages": HI, "temperature": "hot"}, 400)
    path = "/v1/completions"
    for prompt in ("a", ["a", "b"]):
        yield Example(path, {"prompt": prompt, **SHORT})
        yield Example(path, {"prompt": prompt, **SHORT, "stream": True})
        yield Example(path, {"prompt": prompt, **SHORT, **USAGE})
    yield Example(path, {"prompt": "x" * 9000}, 400)
    for path in ("/v1/responses", "/responses"):
        limits = {"max_output_tokens": 5, "temperature": 0, "cache_prompt": False}
        yield Example(path, {"input": "hi", **limits})
        yield Example(path, {"input": "hi", **limits, "stream": True})
        yield Example(path, {"input": "x" * 9000}, 400)
        yield Example(path, {"input": "hi", "previous_response_id": "resp_1"}, 400)
    for path in ("/v1/responses/input_tokens", "/responses/input_tokens"):
        yield Example(path, {"input": "hi"})
    yield Example("/v1/chat/completions/input_tokens", {"messages": HI})
    yield Example("/v1/messages", {"messages": HI, **SHORT})
    yield Example("/v1/messages", {"messages": HI, **SHORT, "stream": True})
    yield Example("/v1/messages", {"messages": LONG, **SHORT}, 400)
    yield Example("/v1/messages/count_tokens", {"messages": HI})
    path = "/v1/embeddings"
    yield Example(path, {"input": "hi"}, server=VECTORS)
    yield Example(path, {"input": ["hi", "there"], "encoding_format": "base64"}, server=VECTORS)
    yield Example(path, {"input": "x" * 9000}, 500, VECTORS)
    yield Example(path, {"input": "hi"}, 501)
    for path in ("/v1/rerank", "/rerank", "/v1/reranking", "/reranking"):
        yield Example(path, {"query": "hi", "documents": ["a", "bc"]}, server=RANKS)
        yield Example(path, {"query": "hi"}, 400, RANKS)
        yield Example(path, {"query": "hi", "documents": ["a"]}, 501)
    for path in ("/completion", "/completions"):
        limits = {"n_predict": 5, "temperature": 0, "cache_prompt": False}
        for prompt in ("a", ["a", "b"]):
            yield Example(path, {"prompt": prompt, **limits})
        yield Example(path, {"prompt": "a", **limits, "stream": True})
        yield Example(path, {"prompt": "x" * 9000, "stream": True}, 400)
        yield Example(path, {}, 400)
    yield Example("/infill", {"input_prefix": "a", "input_suffix": "b"}, 501)
    for path in ("/embedding", "/embeddings"):
        yield Example(path, {"input": "hi"}, server=VECTORS)
        yield Example(path, {"input": "hi"}, 501)
    for path in ("/v1/audio/transcriptions", "/audio/transcriptions"):
        yield Example(path, SOUND, 501)


EXAMPLES = list(examples())

#: Paths of the table that llama.cpp's server does not have.
NOT_SERVED = {
    "GET /v1/responses/{id}",
    "DELETE /v1/responses/{id}",
    "POST /v1/responses/{id}/cancel",
    "GET /v1/responses/{id}/input_items",
    "POST /v1/responses/compact",
    "POST /pooling",
    "POST /v2/rerank",
    "POST /v1/score",
    "POST /score",
    "POST /classify",
    "POST /v1/moderations",
    "POST /v1/images/generations",
    "POST /v1/images/edits",
    "POST /v1/images/variations",
    "POST /v1/audio/speech",
    "POST /v1/audio/translations",
}

#: All rows of the table, by method and path, the other names of an endpoint included.
ROWS = {
    f"{endpoint.method} {path}": endpoint
    for endpoint in ENDPOINTS
    for path in (endpoint.path, *endpoint.aliases)
}

#: Members whose values differ from one request to the next, at the server itself.
VOLATILE = frozenset({"created", "created_at", "completed_at", "id_slot"})
#: The same for random ids. Only their first part, such as ``resp_``, is compared.
IDS = frozenset({"id", "item_id"})


@attrs.frozen
class Received:
    """A reply: ``content`` is its JSON, or the events of its stream."""

    status: int
    media_type: str
    content: Any


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, LlamaServer]]:
    folder = tmp_path_factory.mktemp("model")
    tinymodel.write(folder / "tiny.gguf")
    options = {CHAT: ("2",), VECTORS: ("1", "embeddings"), RANKS: ("1", "reranking")}
    with ExitStack() as stack:
        yield {
            use: stack.enter_context(
                LlamaServer(
                    folder / "tiny.gguf",
                    *given,
                    alias="tiny",
                    folder=tmp_path_factory.mktemp(use),
                )
            )
            for use, given in options.items()
        }


@pytest.fixture(scope="module")
def gateways(
    servers: dict[str, LlamaServer], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Gateway]]:
    """One in front of each server, without any setting but its URL."""
    with ExitStack() as stack:
        yield {
            use: stack.enter_context(
                Gateway("--backend-url", server.url, folder=tmp_path_factory.mktemp("gateway"))
            )
            for use, server in servers.items()
        }


@pytest.fixture(scope="module")
def with_paths(
    servers: dict[str, LlamaServer], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """A gateway that relays further paths of the server for chats."""
    paths = "/slots, /tokenize, /detokenize, /apply-template, /completion, /infill, /lora-adapters"
    config = f"[backend b]\nurl = {servers[CHAT].url}\npaths = {paths}\n"
    with Gateway(folder=tmp_path_factory.mktemp("paths"), config=config) as gateway:
        yield gateway


def test_each_path_of_the_table_has_an_example_or_is_not_served_by_llama_cpp() -> None:
    with_example = {f"POST {example.path}" for example in EXAMPLES}
    assert with_example | NOT_SERVED == ROWS.keys()
    assert not with_example & NOT_SERVED


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_a_reply_is_the_same_directly_and_through_the_gateway(
    example: Example, servers: dict[str, LlamaServer], gateways: dict[str, Gateway]
) -> None:
    direct = send(servers[example.server], "POST", example.path, example.body)
    through = send(gateways[example.server], "POST", example.path, example.body)
    assert direct.status == example.status, direct
    assert comparable(through) == comparable(as_named(direct, example))


@pytest.mark.parametrize("row", sorted(NOT_SERVED))
def test_that_llama_cpp_does_not_have_a_path_is_its_own_answer(
    row: str, servers: dict[str, LlamaServer], gateways: dict[str, Gateway]
) -> None:
    method, path = re.sub("[<{][^/]*[>}]", "some-id", row).split()
    body: Any = None
    if method == "POST":
        is_form = issubclass(ROWS[row].request, FormCall)
        body = SOUND if is_form else {"model": "tiny", "input": "hi", "messages": HI}
    direct = send(servers[CHAT], method, path, body)
    assert direct.status == 404 and send(gateways[CHAT], method, path, body) == direct


@pytest.mark.parametrize(
    ("request_line", "body", "status"),
    [
        ("GET /slots", None, 200),
        ("GET /slots?fail_on_no_slot=1", None, 200),
        ("POST /tokenize", {"content": "Hi, Paris", "with_pieces": True}, 200),
        ("POST /detokenize", {"tokens": [72, 105, 256]}, 200),
        ("POST /apply-template", {"messages": HI}, 200),
        ("POST /apply-template", {"messages": 5}, 400),
        ("POST /completion", {"prompt": "a", "n_predict": 3, "temperature": 0}, 200),
        ("POST /completion", {"prompt": "a", "n_predict": 3, "stream": True, "top_k": 1}, 200),
        ("POST /infill", {"input_prefix": "a", "input_suffix": "b"}, 501),
        ("GET /lora-adapters", None, 200),
    ],
)
def test_a_further_path_of_the_server_is_the_same_directly_and_through_the_gateway(
    request_line: str, body: Any, status: int, servers: dict[str, LlamaServer], with_paths: Gateway
) -> None:
    method, path = request_line.split()
    direct, through = (send(server, method, path, body) for server in (servers[CHAT], with_paths))
    assert direct.status == status, direct
    assert comparable(through) == comparable(direct)


def test_the_entries_of_the_list_of_models_are_those_of_the_server(
    servers: dict[str, LlamaServer], gateways: dict[str, Gateway]
) -> None:
    (direct,) = send(servers[CHAT], "GET", "/v1/models", None).content["data"]
    listed = send(gateways[CHAT], "GET", "/v1/models", None).content
    assert list(listed) == ["object", "data"] and listed["object"] == "list"
    assert stable(listed["data"]) == stable([direct])
    retrieved = send(gateways[CHAT], "GET", "/v1/models/tiny", None).content
    assert stable(retrieved) == stable(direct)


# -- what is sent and compared ---------------------------------------------------------------------


def send(server: Server, method: str, path: str, body: Any) -> Received:
    """Send a request whose id is ``same-1``."""
    headers = {"X-Request-ID": "same-1"}
    if isinstance(body, dict):
        body, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
    elif body is not None:
        headers["Content-Type"] = FORM
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        data = response.read()
    finally:
        connection.close()
    media_type = (response.getheader("Content-Type") or "").partition(";")[0]
    if media_type == "text/event-stream":
        return Received(response.status, media_type, events(data.decode()))
    return Received(response.status, media_type, parsed(data))


def events(text: str) -> list[Any]:
    """The name and the payload of each event."""
    found = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        data = fields["data"]
        found.append((fields.get("event"), data if data == "[DONE]" else parsed(data)))
    return found


def parsed(text: str | bytes) -> Any:
    """JSON with the spelling of its numbers; the order of members is compared as well."""
    return json.loads(text, object_pairs_hook=Members, parse_float=Number, parse_int=Number)


class Members(dict[str, Any]):
    """A JSON object that equals another only if its members have the same order."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        assert len(self) == len(pairs), "a member comes twice"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, dict) and [*self.items()] == [*other.items()]

    __hash__ = None


@attrs.frozen
class Number:
    """A number as it is written."""

    text: str


def as_named(direct: Received, example: Example) -> Received:
    """A direct reply with the changes that ``docs/protocol.rst`` names."""
    content = direct.content
    if direct.media_type == "text/event-stream":
        content = [event for event in content if event[1] is not None]  # ``data: null``
        content = [(name, with_id(payload, example)) for name, payload in content]
    elif direct.status == 200:
        content = with_id(content, example)
    elif example.path.startswith("/v1/messages"):
        content = anthropic_error(content)
    return attrs.evolve(direct, content=content)


def with_id(payload: Any, example: Example) -> Any:
    """A chat completion has the id of the request."""
    if "/chat/completions" not in example.path or "choices" not in payload:
        return payload
    return Members([(k, "same-1" if k == "id" else v) for k, v in payload.items()])


def anthropic_error(content: Any) -> Any:
    """An error of llama.cpp at Anthropic's endpoints, in the envelope that their clients read."""
    message = content["error"].pop("message")
    details = Members([("error_code", content["error"]["code"].text), *content["error"].items()])
    error = [("type", "invalid_request_error"), ("message", message), ("details", details)]
    return Members([("type", "error"), ("error", Members(error)), ("request_id", "same-1")])


def comparable(received: Received) -> Received:
    """A reply without what differs between any two replies of the server."""
    return attrs.evolve(received, content=stable(received.content))


def stable(value: Any, key: str = "") -> Any:
    if key == "timings":
        return sorted(value)
    if key in VOLATILE:
        return type(value)
    if key in IDS and isinstance(value, str):
        return value if value == "same-1" else value.rpartition("_")[0] or value.partition("-")[0]
    if isinstance(value, dict):
        return Members([(k, stable(v, k)) for k, v in value.items()])
    if isinstance(value, (list, tuple)):
        return [stable(v) for v in value]
    return value
