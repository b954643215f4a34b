"""The answers in README.rst are what the gateway sends, each on a line of its own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tests.memory import Answer, Gateway, settings

README = Path(__file__).parent.parent / "README.rst"
LINES = [line.strip() for line in README.read_text().splitlines()]


def test_the_answer_to_a_request_without_messages() -> None:
    (line,) = [line for line in LINES if '"code":"invalid_value"' in line]
    client = Gateway().post("/v1/chat/completions", messages=[])
    assert line.encode() == Answer(client).body


def test_the_list_of_models_of_the_echo() -> None:
    (line,) = [line for line in LINES if line.startswith('{"object":"list"')]
    assert line.encode() == Answer(Gateway().request("GET", "/v1/models")).body


def test_the_answer_to_a_request_without_a_token() -> None:
    (line,) = [line for line in LINES if '"code":"missing_api_key"' in line]
    digest = hashlib.sha256(b"secret").hexdigest()
    gateway = Gateway(settings=settings(token_alice_sha256=digest))
    assert line.encode() == Answer(gateway.request("GET", "/v1/models")).body


def test_the_completion_of_the_echo_but_for_its_date() -> None:
    (line,) = [line for line in LINES if line.startswith('{"id":"demo-1"')]
    body = {"messages": [{"role": "user", "content": "Hello"}]}
    headers = {"Content-Type": "application/json", "X-Request-ID": "demo-1"}
    client = Gateway().request("POST", "/v1/chat/completions", json.dumps(body).encode(), headers)
    shown, sent = json.loads(line), Answer(client).json
    assert shown.pop("created") <= sent.pop("created")
    assert list(shown.items()) == list(sent.items())
