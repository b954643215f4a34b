"""Responses that a backend stores: requests that refer to one by its id, and replies that have one.

An id belongs to one backend. A request refers to it in its path, or builds on it with
``previous_response_id``.

Source: https://platform.openai.com/docs/api-reference/responses
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self
from urllib.parse import unquote

import msgspec
from msgspec import UNSET, UnsetType

from . import json
from .call import Endpoint, PathCall
from .errors import InvalidValue
from .events import EventReader, Payload
from .request import JSON_TYPE, JSONCall, check_model, check_stream, parse_object

#: An id that may stand in a path. It cannot be ``.`` or ``..``, which a server could resolve.
_ID = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.-]{1,256}")

#: The parameters of a query that cross to the backend, and what one must look like.
_PARAMETERS = frozenset(
    {"stream", "starting_after", "include", "include[]", "include_obfuscation"}
    | {"limit", "order", "after", "before"}
)
_PARAMETER = re.compile(rb"([A-Za-z0-9_.~%\[\]-]{1,64})=([A-Za-z0-9_.~%,:+/-]{0,300})")

#: How servers read a flag in a query: FastAPI (vLLM) takes all of these.
_TRUE = frozenset({"true", "1", "on", "yes", "t", "y"})
_FALSE = frozenset({"false", "0", "off", "no", "f", "n", ""})


class ResponsesCall(JSONCall, frozen=True):
    """A request for a new response. It may build on a stored one."""

    @classmethod
    def parse(
        cls, endpoint: Endpoint, body: bytes, content_type: bytes, depth: int
    ) -> ResponsesCall:
        fields = parse_object(body, depth)
        model, stream = check_model(fields.get("model")), check_stream(fields.get("stream"))
        previous = fields.get("previous_response_id")
        return cls(
            endpoint,
            body,
            JSON_TYPE,
            model,
            stream and bool(endpoint.ends),
            response_id=previous if isinstance(previous, str) and previous else None,
        )


class StoredCall(PathCall, frozen=True):
    """A request for a stored response, whose id stands in the path."""

    media_type: ClassVar = re.compile(b"")
    media_type_hint: ClassVar = ""

    @property
    def path(self) -> str:
        return self.endpoint.path.replace("{id}", self.response_id or "")

    @classmethod
    def check_media_type(cls, values: Sequence[bytes]) -> bytes:
        """A body need not be there, so its type is not looked at."""
        return b""

    @classmethod
    def parse(cls, endpoint: Endpoint, body: bytes, content_type: bytes, depth: int) -> Self:
        if not body:
            return cls(endpoint, b"", b"", None, False)
        if endpoint.method != "POST":
            raise InvalidValue(f"A {endpoint.method} request has no body.")
        parse_object(body, depth)
        return cls(endpoint, body, JSON_TYPE, None, False)

    def located(self, variables: Mapping[str, str], target: bytes) -> Self:
        id = variables["id"]
        if not _ID.fullmatch(id):
            raise InvalidValue("The id in the path is not one of a response.", param="response_id")
        query, stream = _crossing(target.partition(b"?")[2])
        return msgspec.structs.replace(
            self, response_id=id, query=query, stream=stream and bool(self.endpoint.ends)
        )


def _crossing(query: bytes) -> tuple[str, bool]:
    """The part of a query that crosses, with its ``?``, and whether it asks for a stream.

    :raises InvalidValue: servers could read ``stream`` in different ways.
    """
    kept, flags = [], []
    for part in query.split(b"&"):
        match = _PARAMETER.fullmatch(part)
        name = "" if match is None else unquote(match[1].decode("ascii"))
        if match is None or name not in _PARAMETERS:
            continue
        kept.append(part.decode("ascii"))
        if name == "stream":
            flags.append(unquote(match[2].decode("ascii")).lower())
    if len(flags) > 1 or not (_TRUE | _FALSE).issuperset(flags):
        raise InvalidValue("'stream' must be true or false, once.", param="stream")
    return "?" + "&".join(kept) if kept else "", not _TRUE.isdisjoint(flags)


class _Made(msgspec.Struct):
    id: str | UnsetType = UNSET


_MADE = msgspec.json.Decoder(_Made)


class ResponseReader(EventReader):
    """Reads a response, as a document or a stream, and takes its id."""

    def _rewritten(self, payload: bytes, read: Payload) -> bytes:
        if self.made is None:
            if read.response is not UNSET:
                self.made = self._id_of(bytes(read.response))
            elif read.object == "response":
                self.made = self._id_of(payload)
        return super()._rewritten(payload, read)

    def _id_of(self, response: bytes) -> str | None:
        try:
            made = json.decode(response, _MADE, self._depth).id
        except json.NotJSON:  # the id is no text
            return None
        return made if isinstance(made, str) and _ID.fullmatch(made) else None
