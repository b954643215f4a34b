"""OpenAI's error envelope: encoded, recognised, and its code."""

import json

import pytest

from gatewayd.wire.envelope import MAX_CODE, code_in, envelope, is_envelope


@pytest.mark.parametrize("code", [None, "x", 503])
def test_an_envelope_keeps_the_kind_of_its_code(code: str | int | None) -> None:
    body = envelope('quo"te 🎉', "t", code)
    assert json.loads(body)["error"] == {
        "message": 'quo"te 🎉',
        "type": "t",
        "param": None,
        "code": code,
    }


@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        (b'{"error":{"message":"x"}}', True),
        (b' {"error":{"message":"","type":null,"code":503}, "more":1}\n', True),
        (b'{"error":{"message":null}}', False),
        (b'{"error":{"message":5}}', False),
        (b'{"error":{}}', False),
        (b'{"error":"x"}', False),
        (b'{"error":["message"]}', False),
        (b'{"error":null}', False),
        (b'{"message":"x"}', False),
        (b'[{"error":{"message":"x"}}]', False),
        (b'"error"', False),
        (b"5", False),
        (b"null", False),
        (b"", False),
        (b"<html>", False),
        (b'{"error":{"message":"\xff"}}', False),
        (b'{"error":{"message":"x","message":"y"}}', False),
        (b"[" * 100_000, False),
    ],
    ids=lambda value: repr(value[:30]) if isinstance(value, bytes) else None,
)
def test_an_envelope_is_an_object_with_an_error_that_has_a_message(
    body: bytes, verdict: bool
) -> None:
    assert is_envelope(body) is verdict


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (b'{"error":{"message":"x","code":"context_length_exceeded"}}', "context_length_exceeded"),
        (b'{"error":{"message":"x","code":503}}', "503"),
        (b'{"error":{"message":"x","code":429.0}}', "429"),
        (b'{"error":{"message":"x","code":null}}', None),
        (b'{"error":{"message":"x","code":["a"]}}', None),
        (b'{"error":{"message":"x","code":"a\\nb"}}', None),
        (b'{"error":{"message":"x","code":"%b"}}' % (b"a" * MAX_CODE), "a" * MAX_CODE),
        (b'{"error":{"message":"x","code":"%b"}}' % (b"a" * (MAX_CODE + 1)), None),
        (b'{"error":{"message":"x","type":"api_error"}}', None),
        (b'{"type":"error","error":{"message":"x","type":"api_error"}}', "api_error"),
    ],
)
def test_the_code_of_a_backends_error_is_logged_if_it_is_short_and_printable(
    error: bytes, code: str | None
) -> None:
    assert code_in(error) == code
