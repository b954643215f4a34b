"""``models = auto`` and ``in_flight = auto`` in front of real llama.cpp servers.

The client is the ``openai`` SDK, which is used as chat frontends use it: it lists the models,
streams with usage, asks for a title and closes a stream in the middle.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.integration import tinymodel
from tests.integration.conftest import chat_model
from tests.integration.processes import Gateway, LlamaServer, Server, wait_for
from tests.integration.sdk import connect

#: A story that ends only with the context of the model.
STORY: Any = {
    "messages": [{"role": "user", "content": "Write a very long story."}],
    "max_tokens": 1900,
    "extra_body": {"ignore_eos": True},
}

#: Requests with the same prompt are shared nevertheless.
SAME_PROMPT = "[routing]\naffinity = off\n"


def get(server: Server, path: str) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(server.url + path, timeout=10) as response:
        body: bytes = response.read()
        return body


def requests_at(server: Server) -> tuple[int, int]:
    """How many requests a llama.cpp server is processing, and how many wait for a slot."""
    metrics = dict(
        line.split()
        for line in get(server, "/metrics").decode().splitlines()
        if line.startswith("llamacpp:requests_")
    )
    processing, waiting = (
        int(float(metrics[f"llamacpp:requests_{kind}"])) for kind in ("processing", "deferred")
    )
    return processing, waiting


def wait_until_idle(servers: Sequence[Server]) -> None:
    """Wait until the models have stopped, as they do when a client closes its stream."""

    def idle() -> bool:
        return all(requests_at(server) == (0, 0) for server in servers)

    wait_for(idle, 2, "free slots")


def ini(*servers: Server, **settings: str) -> str:
    more = "".join(f"{key} = {value}\n" for key, value in settings.items())
    return "".join(
        f"[backend gpu{n}]\nurl = {server.url}\n{more}" for n, server in enumerate(servers, 1)
    )


def known(gateway: Gateway, backends: int) -> bool:
    """Whether this many backends have told what they serve."""
    page = get(gateway, "/metrics").decode()
    return page.count("gatewayd_backend_discovered{") == backends and (
        'gatewayd_backend_discovered{backend="gpu1"} 0' not in page
        and 'gatewayd_backend_discovered{backend="gpu2"} 0' not in page
    )


@pytest.fixture(scope="module")
def one_and_four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[LlamaServer]]:
    """Two servers of the same chat model, one with a single slot and one with four."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                LlamaServer(
                    chat_model(), slots, alias="smollm2", folder=tmp_path_factory.mktemp("llama")
                )
            )
            for slots in ("1", "4")
        ]


def test_a_full_server_is_passed_over_and_no_request_waits_for_a_slot(
    one_and_four: list[LlamaServer], tmp_path: Path
) -> None:
    config = ini(*one_and_four, models="auto", in_flight="auto")
    with Gateway(folder=tmp_path, config=config) as gateway, connect(gateway) as client:
        wait_for(lambda: known(gateway, 2), 5, "the slots of both")
        assert "gpu1 is sent at most as many requests at once as it has slots: 1" in gateway.output
        assert "gpu2 is sent at most as many requests at once as it has slots: 4" in gateway.output
        with ExitStack() as stack:
            streams = [
                stack.enter_context(
                    client.chat.completions.create(model="smollm2", stream=True, **STORY)
                )
                for _ in range(5)
            ]
            for stream in streams:
                next(iter(stream))
            assert [requests_at(server) for server in one_and_four] == [(1, 0), (4, 0)]
            with pytest.raises(openai.InternalServerError) as caught:
                client.chat.completions.create(model="smollm2", **STORY)
            assert (caught.value.status_code, caught.value.code) == (503, "overloaded")
        wait_until_idle(one_and_four)


def test_without_it_a_server_lets_requests_wait_although_the_other_has_a_free_slot(
    one_and_four: list[LlamaServer], tmp_path: Path
) -> None:
    config = ini(*one_and_four, models="smollm2") + SAME_PROMPT
    with Gateway(folder=tmp_path, config=config) as gateway, connect(gateway) as client:
        with ExitStack() as stack:
            for _ in range(4):
                stack.enter_context(
                    client.chat.completions.create(model="smollm2", stream=True, **STORY)
                )
            one, four = (requests_at(server) for server in one_and_four)
            assert one == (1, 1) and four == (2, 0)
        wait_until_idle(one_and_four)


