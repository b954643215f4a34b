"""The endpoints that llama.cpp does not have, with the official ``openai`` SDK, and two stubs.

A stub stores responses, draws images and speaks, as OpenAI's API does on the wire.
"""

from __future__ import annotations

import base64
import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import openai
import pytest

from tests.integration.processes import Gateway
from tests.integration.sdk import connect

IMAGE = base64.b64encode(b"\x89PNG" * 100).decode()
HOSTS = ("one", "two")
_numbers = itertools.count(1)


def response(id: str, status: str, text: str) -> dict[str, Any]:
    message = {"type": "output_text", "text": text, "annotations": []}
    item = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed"}
    return {
        "id": id,
        "object": "response",
        "created_at": 1,
        "status": status,
        "model": "m",
        "output": [{**item, "content": [message]}],
        "parallel_tool_calls": False,
        "tool_choice": "auto",
        "tools": [],
    }


class Stub(BaseHTTPRequestHandler):
    """Requests that it has received stand in ``server.asked``, responses in ``server.stored``."""

    protocol_version = "HTTP/1.1"
    server: Any

    def do_GET(self) -> None:
        path, query = self._asked()
        id = path.split("/")[3] if path.count("/") > 2 else ""
        if path == "/v1/models":
            self._json({"object": "list", "data": [{"id": "m", "object": "model"}]})
        elif id not in self.server.stored:
            self._json({"error": {"message": "No such response.", "code": "missing"}}, 404)
        elif path.endswith("/input_items"):
            item = {"id": "item_1", "type": "message", "role": "user", "content": []}
            self._json({"object": "list", "data": [item], "has_more": False})
        elif query.get("stream") == ["true"]:
            whole = response(id, "completed", self.server.name)
            self._events(("response.completed", {"response": whole, "sequence_number": 7}))
        else:
            self._json(response(id, "completed", self.server.name))

    def do_DELETE(self) -> None:
        path, _ = self._asked()
        self.server.stored.discard(path.split("/")[3])
        self._json({"id": path.split("/")[3], "object": "response", "deleted": True})

    def do_POST(self) -> None:
        path, _ = self._asked()
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        streams = b"stream" in body
        if path == "/v1/responses":
            id = f"resp_{self.server.name}{next(_numbers)}"
            self.server.stored.add(id)
            self._json(response(id, "completed", self.server.name))
        elif path.endswith("/cancel"):
            self._json(response(path.split("/")[3], "cancelled", self.server.name))
        elif path.startswith("/v1/images/"):
            kind = "image_edit" if path.endswith("edits") else "image_generation"
            made = {"b64_json": IMAGE, "created_at": 1, "size": "1024x1024", "quality": "high"}
            if streams:
                self._events(
                    (f"{kind}.partial_image", {**made, "partial_image_index": 0}),
                    (f"{kind}.completed", made),
                )
            else:
                self._json({"created": 1, "data": [{"b64_json": IMAGE}]})
        elif path == "/v1/audio/speech":
            self._events(
                ("speech.audio.delta", {"audio": IMAGE}),
                ("speech.audio.done", {"usage": {"input_tokens": 1, "output_tokens": 2}}),
            )
        else:
            self._json({"id": "modr-1", "model": "m", "results": []})

    def _asked(self) -> tuple[str, dict[str, list[str]]]:
        self.server.asked.append(f"{self.command} {self.path}")
        parts = urlsplit(self.path)
        return parts.path, parse_qs(parts.query)

    def _json(self, document: Any, status: int = 200) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _events(self, *events: tuple[str, dict[str, Any]]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for name, data in events:
            payload = json.dumps({"type": name, **data})
            event = f"event: {name}\ndata: {payload}\n\n".encode()
            self.wfile.write(b"%x\r\n%b\r\n" % (len(event), event))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def stubs() -> Iterator[list[Any]]:
    with ExitStack() as stack:
        servers: list[Any] = []
        for name in HOSTS:
            server: Any = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Stub))
            server.daemon_threads = True
            server.name, server.asked, server.stored = name, [], set()
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            servers.append(server)
        yield servers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gateway")


