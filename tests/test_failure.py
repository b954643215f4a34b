"""Errors that are not envelopes: what the client is sent, and what is logged."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatewayd.wire.failure import MAX_LOGGED, MAX_SHOWN, error_of_reply, may_be_shown

KEY = "sentinel-Backend-Key"


def told(body: Any, status: int = 400, key: str = "") -> tuple[str, str]:
    """The message that the client gets, without its beginning, and the detail for the log."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    problem = error_of_reply(raw, status, (), key)
    assert problem.payload is None and problem.status == status
    error = json.loads(problem.body())["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["code"] == "upstream_error"
    start = f"The backend answered with status {status}"
    assert error["message"].startswith(start)
    return error["message"].removeprefix(start).removeprefix(": "), problem.detail


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"object": "error", "message": "max_tokens is too large", "code": 400}, None),
        ({"error": "Input is empty", "error_type": "validation"}, "Input is empty"),
        ({"error": "model 'llama3:8b' not found"}, None),
        ({"detail": "Not Found"}, "Not Found"),
        ({"message": "Qwen/Qwen2.5-7B-Instruct does not exist"}, None),
        (
            {
                "detail": [
                    {"loc": ["body", "messages", 0], "msg": "Field required", "input": {"x": 1}},
                    {"type": "x", "loc": "odd", "msg": "Bad"},
                    "odd",
                ]
            },
            "body.messages.0: Field required; : Bad; ",
        ),
    ],
)
def test_a_short_plain_text_is_sent_and_logged(body: dict[str, Any], text: str | None) -> None:
    wanted = text or str(body.get("message") or body.get("error"))
    assert told(body) == (wanted, wanted.strip())


@pytest.mark.parametrize(
    "text",
    [
        "<html>no</html>",
        "see http://10.0.0.7/x",
        "connect to 10.0.0.7 failed",
        "no route to gpu-3.corp",
        "gpu3:8000 refused",
        "cannot open /srv/models/x.gguf",
        r"cannot open C:\\models",
        "Traceback (most recent call last)",
        'File "x", line 3',
        "RuntimeError: CUDA out of memory",
        "[Errno 111] Connection refused",
        "raised in engine.py",
        "key sk-sim-secret-key is wrong",
        "Authorization: Bearer x",
        "token 0123456789abcdef0123456789abcdef",
        "two\nlines",
        "bell\a",
        "",
        "x" * (MAX_SHOWN + 1),
    ],
)
def test_any_other_text_is_only_logged(text: str) -> None:
    message, detail = told({"error": text})
    assert message == "."
    assert detail == " ".join(text.replace("\a", "?").split())[:MAX_LOGGED] + (
        "..." if len(text) > MAX_LOGGED else ""
    )


def test_pages_and_texts_are_logged_as_one_bounded_line() -> None:
    page = b"<html>\r\n<h1>502 Bad Gateway</h1>\x1b[31m\0\xff</html>" + b"x" * 1_000_000
    message, detail = told(page, 502)
    assert message == "." and detail.startswith("<html> <h1>502 Bad Gateway</h1>?[31m?")
    assert detail.isprintable() and len(detail) == MAX_LOGGED + 3
    assert told(b"Internal Server Error", 500) == (".", "Internal Server Error")


@pytest.mark.parametrize("body", [b"", b"{}", b"[1]", b'{"x":"the prompt"}', b'{"error":', b"null"])
def test_json_without_a_known_text_is_not_logged(body: bytes) -> None:
    assert told(body)[0] == "." and "prompt" not in told(body)[1]


def test_the_request_that_a_text_quotes_is_not_logged() -> None:
    text = "[{'type': 'missing', 'msg': 'Field required', 'input': {'messages': 'secret'}}]"
    assert told({"object": "error", "message": text})[1].endswith("'Field required',")


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"error": {"message": f"key {KEY}"}}).encode(),
        json.dumps({"error": {"message": "no", "x": [KEY]}}).encode(),
        json.dumps({"error": {"message": KEY}}).replace("B", r"\u0042").encode(),
        json.dumps({"error": f"key {KEY}"}).encode(),
        f"key {KEY}".encode(),
    ],
)
def test_the_backends_key_reaches_neither_client_nor_log(body: bytes) -> None:
    problem = error_of_reply(body, 400, (), KEY)
    assert problem.payload is None and KEY not in problem.message + problem.detail


def test_an_envelope_is_passed_on() -> None:
    body = b'{"error":{"message":"see http://x","code":"c"}}'
    problem = error_of_reply(body, 400, ((b"retry-after", b"7"),), KEY)
    assert problem.body() == body and problem.headers == ((b"retry-after", b"7"),)
    assert problem.code == "c" and problem.detail == ""


@pytest.mark.parametrize("code", ["x" * 65, "a\nb", "\x1b[31m", 10**300])
def test_an_odd_code_is_not_logged(code: Any) -> None:
    body = json.dumps({"error": {"message": "no", "code": code}}).encode()
    assert error_of_reply(body, 400, (), "").code == "upstream_error"


@given(st.binary(max_size=300) | st.text().map(lambda t: json.dumps({"error": t}).encode()))
def test_any_body_makes_an_envelope_and_a_line(body: bytes) -> None:
    problem = error_of_reply(body, 500, (), "k")
    json.loads(problem.body())
    assert problem.detail.isprintable() and len(problem.detail) <= MAX_LOGGED + 3


def test_whether_a_text_may_be_shown_is_decided_in_linear_time() -> None:
    assert not may_be_shown("a." * 1_000_000) and not may_be_shown("." * MAX_SHOWN + ".com")