def test_models_are_found_where_they_are_and_follow_a_server_that_is_replaced(
    llama: LlamaServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("tiny")
    model = folder / "tiny.gguf"
    tinymodel.write(model)
    with LlamaServer(model, alias="first", folder=tmp_path_factory.mktemp("first")) as tiny:
        config = ini(llama, tiny, models="auto")
        gateway = Gateway(folder=folder, config=config)
        with gateway, connect(gateway) as client:
            wait_for(lambda: known(gateway, 2), 5, "both lists")
            assert [model.id for model in client.models.list()] == ["smollm2", "first"]
            for name in ("smollm2", "first", "smollm2", "first"):
                completion = client.chat.completions.create(
                    model=name, messages=[{"role": "user", "content": "Hi"}], max_tokens=3
                )
                assert completion.model == name
            with pytest.raises(openai.NotFoundError, match="Known ones: smollm2, first"):
                client.chat.completions.create(
                    model="second", messages=[{"role": "user", "content": "Hi"}]
                )
            tiny.stop()
            again = tmp_path_factory.mktemp("second")
            with LlamaServer(model, alias="second", folder=again, port=tiny.port):
                assert "reloaded" in gateway.reload()
                wait_for(lambda: "these models: second" in gateway.output, 5, "the new list")
                completion = client.chat.completions.create(
                    model="second", messages=[{"role": "user", "content": "Hi"}], max_tokens=3
                )
                assert completion.model == "second"
                with pytest.raises(openai.NotFoundError, match="no such model"):
                    client.models.retrieve("first")


def test_each_call_of_the_sdk_finds_the_server_that_lists_its_model(
    llama: LlamaServer, tool_llama: LlamaServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("vectors")
    tinymodel.write(folder / "tiny.gguf")
    with LlamaServer(folder / "tiny.gguf", "embeddings", alias="vectors", folder=folder) as vectors:
        config = ini(llama, tool_llama, vectors, models="auto")
        gateway = Gateway(folder=tmp_path_factory.mktemp("gateway"), config=config)
        with gateway, connect(gateway) as client:
            wait_for(lambda: known(gateway, 3), 5, "all lists")
            assert [m.id for m in client.models.list()] == ["smollm2", "tiny", "vectors"]
            embedded = client.embeddings.create(model="vectors", input=["Hi", "there"])
            assert [len(each.embedding) for each in embedded.data] == [tinymodel.WIDTH] * 2
            for model in ("smollm2", "tiny"):
                completion = client.completions.create(model=model, prompt="One,", max_tokens=3)
                assert completion.model == model and completion.choices[0].text
                response = client.responses.create(model=model, input="Hi", max_output_tokens=3)
                assert response.model == model and response.output_text
                events = list(
                    client.responses.create(
                        model=model, input="Hi", max_output_tokens=3, stream=True
                    )
                )
                assert events[-1].type == "response.completed"
            with pytest.raises(openai.APIStatusError) as caught:
                client.embeddings.create(model="tiny", input="Hi")
            assert caught.value.status_code == 501  # that server's own answer


def test_two_servers_without_models_share_a_name_that_none_lists(
    one_and_four: list[LlamaServer], tmp_path: Path
) -> None:
    """llama.cpp serves its model under any name."""
    log = tmp_path / "access.log"
    config = ini(*one_and_four) + f"[log]\naccess = {log}\n" + SAME_PROMPT
    with Gateway(folder=tmp_path, config=config) as gateway, connect(gateway) as client:
        wait_for(lambda: known(gateway, 2), 5, "both lists")
        for _ in range(4):
            client.chat.completions.create(
                model="gpt-4o", messages=[{"role": "user", "content": "Hi"}], max_tokens=2
            )

        def asked() -> list[dict[str, Any]]:
            lines = [json.loads(line) for line in log.read_text().splitlines()]
            return [line for line in lines if line["route"] == "/v1/chat/completions"]

        wait_for(lambda: len(asked()) == 4, 2, "four lines in the log")
        assert sorted(line["backend"][0] for line in asked()) == ["gpu1"] * 2 + ["gpu2"] * 2


def test_the_traffic_of_a_chat_frontend(
    one_and_four: list[LlamaServer], tool_llama: LlamaServer, tmp_path: Path
) -> None:
    """As Open WebUI does: models, a chat that streams with usage, a title, and a closed stream."""
    config = ini(*one_and_four, tool_llama, models="auto", in_flight="auto")
    with Gateway(folder=tmp_path, config=config) as gateway, connect(gateway) as client:
        wait_for(lambda: known(gateway, 3), 5, "all lists")
        names = [model.id for model in client.models.list()]
        assert names == ["smollm2", "tiny"]
        history: list[Any] = [{"role": "user", "content": "Count from one to five."}]
        for _ in range(3):
            stream = client.chat.completions.create(
                model="smollm2",
                messages=history,
                max_tokens=12,
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = list(stream)
            assert chunks[-1].usage is not None and chunks[-1].choices == []
            assert chunks[-1].usage.completion_tokens <= 12
            text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            history += [
                {"role": "assistant", "content": text},
                {"role": "user", "content": "Go on."},
            ]
        title = client.chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": f"Give a short title for: {history!r}"}],
            max_tokens=10,
            stream=False,
        )
        assert title.choices[0].message.content and title.usage is not None
        stream = client.chat.completions.create(model="smollm2", stream=True, **STORY)
        next(iter(stream))
        assert sum(requests_at(server)[0] for server in one_and_four) == 1
        stream.close()
        wait_until_idle(one_and_four)
