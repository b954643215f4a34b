"""Endpoints other than chat, with the official ``openai`` SDK, through the gateway to real servers.

llama.cpp's server has completions, responses, messages and, with a suitable model, embeddings. A
stub serves speech and transcriptions, because there is no small model for sound.
"""

from __future__ import annotations

import http.client
import itertools
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.integration import tinymodel
from tests.integration.processes import Gateway, LlamaServer, Server, wait_for
from tests.integration.sdk import connect

#: Waits for a log line and returns it.
Line = Callable[[], dict[str, Any]]

_numbers = itertools.count(1)

SOUND = bytes(range(256)) * 400


class Studio(BaseHTTPRequestHandler):
    """Speech for ``voice``, half of it for ``broken``; a transcription describes the upload."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer("application/json", b'{"object":"list","data":[{"id":"voice"}]}')

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/v1/audio/transcriptions":
            found = re.search(rb'name="model"\r\n\r\n(.*)\r\n', body)
            said = {"text": f"{found and found[1].decode()} heard {body.count(SOUND)}"}
            self._answer("application/json", json.dumps(said).encode())
        elif json.loads(body)["model"] == "voice":
            self._answer("audio/mpeg", SOUND)
        else:
            self.close_connection = True
            self._answer("audio/mpeg", SOUND[: len(SOUND) // 2], len(SOUND))

    def _answer(self, kind: str, body: bytes, length: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def studio() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Studio) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """llama.cpp's server with a model called ``tiny``, for embeddings."""
    folder = tmp_path_factory.mktemp("vectors")
    tinymodel.write(folder / "tiny.gguf")
    with LlamaServer(folder / "tiny.gguf", "embeddings", alias="tiny", folder=folder) as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gateway")


@pytest.fixture(scope="module")
def gateway(folder: Path, llama: LlamaServer, vectors: Server, studio: str) -> Iterator[Gateway]:
    """A gateway with three backends, and aliases for two models."""
    config = f"""
[log]
access = {folder / "access.log"}
[backend chat]
url = {llama.url}
models = smollm2, writer = smollm2
count_usage = yes
[backend vectors]
url = {vectors.url}
models = embedder = tiny
[backend studio]
url = {studio}
models = voice, broken, ear = whisper
"""
    with Gateway(folder=folder, config=config) as running:
        yield running


