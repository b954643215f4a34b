"""What differs between the two APIs whose endpoints are served: OpenAI's and Anthropic's.

A :class:`Dialect` says how the gateway writes an error of its own, and which headers and parameters
clients of that API send and expect. It translates nothing: requests, replies and the errors of a
backend that speaks the same API cross as they came.

Sources: https://platform.openai.com/docs/guides/error-codes, https://docs.anthropic.com/en/api/errors
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import Raw

from .errors import BackendFailed, GatewayError

#: A value of a header or a parameter that may cross.
_HEADER_VALUE = re.compile(rb"[ -~]{1,1024}")
_PARAMETER = re.compile(rb"([a-z_]{1,32})=[A-Za-z0-9._~-]{0,64}")

_members = msgspec.json.Decoder(dict[str, Raw]).decode

#: Anthropic's type of error for each status that has one.
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
#: 529 for an overload: that is what Anthropic's API sends.
_STATUSES = {"invalid_request_error": 400} | {kind: code for code, kind in _ANTHROPIC_TYPES.items()}


class Dialect(msgspec.Struct, frozen=True, eq=False):
    """
    :param envelope: encodes an error for the client, given the id of its request.
    :param event: the name of each error event; empty if it depends on the stream.
    :param id_header: a further header of each answer that has the id; empty for none.
    :param headers: the headers of a request that cross to the backend, in lower case.
    :param parameters: the parameters of a request's query that cross to the backend.
    """

    envelope: Callable[[GatewayError, str], bytes]
    event: bytes = b""
    id_header: bytes = b""
    headers: tuple[bytes, ...] = ()
    parameters: frozenset[bytes] = frozenset()

    def crossing_headers(
        self, fields: Mapping[bytes, Sequence[bytes]]
    ) -> tuple[tuple[bytes, bytes], ...]:
        """The headers of a request that cross to the backend, values as they came.

        :param fields: all headers of the request, with names in lower case.
        """
        crossing = []
        for name in self.headers:
            for value in fields.get(name, ()):
                if _may_cross(value):
                    crossing.append((name, value))
        return tuple(crossing)

    def crossing_query(self, target: bytes) -> str:
        """The part of a request's query that crosses, with its ``?``; "" if there is none.

        :param target: of the request, as it came.
        """
        query = target.partition(b"?")[2]
        return _crossing_query(query, self.parameters) if query else ""


# A client sends the same headers and the same query with each request, so both are looked up. A
# key is never longer than the head of a request.


@lru_cache(maxsize=64)
def _may_cross(value: bytes) -> bool:
    return _HEADER_VALUE.fullmatch(value) is not None


@lru_cache(maxsize=64)
def _crossing_query(query: bytes, names: frozenset[bytes]) -> str:
    kept = [
        part
        for part in query.split(b"&")
        if (match := _PARAMETER.fullmatch(part)) and match[1] in names
    ]
    return "?" + b"&".join(kept).decode("ascii") if kept else ""


def _openai_envelope(error: GatewayError, request_id: str) -> bytes:
    return error.body()


def _anthropic_envelope(error: GatewayError, request_id: str) -> bytes:
    """``{"type": "error", "error": {"type", "message", "details"}, "request_id"}``.

    ``details.error_code`` is the code; SDKs show it as ``error_code``. An error of a backend in
    Anthropic's envelope is passed on byte for byte. If it is in OpenAI's, its message is kept, and
    its other members go into ``details``.
    """
    message, details = error.message, dict[str, Any](error_code=error.code)
    if error.param is not None:
        details["param"] = error.param
    if isinstance(error, BackendFailed) and error.payload is not None:
        document = _members(error.payload)
        if bytes(document.get("type", b"")) == b'"error"':
            return error.payload
        details |= _members(document["error"])
        message = msgspec.json.decode(details.pop("message"))
    told = {"type": anthropic_type(error.status), "message": message, "details": details}
    return msgspec.json.encode({"type": "error", "error": told, "request_id": request_id})


def anthropic_type(status: int) -> str:
    """The type that Anthropic's API gives an error of this status."""
    known = _ANTHROPIC_TYPES.get(status)
    return known or ("invalid_request_error" if status < 500 else "api_error")


def status_of_type(kind: object) -> int | None:
    """The status that Anthropic's API gives an error of this type; None if it stands for none."""
    return _STATUSES.get(kind) if isinstance(kind, str) else None


OPENAI = Dialect(_openai_envelope)
ANTHROPIC = Dialect(
    _anthropic_envelope,
    event=b"error",
    id_header=b"Request-Id",
    headers=(b"anthropic-version", b"anthropic-beta"),
    parameters=frozenset({b"beta"}),
)