@pytest.fixture(scope="module")
def client(stubs: list[Any], folder: Path) -> Iterator[openai.OpenAI]:
    config = f"[log]\naccess = {folder / 'access.log'}\n[routing]\naffinity = off\n" + "".join(
        f"[backend {each.name}]\nurl = http://127.0.0.1:{each.server_port}\n" for each in stubs
    )
    with (
        Gateway(folder=folder, config=config) as gateway,
        connect(gateway) as made,
    ):
        yield made


@pytest.fixture(autouse=True)
def _forget(stubs: list[Any]) -> None:
    for stub in stubs:
        stub.asked.clear()


def test_a_response_is_retrieved_cancelled_and_deleted_where_it_was_made(
    client: openai.OpenAI, stubs: list[Any]
) -> None:
    made = [client.responses.create(model="m", input="hi") for _ in range(4)]
    assert {each.output_text for each in made} == set(HOSTS)  # they take turns
    for each in made:
        host = each.output_text
        assert client.responses.retrieve(each.id).output_text == host
        events = list(client.responses.retrieve(each.id, stream=True, starting_after=3))
        assert [event.type for event in events] == ["response.completed"]
        items = client.responses.input_items.list(each.id, limit=5, order="asc")
        assert [item.id for item in items] == ["item_1"]
        following = client.responses.create(model="m", input="x", previous_response_id=each.id)
        assert following.output_text == host
        assert client.responses.cancel(each.id).output_text == host
        client.responses.delete(each.id)
    asked = [line for stub in stubs for line in stub.asked]
    assert sum("stream=true" in line and "starting_after=3" in line for line in asked) == 4
    assert sum(line.startswith("DELETE") for line in asked) == 4
    assert any("limit=5&order=asc" in line for line in asked)


def test_a_response_that_the_gateway_has_not_seen_is_looked_for(
    client: openai.OpenAI, stubs: list[Any]
) -> None:
    stubs[1].stored.add("resp_elsewhere")
    client.responses.delete("resp_elsewhere")
    assert stubs[0].asked == ["GET /v1/responses/resp_elsewhere"]
    assert stubs[1].asked == [f"{m} /v1/responses/resp_elsewhere" for m in ("GET", "DELETE")]
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.delete("resp_nowhere")
    assert caught.value.code == "response_not_found"


@pytest.mark.parametrize("edit", [False, True])
def test_images_as_a_document_and_as_a_stream(client: openai.OpenAI, edit: bool) -> None:
    asked: dict[str, Any] = {"model": "m", "prompt": "an otter"}
    if edit:
        asked["image"] = [("a.png", b"\x89PNG" * 5000), ("b.png", b"\x89PNG")]
    call: Any = client.images.edit if edit else client.images.generate
    assert call(**asked).data[0].b64_json == IMAGE
    kind = "image_edit" if edit else "image_generation"
    events = [event.type for event in call(**asked, stream=True, partial_images=1)]
    assert events == [f"{kind}.partial_image", f"{kind}.completed"]


def test_speech_as_events(client: openai.OpenAI, folder: Path) -> None:
    with client.audio.speech.with_streaming_response.create(
        model="m", voice="alloy", input="hi", stream_format="sse"
    ) as reply:
        text = reply.read().decode()
    assert text.count("data: ") == 2 and '"speech.audio.done"' in text
    (line,) = [
        entry
        for entry in map(json.loads, (folder / "access.log").read_text().splitlines())
        if entry["route"] == "/v1/audio/speech"
    ]
    assert (line["end"], line["stream"], line["completion_tokens"]) == ("complete", True, 2)


def test_moderations(client: openai.OpenAI) -> None:
    assert client.moderations.create(model="m", input="hi").id == "modr-1"