@pytest.fixture(scope="module")
def connected(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with connect(gateway) as client:
        yield client


@pytest.fixture
def name() -> str:
    """The id of the requests of this test."""
    return f"test-{next(_numbers)}"


@pytest.fixture
def client(connected: openai.OpenAI, name: str) -> openai.OpenAI:
    return connected.with_options(default_headers={"X-Request-ID": name})


@pytest.fixture
def line(folder: Path, name: str) -> Line:
    """A function that waits for the log line of the only request of this test."""

    def find() -> dict[str, Any]:
        def found() -> list[dict[str, Any]]:
            *lines, _unfinished = (folder / "access.log").read_text().split("\n")
            return [line for line in map(json.loads, lines) if line["id"] == name]

        (line,) = wait_for(found, 2, f"a log line of {name}")
        return line

    return find


def test_the_models_of_all_are_listed_by_the_names_they_can_be_asked_for(
    client: openai.OpenAI,
) -> None:
    names = [model.id for model in client.models.list()]
    assert names == ["smollm2", "writer", "embedder", "voice", "broken", "ear"]
    assert client.models.retrieve("writer").id == "writer"
    with pytest.raises(openai.NotFoundError, match="Known ones: smollm2, writer, embedder, voice"):
        client.completions.create(model="tiny", prompt="x")


@pytest.mark.parametrize("stream", [False, True])
def test_chat_by_another_name(client: openai.OpenAI, line: Line, stream: bool) -> None:
    asked: dict[str, Any] = {
        "model": "writer",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 8,
    }
    if stream:
        chunks = list(client.chat.completions.create(stream=True, **asked))
        assert {chunk.model for chunk in chunks} == {"writer"}
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert all(chunk.usage is None for chunk in chunks)  # counted, but not asked for
        assert chunks[-1].choices[0].finish_reason and "timings" in (chunks[-1].model_extra or {})
    else:
        completion = client.chat.completions.create(stream=False, **asked)
        assert completion.model == "writer" and completion.choices[0].message.content
    entry = line()
    assert (entry["model"], entry["backend"], entry["end"]) == ("writer", ["chat"], "complete")
    assert entry["prompt_tokens"] > 0 and entry["completion_tokens"] == 8


@pytest.mark.parametrize("stream", [False, True])
def test_completions(client: openai.OpenAI, llama: LlamaServer, line: Line, stream: bool) -> None:
    asked: dict[str, Any] = {
        "model": "writer",
        "prompt": "One, two, three,",
        "max_tokens": 8,
        "temperature": 0,
    }
    with connect(llama) as direct:
        wanted = direct.completions.create(**asked).choices[0]
    if stream:
        chunks = list(client.completions.create(stream=True, **asked))
        assert {chunk.model for chunk in chunks} == {"writer"}
        assert "".join(chunk.choices[0].text for chunk in chunks) == wanted.text
        assert chunks[-1].choices[0].finish_reason == wanted.finish_reason == "length"
    else:
        completion = client.completions.create(**asked)
        assert completion.model == "writer" and completion.choices == [wanted]
    entry = line()
    assert (entry["route"], entry["completion_tokens"]) == ("/v1/completions", 8)


def test_embeddings(client: openai.OpenAI, vectors: Server, line: Line) -> None:
    texts = ["Paris", "Paris It is sunny."]
    with connect(vectors) as direct:
        wanted = direct.embeddings.create(model="tiny", input=texts)
    found = client.embeddings.create(model="embedder", input=texts)
    assert found.model == "embedder" and found.data == wanted.data and len(found.data) == 2
    assert found.data[0].embedding != found.data[1].embedding
    entry = line()
    assert (entry["route"], entry["backend"]) == ("/v1/embeddings", ["vectors"])
    assert (entry["prompt_tokens"], entry["completion_tokens"]) == (found.usage.prompt_tokens, 0)


def test_an_endpoint_that_a_backend_does_not_have_answers_as_it_does_and_it_serves_on(
    client: openai.OpenAI, llama: LlamaServer
) -> None:
    for _ in range(5):
        with pytest.raises(openai.InternalServerError, match="Start it with `--embeddings`") as no:
            client.embeddings.create(model="smollm2", input="x")
        assert no.value.status_code == 501
    with pytest.raises(openai.NotFoundError, match="File Not Found"):
        client.audio.speech.create(model="smollm2", input="x", voice="alloy")
    completion = client.completions.create(model="smollm2", prompt="x", max_tokens=1)
    assert completion.choices


@pytest.mark.parametrize("stream", [False, True])
def test_responses(client: openai.OpenAI, line: Line, stream: bool) -> None:
    asked: dict[str, Any] = {
        "model": "writer",
        "input": "Hi",
        "max_output_tokens": 8,
        "temperature": 0,  # else a piece may be half of a character, and then two are one event
    }
    if stream:
        events = list(client.responses.create(stream=True, **asked))
        kinds = [event.type for event in events]
        assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
        assert kinds.count("response.output_text.delta") == 8
        last: Any = events[-1]
        response = last.response
        pieces = [event.delta for event in events if event.type == "response.output_text.delta"]
        assert response.output[0].content[0].text == "".join(pieces)
    else:
        response = client.responses.create(**asked)
        assert response.output_text
    assert response.model == "writer" and response.usage.output_tokens == 8
    entry = line()
    assert (entry["route"], entry["end"], entry["stream"]) == ("/v1/responses", "complete", stream)
    assert entry["completion_tokens"] == 8
    assert entry["prompt_tokens"] == response.usage.input_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_messages(gateway: Gateway, name: str, line: Line, stream: bool) -> None:
    """With the ``event:`` lines that Anthropic's SDK needs."""
    asked = {
        "model": "writer",
        "max_tokens": 8,
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": stream,
    }
    connection = http.client.HTTPConnection(gateway.url.removeprefix("http://"), timeout=30)
    headers = {"Content-Type": "application/json", "X-Request-ID": name}
    connection.request("POST", "/v1/messages", json.dumps(asked), headers)
    reply = connection.getresponse()
    body = reply.read().decode()
    connection.close()
    assert reply.status == 200
    if stream:
        events = [event.split("\n", 1) for event in body.removesuffix("\n\n").split("\n\n")]
        payloads = [json.loads(data.removeprefix("data: ")) for _, data in events]
        assert [event for event, _ in events] == [f"event: {p['type']}" for p in payloads]
        assert payloads[0]["message"]["model"] == "writer"
        assert payloads[-1]["type"] == "message_stop"
    else:
        message = json.loads(body)
        assert message["model"] == "writer" and message["content"][0]["text"]
    entry = line()
    assert (entry["route"], entry["end"]) == ("/v1/messages", "complete")
    assert entry["completion_tokens"] == 8


def test_speech(client: openai.OpenAI, line: Line) -> None:
    assert client.audio.speech.create(model="voice", input="x", voice="alloy").content == SOUND
    assert line()["end"] == "complete"


def test_speech_that_breaks_off_is_not_whole(client: openai.OpenAI, line: Line) -> None:
    with pytest.raises(openai.APIConnectionError):
        client.audio.speech.create(model="broken", input="x", voice="alloy")
    assert line()["end"] == "backend_truncated"


def test_an_upload_arrives_unchanged(client: openai.OpenAI, line: Line) -> None:
    said = client.audio.transcriptions.create(model="ear", file=("a.wav", SOUND))
    assert said.text == "whisper heard 1"  # the sound is whole, the model has its real name
    entry = line()
    assert (entry["route"], entry["backend"]) == ("/v1/audio/transcriptions", ["studio"])
