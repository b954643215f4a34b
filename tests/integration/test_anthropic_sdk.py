"""The official ``anthropic`` SDK, and traffic like Claude Code's, through the gateway.

In front of llama.cpp's server, which has ``/v1/messages`` and ``/v1/messages/count_tokens``, and of
a backend that fails on purpose.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anthropic
import pytest

from tests.faultbackend import FaultBackend
from tests.integration.gateways import FastGateway, watched
from tests.integration.processes import Gateway, LlamaServer, Server, free_port, wait_for
from tests.recipes import prepare, recipes

#: Makes a client of a server, from its options.
Connect = Callable[..., anthropic.Anthropic]

WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}

#: A request as Claude Code makes it: its instructions in blocks that are to be cached, tools, a
#: user, and more than one text in a message.
AGENT: dict[str, Any] = {
    "max_tokens": 64,
    "system": [
        {"type": "text", "text": "You are a coding agent.", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "Use the tools.", "cache_control": {"type": "ephemeral"}},
    ],
    "tools": [WEATHER | {"cache_control": {"type": "ephemeral"}}],
    "metadata": {"user_id": "user_1_account__session_2"},
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "<system-reminder>Be brief.</system-reminder>"},
                {
                    "type": "text",
                    "text": "How is the weather in Paris?",
                    "cache_control": {"type": "ephemeral"},
                },
            ],
        }
    ],
}
SESSION = {"x-app": "cli", "X-Claude-Code-Session-Id": "5dedd925-88bd-472d-9fe3-95151790d01b"}
BETAS = ["claude-code-20250219", "fine-grained-tool-streaming-2025-05-14"]

#: The same answer each time.
SURE = {"temperature": 0}

TOKEN = "gw-agent"

_numbers = itertools.count(1)


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Make clients of a server; they are closed at the end of the test."""
    clients: list[anthropic.Anthropic] = []

    def make(server: Server, **options: Any) -> anthropic.Anthropic:
        client = anthropic.Anthropic(
            base_url=server.url,
            http_client=anthropic.DefaultHttpxClient(trust_env=False),
            **{"auth_token": "any", "max_retries": 0, "timeout": 30} | options,
        )
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def name() -> str:
    """An id for the request of this test."""
    return f"anthropic-{next(_numbers)}"


