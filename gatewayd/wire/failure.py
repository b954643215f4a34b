"""Errors of backends that are not OpenAI envelopes, and how much of them may be passed on.

SGLang and older vLLM send ``{"object": "error", "message": ...}``. TGI and Ollama send
``{"error": "..."}``. FastAPI sends ``{"detail": ...}`` with a text, or with a list of fields and
what is wrong with each. The text is put into an envelope of the gateway if it is short, printable
and shows no internals of the backend. In any case it is logged, in one line of bounded length.
"""

from __future__ import annotations

import re
from typing import Any

from .envelope import is_envelope
from .errors import BackendFailed
from .json import NotJSON, parse

#: The most characters of a text that a client is sent, and of one in the log.
MAX_SHOWN = 300
MAX_LOGGED = 300
#: The most entries of FastAPI's list that a client is sent.
_ENTRIES = 3

#: Markup, tracebacks, paths, names in code, addresses, hosts, and what looks like a key.
_INTERNALS = re.compile(
    r"""<[a-z!/?]|://|\btraceback\b|\bfile\ "|\bbearer\b
    |(?<![\w.-])/[\w.+-]+/|[a-z]:\\|\w(Error|Exception)\b|\berrno\b|\.(py|so|cpp|cu|go|rs|js)\b
    |\b\d{1,3}(\.\d{1,3}){3}\b|\b[\w-]+(\.[\w-]+)*:\d{2,5}\b|\blocalhost\b
    |\.(com|net|org|io|dev|ai|corp|local|internal|lan|svc|cluster)\b
    |\b(sk|hf|gw|ghp)[-_][\w-]{4}|[a-z0-9]{24}""",
    re.IGNORECASE | re.VERBOSE,
)
#: The place where FastAPI's and SGLang's texts quote the request.
_QUOTED_INPUT = re.compile(r"""["']input["']\s*:""")


def error_of_reply(
    body: bytes, status: int, headers: tuple[tuple[bytes, bytes], ...], key: str
) -> BackendFailed:
    """The error to pass on for a backend's reply with an error status.

    :param key: the key that the backend was sent; "" if it has none. It never leaves the gateway.
    """
    summary = f"The backend answered with status {status}"
    if is_envelope(body) and not (key and key in _decoded(body)):
        return BackendFailed(f"{summary}.", body, status, headers)
    text = error_text(body)
    shown = may_be_shown(text) and not (key and key in text)
    problem = BackendFailed(f"{summary}: {text}" if shown else f"{summary}.", None, status, headers)
    problem.detail = _for_the_log(text or _not_json(body), key)
    return problem


def error_text(body: bytes) -> str:
    """The text of an error in one of the known forms; "" if it is in none of them."""
    try:
        document = parse(body, 64)
    except NotJSON:
        return ""
    if not isinstance(document, dict):
        return ""
    detail = document.get("detail")
    for text in (document.get("error"), document.get("message"), detail):
        if isinstance(text, str) and text:
            return text
    return "; ".join(map(_entry, detail[:_ENTRIES])) if isinstance(detail, list) else ""


def may_be_shown(text: str) -> bool:
    """Whether a client may be sent a backend's text."""
    plain = 0 < len(text) <= MAX_SHOWN and text.isprintable()
    return plain and _INTERNALS.search(text) is None


def _entry(entry: Any) -> str:
    """One entry of FastAPI's list: the field, and what is wrong. Its ``input`` is left out."""
    if not isinstance(entry, dict):
        return ""
    where = entry.get("loc")
    names = [str(name) for name in where[:8]] if isinstance(where, list) else []
    return f"{'.'.join(names)}: {entry.get('msg')}"


def _decoded(body: bytes) -> str:
    """A document as text, with those escapes decoded that could hide a character of a key."""
    return re.sub(
        r"\\u00([2-7][0-9a-f])|\\(/)",
        lambda match: match[2] or chr(int(match[1], 16)),
        body.decode("utf-8", "replace"),
        flags=re.IGNORECASE,
    )


def _not_json(body: bytes) -> str:
    """The beginning of a body that is not JSON. JSON of an unknown form is not logged: "" then."""
    start = body[: 4 * MAX_LOGGED].decode("utf-8", "replace")
    return "" if start.lstrip().startswith(("{", "[")) else start


def _for_the_log(text: str, key: str) -> str:
    """One line of bounded length, without control characters, the key and the quoted request."""
    text = _QUOTED_INPUT.split(text, maxsplit=1)[0]
    if key:
        text = text.replace(key, "***")
    line = " ".join(text[: 4 * MAX_LOGGED].split())
    line = "".join(c if c.isprintable() else "?" for c in line)
    return line if len(line) <= MAX_LOGGED else line[:MAX_LOGGED] + "..."
