"""The official ``openai`` SDK works with gatewayd as with OpenAI."""

import asyncio
import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import openai
import pytest
from openai.types.chat import ChatCompletionChunk, ChatCompletionFunctionToolParam

from tests.integration import sdk
from tests.integration.processes import Gateway, LlamaServer, Server, free_port

Connect = Callable[[Server], openai.OpenAI]

WEATHER: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Make clients of a server; they are closed at the end of the test."""
    clients: list[openai.OpenAI] = []

    def make(server: Server) -> openai.OpenAI:
        client = sdk.connect(server)
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


def test_the_echo_answers_with_the_last_user_message(echo: Gateway, connect: Connect) -> None:
    completion = connect(echo).chat.completions.create(
        model="any-name",
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "First."},
            {"role": "assistant", "content": "Yes?"},
            {"role": "user", "content": [{"type": "text", "text": "Grüße, 世界"}]},
        ],
    )
    assert completion.object == "chat.completion"
    assert completion.model == "any-name"
    assert completion.created > 1_600_000_000
    (choice,) = completion.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == "Echo: Grüße, 世界"
    assert choice.finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.total_tokens == (
        completion.usage.prompt_tokens + completion.usage.completion_tokens
    )


def test_the_echo_streams_its_reply_and_its_usage(echo: Gateway, connect: Connect) -> None:
    stream = connect(echo).chat.completions.create(
        model="echo",
        messages=[{"role": "user", "content": "Hello"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    reply, usage = list(stream)
    assert reply.object == "chat.completion.chunk"
    assert reply.choices[0].delta.role == "assistant"
    assert reply.choices[0].delta.content == "Echo: Hello"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is None
    assert usage.choices == []
    assert usage.usage is not None and usage.usage.completion_tokens > 0
    assert usage.id == reply.id


def test_without_include_usage_no_usage_is_streamed(echo: Gateway, connect: Connect) -> None:
    stream = connect(echo).chat.completions.create(
        model="echo", messages=[{"role": "user", "content": "Hello"}], stream=True
    )
    (reply,) = list(stream)
    assert reply.choices[0].finish_reason == "stop"


def test_a_real_model_answers_as_it_does_without_a_gateway(
    chat: Gateway, llama: LlamaServer, connect: Connect
) -> None:
    direct = connect(llama).chat.completions.create(**counting())
    completion = connect(chat).chat.completions.create(**counting())
    assert completion.choices[0].message.content
    assert completion.choices == direct.choices
    assert completion.usage == direct.usage
    assert completion.model == direct.model == "smollm2"


def test_the_id_is_the_request_id_and_stands_in_the_header(chat: Gateway, connect: Connect) -> None:
    create = connect(chat).chat.completions.with_raw_response.create
    response = create(
        model="smollm2",
        messages=[{"role": "user", "content": "Hi"}],
        max_tokens=2,
        extra_headers={"X-Request-ID": "job:42/step=1"},
    )
    assert response.headers.get_list("x-request-id") == ["job:42/step=1"]
    assert response.request_id == "job:42/step=1"
    assert response.parse().id == "job:42/step=1"

    response = create(model="smollm2", messages=[{"role": "user", "content": "Hi"}], max_tokens=2)
    assert response.request_id is not None and len(response.request_id) >= 32
    assert response.parse().id == response.request_id
    assert response.headers["content-type"].startswith("application/json")


def test_a_real_model_streams_in_order_and_as_it_speaks(chat: Gateway, connect: Connect) -> None:
    client = connect(chat)
    whole = client.chat.completions.create(**counting())
    start = time.monotonic()
    stream = client.chat.completions.create(
        **counting(),
        stream=True,
        stream_options={"include_usage": True},
        extra_headers={"X-Request-ID": "counting"},
    )
    assert stream.response.headers["content-type"].startswith("text/event-stream")
    assert stream.response.headers.get_list("x-request-id") == ["counting"]
    chunks, arrivals = [], []
    for chunk in stream:
        chunks.append(chunk)
        arrivals.append(time.monotonic() - start)

    assert {chunk.id for chunk in chunks} == {"counting"}
    assert chunks[0].choices[0].delta.role == "assistant"
    assert text(chunks) == whole.choices[0].message.content
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert set(reasons[:-1]) == {None}
    assert reasons[-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 48
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert_it_came_bit_by_bit(arrivals)


@pytest.mark.parametrize("n", [1, 2])
def test_several_prompts_stream_side_by_side(chat: Gateway, connect: Connect, n: int) -> None:
    """llama.cpp begins each of these streams with ``data: null``."""
    prompts = ["One,", "A, B,", "Mon, Tue,"]
    for _ in range(4 // n):  # not one of them is held against the backend
        stream = connect(chat).completions.create(
            model="smollm2", prompt=prompts, n=n, max_tokens=2, stream=True
        )
        reasons = {c.index: c.finish_reason for chunk in stream for c in chunk.choices}
        assert reasons == dict.fromkeys(range(len(prompts) * n), "length")


def test_the_asynchronous_client_does_the_same(chat: Gateway) -> None:
    async def converse() -> None:
        async with openai.AsyncOpenAI(
            base_url=chat.url + "/v1",
            api_key="any",
            max_retries=0,
            timeout=30,
            http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
        ) as client:
            whole, streamed = await asyncio.gather(
                client.chat.completions.create(**counting()), read(client)
            )
        assert text(streamed) == whole.choices[0].message.content

    async def read(client: openai.AsyncOpenAI) -> list[ChatCompletionChunk]:
        start = time.monotonic()
        stream = await client.chat.completions.create(**counting(), stream=True)
        chunks, arrivals = [], []
        async for chunk in stream:
            chunks.append(chunk)
            arrivals.append(time.monotonic() - start)
        assert_it_came_bit_by_bit(arrivals)
        assert {chunk.id for chunk in chunks} == {stream.response.headers["x-request-id"]}
        return chunks

    asyncio.run(asyncio.wait_for(converse(), timeout=60))


def test_closing_a_stream_stops_the_model(
    chat: Gateway, llama: LlamaServer, connect: Connect
) -> None:
    stream = connect(chat).chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "Write a very long story."}],
        max_tokens=1900,
        extra_body={"ignore_eos": True},
        stream=True,
    )
    for _ in range(3):
        next(stream)
    assert requests_processing(llama) == 1
    stream.close()
    deadline = time.monotonic() + 2
    while requests_processing(llama):
        assert time.monotonic() < deadline, "the model still speaks, to nobody"
        time.sleep(0.02)


def test_a_tool_call_and_its_answer(tools: Gateway, connect: Connect) -> None:
    client = connect(tools)
    question = {"role": "user", "content": "What is the weather in Paris?"}
    completion = client.chat.completions.create(**asking(question))
    (choice,) = completion.choices
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    assert call.id

    answer = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    request = choice.message.model_dump(exclude_none=True)
    completion = client.chat.completions.create(**asking(question, request, answer))
    assert completion.choices[0].message.content == "It is sunny."
    assert completion.choices[0].finish_reason == "stop"


def test_a_streamed_tool_call(tools: Gateway, connect: Connect) -> None:
    stream = connect(tools).chat.completions.create(
        **asking({"role": "user", "content": "What is the weather in Paris?"}), stream=True
    )
    chunks = list(stream)
    calls = [call for c in chunks for call in c.choices[0].delta.tool_calls or []]
    assert {call.index for call in calls} == {0}
    assert calls[0].id
    assert calls[0].function is not None and calls[0].function.name == "get_weather"
    arguments = [call.function.arguments or "" for call in calls if call.function]
    assert len(arguments) > 5
    assert json.loads("".join(arguments)) == {"city": "Paris"}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_a_bad_request_names_the_parameter(echo: Gateway, connect: Connect) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        connect(echo).chat.completions.create(
            model="echo", messages=[], extra_headers={"X-Request-ID": "bad-1"}
        )
    error = caught.value
    assert error.type == "invalid_request_error"
    assert error.code == "invalid_value"
    assert error.param == "messages"
    assert error.request_id == "bad-1"


def test_the_refusal_of_a_backend_keeps_its_text(chat: Gateway, connect: Connect) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        connect(chat).chat.completions.create(
            model="smollm2", messages=[{"role": "user", "content": "word " * 5000}]
        )
    error = caught.value
    assert error.type == "exceed_context_size_error"
    assert isinstance(error.body, dict) and error.body["n_ctx"] == 2048
    assert error.request_id


@pytest.mark.parametrize("stream", [False, True])
def test_a_backend_that_is_not_there_is_an_error_not_a_stream(
    stream: bool, connect: Connect, tmp_path: Path
) -> None:
    with Gateway("--backend-url", f"http://127.0.0.1:{free_port()}", folder=tmp_path) as gateway:
        with pytest.raises(openai.InternalServerError) as caught:
            connect(gateway).chat.completions.create(
                model="any", messages=[{"role": "user", "content": "Hi"}], stream=stream
            )
        assert caught.value.status_code == 502
        assert caught.value.type == "upstream_error"
        assert caught.value.code == "upstream_unreachable"


def test_an_unknown_route_is_not_found(echo: Gateway, connect: Connect) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        connect(echo).batches.list()
    assert caught.value.type == "invalid_request_error"
    assert caught.value.code == "unknown_url"


def test_the_echo_lists_itself(echo: Gateway, connect: Connect) -> None:
    client = connect(echo)
    assert [model.id for model in client.models.list()] == ["echo"]
    model = client.models.retrieve("echo")
    assert (model.id, model.object) == ("echo", "model")


def test_the_backends_models_are_listed(chat: Gateway, connect: Connect) -> None:
    client = connect(chat)
    (model,) = client.models.list()
    assert (model.id, model.object) == ("smollm2", "model")
    assert model.created > 1_600_000_000
    assert client.models.retrieve("smollm2").id == "smollm2"


@pytest.mark.parametrize("name", ["echo", "chat"])
def test_an_unknown_model_is_not_found(
    name: str, connect: Connect, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        connect(request.getfixturevalue(name)).models.retrieve("no-such-model")
    assert caught.value.code == "model_not_found"


def counting() -> Any:
    """A request whose answer takes half a second and is always the same."""
    return {
        "model": "smollm2",
        "messages": [{"role": "user", "content": "Count from one to twenty, in words."}],
        "max_tokens": 48,
        "temperature": 0,
        "extra_body": {"ignore_eos": True, "cache_prompt": False},
    }


def asking(*messages: dict[str, Any]) -> Any:
    """A request that offers a tool."""
    return {"model": "tiny", "messages": messages, "tools": [WEATHER], "temperature": 0}


def text(chunks: list[ChatCompletionChunk]) -> str:
    """The text of a streamed reply."""
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def assert_it_came_bit_by_bit(arrivals: list[float]) -> None:
    """Check that chunks arrived over time; a buffered reply would arrive as a whole at the end."""
    assert len(arrivals) > 20
    assert arrivals[0] < arrivals[-1] / 2
    assert len({round(arrival, 3) for arrival in arrivals}) > len(arrivals) / 2


def requests_processing(llama: LlamaServer) -> int:
    """The number of requests that the model is processing."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(llama.url + "/metrics", timeout=5) as response:
        for line in cast(bytes, response.read()).decode().splitlines():
            if line.startswith("llamacpp:requests_processing "):
                return int(float(line.split()[1]))
    raise AssertionError("llama.cpp does not say how many requests it works on")
