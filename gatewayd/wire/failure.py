"""What a backend says in an error that is no envelope, and how much of it may be passed on.

SGLang and older vLLM send ``{"object": "error", "message": ...}``, TGI and Ollama
``{"error": "..."}``, FastAPI ``{"detail": ...}`` with a text or a list of what is wrong where. Such
a text goes into an envelope of the gateway's, if it is short, plain, and shows nothing of the
backend's insides. The operator's log has it in any case, in one bounded line.
"""

from __future__ import annotations

import re
from typing import Any

from .errors import BackendFailed, is_envelope
from .json import NotJSON, parse

#: The most characters of a text that a client is told, and of one in the log.
MAX_TOLD = 300
MAX_LOGGED = 300
#: The most entries of FastAPI's list that are told.
_ENTRIES = 3

#: Markup, traces, paths, names in code, addresses, hosts, what looks like a key.
_INSIDES = re.compile(
    r"""<[a-z!/?]|://|\btraceback\b|\bfile\ "|\bbearer\b
    |(?<![\w.-])/[\w.+-]+/|[a-z]:\\|\w(Error|Exception)\b|\berrno\b|\.(py|so|cpp|cu|go|rs|js)\b
    |\b\d{1,3}(\.\d{1,3}){3}\b|\b[\w-]+(\.[\w-]+)*:\d{2,5}\b|\blocalhost\b
    |\.(com|net|org|io|dev|ai|corp|local|internal|lan|svc|cluster)\b
    |\b(sk|hf|gw|ghp)[-_][\w-]{4}|[a-z0-9]{24}""",
    re.IGNORECASE | re.VERBOSE,
)
#: Where FastAPI's and SGLang's texts quote the request.
_QUOTED_INPUT = re.compile(r"""["']input["']\s*:""")


def answered(
    body: bytes, status: int, headers: tuple[tuple[bytes, bytes], ...], key: str
) -> BackendFailed:
    """The error that a backend's answer with an error status is.

    :param key: the backend's, which is in nothing that leaves; "" if it has none.
    """
    said = f"The backend answered with status {status}"
    if is_envelope(body) and not (key and key in _decoded(body)):
        return BackendFailed(f"{said}.", body, status, headers)
    text = message(body)
    fit = is_fit(text) and not (key and key in text)
    problem = BackendFailed(f"{said}: {text}" if fit else f"{said}.", None, status, headers)
    problem.detail = _for_the_log(text or _not_json(body), key)
    return problem


def message(body: bytes) -> str:
    """The text of an error in one of the known forms; "" if it has none."""
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


def is_fit(text: str) -> bool:
    """Whether a client may be told a backend's text."""
    plain = 0 < len(text) <= MAX_TOLD and text.isprintable()
    return plain and _INSIDES.search(text) is None


def _entry(entry: Any) -> str:
    """One of FastAPI's: where, and what is wrong there. Its ``input`` is the client's."""
    if not isinstance(entry, dict):
        return ""
    where = entry.get("loc")
    names = [str(name) for name in where[:8]] if isinstance(where, list) else []
    return f"{'.'.join(names)}: {entry.get('msg')}"


def _decoded(body: bytes) -> str:
    """A document as text in which no escape hides a letter of a key."""
    return re.sub(
        r"\\u00([2-7][0-9a-f])|\\(/)",
        lambda match: match[2] or chr(int(match[1], 16)),
        body.decode("utf-8", "replace"),
        flags=re.IGNORECASE,
    )


def _not_json(body: bytes) -> str:
    """The beginning of a text or page; of JSON without a known text nothing, it may be anything."""
    start = body[: 4 * MAX_LOGGED].decode("utf-8", "replace")
    return "" if start.lstrip().startswith(("{", "[")) else start


def _for_the_log(text: str, key: str) -> str:
    """One line of bounded length, without control characters, the key and quoted input."""
    text = _QUOTED_INPUT.split(text, maxsplit=1)[0]
    if key:
        text = text.replace(key, "***")
    line = " ".join(text[: 4 * MAX_LOGGED].split())
    line = "".join(c if c.isprintable() else "?" for c in line)
    return line if len(line) <= MAX_LOGGED else line[:MAX_LOGGED] + "..."
