"""The recipes of the documentation, run: with llama.cpp's server, or with a stand-in for a server.

What stands in for vLLM, Ollama and a hosted service lists models as they do.
"""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.faultbackend import FaultBackend
from tests.integration.conftest import chat_model
from tests.integration.processes import Gateway, LlamaServer, wait_for
from tests.integration.sdk import connect
from tests.recipes import prepare, recipes

HI: Any = [{"role": "user", "content": "Hi"}]


def backends_asked(log: Path) -> list[list[str]]:
    """The backends of each chat in the access log."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line["backend"] for line in lines if line["route"] == "/v1/chat/completions"]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "access.log"


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[LlamaServer]]:
    """Two llama.cpp servers as the recipe starts them, with one slot each."""

    def box() -> LlamaServer:
        return LlamaServer(chat_model(), "1", alias="qwen3", folder=tmp_path_factory.mktemp("box"))

    with box() as one, box() as two:
        yield [one, two]


def test_two_llama_cpp_boxes(boxes: list[LlamaServer], tmp_path: Path, log: Path) -> None:
    ini = prepare(recipes()["Two llama.cpp boxes"], tmp_path, box1=boxes[0].url, box2=boxes[1].url)
    with (
        Gateway(folder=tmp_path, config=f"{ini}\n[log]\naccess = {log}\n") as gateway,
        connect(gateway) as client,
    ):
        wait_for(lambda: gateway.output.count("these models: qwen3") == 2, 5, "both lists")
        wait_for(lambda: gateway.output.count("it has slots: 1") == 2, 5, "the slots of both")
        assert [model.id for model in client.models.list()] == ["qwen3"]
        for talk in ("Tell me about rivers.", "Tell me about mountains."):
            history: Any = [{"role": "user", "content": talk}]
            for _ in range(2):
                reply = client.chat.completions.create(
                    model="qwen3", messages=history, max_tokens=5
                )
                text = reply.choices[0].message.content or ""
                history += [{"role": "assistant", "content": text}, *HI]
        wait_for(lambda: len(backends_asked(log)) == 4, 2, "four lines in the log")
        first, second = backends_asked(log)[:2], backends_asked(log)[2:]
        assert first[0] == first[1] and second[0] == second[1]  # affinity
        with pytest.raises(openai.NotFoundError, match="Known ones: qwen3"):
            client.chat.completions.create(model="other", messages=HI)


def test_vllm_with_a_hosted_fallback(tmp_path: Path, log: Path) -> None:
    with FaultBackend() as vllm, FaultBackend() as hosted:
        vllm.models, hosted.models = ("Qwen/Qwen3-8B", "lora-1"), ("large-model-2",)
        ini = prepare(
            recipes()["vLLM with a hosted fallback"], tmp_path, vllm=vllm.url, hosted=hosted.url
        )
        with (
            Gateway(folder=tmp_path, config=f"{ini}\n[log]\naccess = {log}\n") as gateway,
            connect(gateway) as client,
        ):
            wait_for(lambda: "Qwen/Qwen3-8B, lora-1" in gateway.output, 5, "the list")
            for model in ("chat", "Qwen/Qwen3-8B", "lora-1"):
                reply = client.chat.completions.create(model=model, messages=HI)
                assert reply.model == model or model != "chat"
            vllm.stop()
            raw = client.chat.completions.with_raw_response.create(model="chat", messages=HI)
            assert raw.headers["x-gatewayd-backend"] == "hosted"
            assert raw.headers["x-gatewayd-model"] == "large-model-2"
            assert raw.parse().model == "chat"
            with pytest.raises(openai.InternalServerError):
                client.chat.completions.create(model="lora-1", messages=HI)
            with pytest.raises(openai.NotFoundError):
                client.chat.completions.create(model="large-model-2", messages=HI)
        (record,) = hosted.records  # one chat, and its list was never asked for
        assert record.header("authorization") == ["Bearer in-hosted.key"]
        assert json.loads(record.body)["model"] == "large-model-2"
        asked = [json.loads(r.body)["model"] for r in vllm.records if r.method == "POST"]
        assert asked == ["Qwen/Qwen3-8B", "Qwen/Qwen3-8B", "lora-1"]
        assert backends_asked(log)[:4] == [["vllm"]] * 3 + [["vllm", "hosted"]]


def test_ollama_behind_tokens(tmp_path: Path) -> None:
    with FaultBackend() as ollama:
        ollama.models = ("llama3.2:latest", "qwen3:8b")
        ini = prepare(recipes()["Ollama behind tokens"], tmp_path, ollama=ollama.url)
        trust = ssl.create_default_context(cafile=tmp_path / "gateway.crt")
        with Gateway(folder=tmp_path, config=ini, trust=trust) as gateway:
            with (
                connect(gateway, "wrong", trust) as client,
                pytest.raises(openai.AuthenticationError),
            ):
                client.models.list()
            with connect(gateway, "in-alice.token", trust) as client:
                assert [m.id for m in client.models.list()] == ["llama3.2:latest", "qwen3:8b"]
                client.chat.completions.create(model="qwen3:8b", messages=HI)
            with connect(gateway, "in-bot.token", trust) as client:
                assert [m.id for m in client.models.list()] == ["llama3.2:latest"]
                client.chat.completions.create(model="llama3.2", messages=HI)
                with pytest.raises(openai.PermissionDeniedError):
                    client.chat.completions.create(model="qwen3:8b", messages=HI)
            connection = http.client.HTTPSConnection("127.0.0.1", gateway.port, context=trust)
            connection.request("POST", "/api/pull", headers={"x-api-key": "in-alice.token"})
            assert connection.getresponse().status == 404
            connection.close()
        assert not any(record.header("authorization") for record in ollama.records)
