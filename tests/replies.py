"""Endpoints by their paths, and the streams that servers send there."""

from __future__ import annotations

import json
from typing import Any

from gatewayd.wire.call import Endpoint
from gatewayd.wire.chat import ChatCall
from gatewayd.wire.dialects import OPENAI
from gatewayd.wire.endpoints import ENDPOINTS
from gatewayd.wire.request import JSONCall
from gatewayd.wire.upload import FormCall
from tests.memory import settings

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
SPEECH, TRANSCRIPTIONS = "/v1/audio/speech", "/v1/audio/transcriptions"


def endpoint(path: str, method: str = "POST") -> Endpoint:
    return next(row for row in ENDPOINTS if (row.method, row.path) == (method, path))


#: Endpoints that take any JSON object (a chat needs messages), and those that take forms.
JSON_PATHS = [
    e.path for e in ENDPOINTS if issubclass(e.request, JSONCall) and e.request is not ChatCall
]
UPLOAD_PATHS = [e.path for e in ENDPOINTS if issubclass(e.request, FormCall)]
#: Of the former, those whose replies are read.
READ_PATHS = [path for path in JSON_PATHS if path != SPEECH]
#: Of those, the ones with OpenAI's error envelope.
OPENAI_PATHS = [path for path in READ_PATHS if endpoint(path).dialect is OPENAI]
#: Those whose streams end with an event of a certain type.
BY_EVENT = (RESPONSES, MESSAGES)

#: Settings with a backend that serves ``real`` as ``nick``, too.
ALIASED = settings(backend_fake_url="http://127.0.0.1:1", backend_fake_models="*, nick = real")


def framed(events: list[tuple[str, bytes]]) -> bytes:
    return b"".join(
        (f"event: {name}\n".encode() if name else b"") + b"data: " + payload + b"\n\n"
        for name, payload in events
    )


def typed(name: str, **more: Any) -> tuple[str, bytes]:
    return name, json.dumps({"type": name, **more}).encode()


def text(piece: str, finish: str | None = None, index: int = 0) -> tuple[str, bytes]:
    choice = {"index": index, "text": piece, "finish_reason": finish}
    payload = {"id": "cmpl-1", "object": "text_completion", "model": "real", "choices": [choice]}
    return "", json.dumps(payload).encode()


#: A whole stream of each kind.
STREAMS = {
    RESPONSES: [
        typed("response.created", response={"model": "real", "usage": None, "error": None}),
        typed("response.output_text.delta", delta="a", sequence_number=1),
        typed("response.completed", response={"model": "real", "usage": {"input_tokens": 3}}),
    ],
    MESSAGES: [
        typed("message_start", message={"model": "real", "usage": {"input_tokens": 3}}),
        typed("ping"),
        typed("content_block_delta", delta={"type": "text_delta", "text": "a"}),
        typed("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 1}),
        typed("message_stop"),
    ],
    COMPLETIONS: [text("a"), text("b"), text("", "stop"), ("", b"[DONE]")],
}