@pytest.fixture(scope="module")
def agents(tool_llama: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The gateway of the recipe for Claude Code, in front of a model that calls tools."""
    folder = tmp_path_factory.mktemp("agents")
    config = prepare(recipes()["Claude Code with llama.cpp"], folder, llama=tool_llama.url)
    with Gateway(folder=folder, config=config) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def keyed(sim: FaultBackend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastGateway]:
    """A gateway with a token that may use one model, once a minute, before :func:`sim`."""
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    settings = {
        "token agent_sha256": digest,
        "token agent_models": "m",
        "token agent_requests_per_minute": "1",
    }
    folder = tmp_path_factory.mktemp("keyed")
    with watched(FastGateway(folder, sim.url, **settings), warm=False) as daemon:
        yield daemon


def says(text: str, model: object = "m", **more: Any) -> dict[str, Any]:
    return {
        "model": model,
        "max_tokens": 16,
        "messages": [{"role": "user", "content": text}],
        **more,
    }


def fault(text: str, **more: Any) -> dict[str, Any]:
    return says(f"fault:{text}", **more)


# -- a real model ----------------------------------------------------------------------------------


def test_a_message_is_what_the_server_itself_says(
    chat: Gateway, llama: LlamaServer, connect: Connect
) -> None:
    asked = says("Count to five.", "smollm2", extra_body=SURE)
    direct = connect(llama).messages.create(**asked)
    message = connect(chat).messages.create(**asked)
    assert message.content and message.content == direct.content
    assert message.stop_reason == direct.stop_reason
    assert message.usage.output_tokens == direct.usage.output_tokens == 16


def test_a_stream_comes_in_pieces_and_ends_in_the_same_message(
    chat: Gateway, connect: Connect
) -> None:
    client = connect(chat)
    asked = says("Count to five.", "smollm2", extra_body=SURE)
    with client.messages.stream(**asked) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert len(pieces) > 3 and "".join(pieces) == final.content[0].text
    assert final.content[0].text == client.messages.create(**asked).content[0].text
    assert final.usage.output_tokens == len(pieces) == 16 and final.stop_reason == "max_tokens"


def test_each_answer_has_the_id_of_its_request(chat: Gateway, connect: Connect, name: str) -> None:
    client = connect(chat)
    message = client.messages.create(**says("Hi", "smollm2"))
    assert message._request_id
    given = client.messages.create(**says("Hi", "smollm2"), extra_headers={"request-id": name})
    assert given._request_id == name
    with client.messages.stream(**says("Hi", "smollm2")) as stream:
        stream.until_done()
        assert stream.request_id
        ids = stream.response.headers.get_list("x-request-id")
    assert ids == [stream.request_id]


def test_the_models_are_listed(chat: Gateway, connect: Connect) -> None:
    client = connect(chat)
    assert [model.id for model in client.models.list()] == ["smollm2"]
    assert client.models.retrieve("smollm2").id == "smollm2"


def test_tokens_are_counted(chat: Gateway, llama: LlamaServer, connect: Connect) -> None:
    asked = {key: value for key, value in says("Hi", "smollm2").items() if key != "max_tokens"}
    counted = connect(chat).messages.count_tokens(**asked)
    assert counted.input_tokens > 5 and counted._request_id
    assert counted == connect(llama).messages.count_tokens(**asked)


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_is_read(
    tools: Gateway, connect: Connect, stream: bool
) -> None:
    client = connect(tools)

    def ask(*messages: dict[str, Any]) -> Any:
        asked: dict[str, Any] = {
            "model": "tiny", "max_tokens": 80, "tools": [WEATHER], "messages": messages
        }  # fmt: skip
        if not stream:
            return client.messages.create(**asked)
        with client.messages.stream(**asked) as events:
            return events.get_final_message()

    question = {"role": "user", "content": "How is the weather in Paris?"}
    called = ask(question)
    (use,) = [block for block in called.content if block.type == "tool_use"]
    assert (use.name, use.input) == ("get_weather", {"city": "Paris"})
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "sun"}
    answer = ask(
        question,
        {"role": "assistant", "content": called.model_dump(include={"content"})["content"]},
        {"role": "user", "content": [result]},
    )
    assert answer.content[0].text == "It is sunny."


def test_a_prompt_that_is_too_long_is_a_bad_request(chat: Gateway, connect: Connect) -> None:
    for asked in (says("word " * 5000, "smollm2"), says("word " * 5000, "smollm2", stream=True)):
        with pytest.raises(anthropic.BadRequestError) as caught:
            connect(chat).messages.create(**asked)
        error = caught.value
        assert error.type == "invalid_request_error" and "context size" in error.api_message
        assert error.body["error"]["details"]["type"] == "exceed_context_size_error"
        assert error.body["error"]["details"]["n_ctx"] == 2048
        assert error.request_id == error.body["request_id"]


def test_a_client_that_leaves_frees_the_model(
    chat: Gateway, llama: LlamaServer, connect: Connect
) -> None:
    asked = says("Count.", "smollm2", extra_body={"ignore_eos": True}) | {"max_tokens": 1500}
    with connect(chat).messages.stream(**asked) as stream:
        next(stream.text_stream)
    began = time.monotonic()
    connect(llama).messages.create(**says("Hi", "smollm2"))
    assert time.monotonic() - began < 5  # all 1500 tokens take 20 seconds


# -- traffic like Claude Code's --------------------------------------------------------------------


def test_an_agent_works_with_betas_blocks_and_tools(agents: Gateway, connect: Connect) -> None:
    client = connect(agents, auth_token="in-alice.token", default_headers=SESSION)
    counted = client.beta.messages.count_tokens(
        model="qwen3",
        betas=BETAS,
        **{k: v for k, v in AGENT.items() if k in ("system", "tools", "messages")},
    )
    assert counted.input_tokens > 20
    with client.beta.messages.stream(model="qwen3", betas=BETAS, **AGENT) as stream:
        message = stream.get_final_message()
    used = message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)
    assert used == counted.input_tokens
    assert [block.type for block in message.content] == ["tool_use"]


def test_many_small_requests_and_aborts_run_beside_each_other(
    agents: Gateway, connect: Connect
) -> None:
    # Above the slots of the server, a request is refused: the SDK tries again, as Claude Code does.
    client = connect(agents, auth_token="in-alice.token", default_headers=SESSION, max_retries=9)

    def small(number: int) -> str:
        asked = says(f"Title {number}", "qwen3", system=AGENT["system"])
        if number % 4 == 0:  # the user has pressed Escape
            with client.beta.messages.stream(betas=BETAS, **asked) as stream:
                next(iter(stream))
            return "left"
        if number % 4 == 1:
            del asked["max_tokens"]
            return str(client.beta.messages.count_tokens(betas=BETAS, **asked).input_tokens)
        return str(client.beta.messages.create(betas=BETAS, **asked).stop_reason)

    with ThreadPoolExecutor(8) as pool:
        ends = list(pool.map(small, range(40)))
    assert ends.count("left") == 10 and all(ends)
    assert ends.count("max_tokens") + ends.count("end_turn") == 20


def test_the_betas_reach_the_backend_and_the_key_does_not(
    gateway: FastGateway, sim: FaultBackend, connect: Connect, name: str
) -> None:
    client = connect(gateway, default_headers={"X-Request-ID": name})
    client.beta.messages.create(model="m", betas=BETAS, extra_query={"beta": "true"}, **AGENT)
    (record,) = sim.records_for(name)
    assert record.path == "/v1/messages?beta=true"
    assert record.header("Anthropic-Beta") == [",".join(BETAS)]
    (version,) = record.header("Anthropic-Version")
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", version)
    assert not record.header("X-Api-Key") and not record.header("Authorization")
    assert b'"cache_control":{"type":"ephemeral"}' in record.body.replace(b" ", b"")


# -- errors of the gateway -------------------------------------------------------------------------


def test_keys_models_and_limits_are_errors_of_their_classes(
    keyed: FastGateway, connect: Connect
) -> None:
    with pytest.raises(anthropic.AuthenticationError) as caught:
        connect(keyed).messages.create(**says("Hi"))
    assert (caught.value.type, caught.value.error_code) == (
        "authentication_error",
        "invalid_api_key",
    )
    header = {"x-api-key": TOKEN, "Authorization": anthropic.Omit()}
    with pytest.raises(anthropic.PermissionDeniedError) as denied:
        connect(keyed).messages.create(**says("Hi", "other"), extra_headers=header)
    assert (denied.value.type, denied.value.error_code) == ("permission_error", "model_not_allowed")
    client = connect(keyed, auth_token=TOKEN)
    with pytest.raises(anthropic.RateLimitError) as limited:
        client.messages.create(**says("Hi"))
    assert limited.value.type == "rate_limit_error"
    assert int(limited.value.response.headers["retry-after"]) > 0


def test_an_unknown_model_or_path_is_not_found(
    echo: Gateway, sim: FaultBackend, connect: Connect, tmp_path: Path
) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        connect(echo).messages.batches.retrieve("msgbatch_1")
    assert (caught.value.type, caught.value.error_code) == ("not_found_error", "unknown_url")
    config = f"[backend b]\nurl = {sim.url}\nmodels = other\n"
    with (
        Gateway(folder=tmp_path, config=config) as gateway,
        pytest.raises(anthropic.NotFoundError, match="Known ones: other") as unknown,
    ):
        connect(gateway).messages.create(**says("Hi"))
    assert (unknown.value.type, unknown.value.error_code) == ("not_found_error", "model_not_found")


def test_a_bad_or_large_request_is_refused(gateway: FastGateway, connect: Connect) -> None:
    client = connect(gateway)
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(**says("Hi", model=5))
    assert caught.value.error_code == "invalid_value"
    assert caught.value.body["error"]["details"]["param"] == "model"
    with pytest.raises(anthropic.RequestTooLargeError) as large:
        client.messages.create(**says("x" * (2 << 20)))
    assert large.value.type == "request_too_large"


@pytest.mark.parametrize("stream", [False, True])
def test_a_backend_that_is_not_there_is_an_error_not_a_stream(
    connect: Connect, tmp_path: Path, stream: bool
) -> None:
    with (
        Gateway("--backend-url", f"http://127.0.0.1:{free_port()}", folder=tmp_path) as gateway,
        pytest.raises(anthropic.InternalServerError) as caught,
    ):
        connect(gateway).messages.create(**says("Hi"), stream=stream)
    assert caught.value.status_code == 502 and caught.value.type == "api_error"
    assert caught.value.error_code == "upstream_unreachable"


# -- errors of backends ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind", "raised"),
    [
        (400, "invalid_request_error", anthropic.BadRequestError),
        (404, "not_found_error", anthropic.NotFoundError),
        (409, "conflict_error", anthropic.ConflictError),
        (413, "request_too_large", anthropic.RequestTooLargeError),
        (422, "invalid_request_error", anthropic.UnprocessableEntityError),
        (429, "rate_limit_error", anthropic.RateLimitError),
        (500, "api_error", anthropic.InternalServerError),
        (503, "overloaded_error", anthropic.InternalServerError),
        (529, "overloaded_error", anthropic.InternalServerError),
    ],
)
@pytest.mark.parametrize("body", ["json", "html"])
def test_each_status_of_a_backend_raises_its_error(
    gateway: FastGateway, connect: Connect, status: int, kind: str, raised: Any, body: str
) -> None:
    for method in ("create", "count_tokens"):
        asked = fault(f"status:{status}:{body}")
        if method == "count_tokens":
            del asked["max_tokens"]
        with pytest.raises(raised) as caught:
            getattr(connect(gateway).messages, method)(**asked)
        error = caught.value
        assert (error.status_code, error.type) == (status, kind)
        code = "upstream_error" if body == "html" else f"sim_{status}"
        assert error.error_code == code and "internal-host" not in str(error)


@pytest.mark.parametrize(
    ("wrong", "status", "kind", "code"),
    [
        ("hang", 504, "timeout_error", "upstream_timeout"),
        ("401-upstream", 502, "api_error", "upstream_auth"),
        ("close-after-request", 502, "api_error", "upstream_reset"),
        ("garbage", 502, "api_error", "upstream_bad_response"),
        ("redirect:302", 502, "api_error", "upstream_bad_response"),
        ("json-body:truncated", 502, "api_error", "upstream_bad_response"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_that_may_have_run_is_not_retried(
    gateway: FastGateway,
    sim: FaultBackend,
    connect: Connect,
    name: str,
    stream: bool,
    wrong: str,
    status: int,
    kind: str,
    code: str,
) -> None:
    client = connect(gateway, max_retries=3, default_headers={"X-Request-ID": name})
    with pytest.raises(anthropic.InternalServerError) as caught:
        client.messages.create(**fault(wrong), stream=stream)
    error = caught.value
    assert (error.status_code, error.type, error.error_code) == (status, kind, code)
    assert error.request_id == error.body["request_id"] == name
    assert len(sim.records_for(name)) == 1


def test_a_refusal_is_retried_after_the_time_that_the_backend_says(
    gateway: FastGateway, sim: FaultBackend, connect: Connect, name: str
) -> None:
    client = connect(gateway, max_retries=1, default_headers={"X-Request-ID": f"same-{name}"})
    began = time.monotonic()
    message = client.messages.create(**fault("flaky:1:503"))
    assert message.content and time.monotonic() - began < 5
    assert len(sim.records_for(f"same-{name}")) == 2


def test_the_clients_own_timeout_is_obeyed(gateway: FastGateway, connect: Connect) -> None:
    with pytest.raises(anthropic.APIError) as caught:
        connect(gateway, timeout=0.5).messages.create(**fault("hang"))
    assert isinstance(caught.value, anthropic.APITimeoutError | anthropic.InternalServerError)


# -- streams that end badly ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "kind", "code"),
    [
        ("end-after:4", "api_error", "upstream_reset"),  # a clean end: the SDK would not notice
        ("eof-body+end-after:4", "api_error", "upstream_reset"),
        ("close-mid-body:4", "api_error", "upstream_reset"),
        ("reset-mid-body:4", "api_error", "upstream_reset"),
        ("chunked-truncated:4", "api_error", "upstream_reset"),
        ("not-json:4", "api_error", "upstream_bad_response"),
        ("stall-after:4", "timeout_error", "upstream_timeout"),
        ("pings:4", "timeout_error", "upstream_timeout"),
        ("error-event:4", "overloaded_error", None),
    ],
)
def test_a_stream_that_is_cut_raises(
    gateway: FastGateway, connect: Connect, name: str, wrong: str, kind: str, code: str | None
) -> None:
    client = connect(gateway, default_headers={"X-Request-ID": name}, max_retries=3)
    pieces: list[str] = []
    with (
        client.messages.stream(**fault(wrong)) as stream,
        pytest.raises(anthropic.APIStatusError) as caught,
    ):
        pieces.extend(stream.text_stream)
    assert len(pieces) == 2
    error = caught.value
    assert (error.status_code, error.type, error.error_code) == (200, kind, code)
    assert error.request_id == name
    assert gateway.line(name)["end"] in ("backend_truncated", "backend_timeout", "backend_error")


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ("empty-stream", 502),
        ("end-after:0", 502),
        ("json-for-sse", 502),
        ("error-event:0", 529),  # the type of the error says so
    ],
)
def test_a_stream_without_a_good_event_is_an_error_not_a_stream(
    gateway: FastGateway, connect: Connect, wrong: str, status: int
) -> None:
    with pytest.raises(anthropic.InternalServerError) as caught:
        connect(gateway).messages.create(**fault(wrong), stream=True)
    assert caught.value.status_code == status


def test_a_client_that_leaves_a_stream_ends_the_backends_work_at_once(
    gateway: FastGateway, sim: FaultBackend, connect: Connect, name: str
) -> None:
    client = connect(gateway, default_headers={"X-Request-ID": name})
    with client.messages.stream(**fault("tokens:1000:0.01")) as stream:
        next(stream.text_stream)
        left = time.monotonic()
    (record,) = sim.records_for(name)
    wait_for(lambda: record.peer_left, 2, "the gateway to leave the backend")
    assert record.peer_left is not None and record.peer_left - left < 0.5
    assert gateway.line(name)["end"] == "client_gone"
