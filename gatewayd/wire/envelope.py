"""OpenAI's error envelope: encoded for the gateway's own errors, recognised in those of backends.

Source: https://platform.openai.com/docs/guides/error-codes
"""

from __future__ import annotations

import msgspec

from .json import NotJSON, parse

#: The most characters of a code of a backend that the log takes.
MAX_CODE = 64
#: How many levels of JSON may nest in an error.
_DEPTH = 64


def envelope(message: str, type: str, code: str | int | None, param: str | None = None) -> bytes:
    """Encode ``{"error": {"message", "type", "param", "code"}}``, all four keys always."""
    return msgspec.json.encode(
        {"error": {"message": message, "type": type, "param": param, "code": code}}
    )


def is_envelope(body: bytes) -> bool:
    """Whether ``body`` is a JSON object whose ``error`` is an object with a string ``message``."""
    try:
        return isinstance(parse(body, _DEPTH)["error"]["message"], str)
    except (NotJSON, TypeError, KeyError):
        return False


def code_in(payload: bytes) -> str | None:
    """The code of a backend's error, for the log; None if it has none that can be logged.

    :param payload: an envelope, according to :func:`is_envelope`.
    """
    document = parse(payload, _DEPTH)
    is_anthropic = document.get("type") == "error"  # its errors have a type and no code
    code = document["error"].get("type" if is_anthropic else "code")
    if not isinstance(code, (str, int, float)):
        return None
    code = code if isinstance(code, str) else f"{code:.0f}"
    return code if len(code) <= MAX_CODE and code.isprintable() else None
