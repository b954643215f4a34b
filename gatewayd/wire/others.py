"""The rest of the API: what must be known of each call, and what reads its reply.

Bodies cross as they came; only ``model`` is changed, where an alias says so. Completions are read
by :mod:`.completion`, other replies by :mod:`.events`. Audio is bytes that nobody reads.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any, Protocol

import attrs
from multipart import MultipartError, MultipartParser, parse_options_header

from . import chat
from .chat import check_choices, check_flag, check_model, parse_object
from .completion import CompletionReader
from .content import Usage
from .errors import InvalidValue
from .events import LAST, EventReader


class Reader(Protocol):
    """Reads one reply and knows whether it is all of it; see :class:`.completion.ChatReader`."""

    by_done: bool
    started: bool
    content: bool
    usage: Usage | None

    def whole(self, body: bytes) -> bytes: ...
    def as_stream(self, body: bytes) -> list[bytes]: ...
    def take(self, name: bytes, payload: bytes) -> bytes | None: ...
    def frames(self, segment: bytes) -> list[bytes] | None: ...
    def complete(self, done: bool, framed: bool = True) -> bool: ...


class Call(Protocol):
    """A request for a backend; :class:`.chat.ChatRequest` is one.

    ``reader`` is asked for what reads its reply: None where the reply is bytes that nobody reads.
    """

    @property
    def path(self) -> str: ...
    @property
    def body(self) -> bytes: ...
    @property
    def content_type(self) -> bytes: ...
    @property
    def model(self) -> str | None: ...
    @property
    def stream(self) -> bool: ...
    def reader(self, request_id: str, depth: int, model: str | None) -> Reader | None: ...


#: Endpoints whose request is JSON.
JSON_PATHS = (
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/rerank",
    "/v1/audio/speech",
)
#: Endpoints whose request is an upload.
UPLOAD_PATHS = ("/v1/audio/transcriptions", "/v1/audio/translations")


@attrs.frozen
class JSONCall:
    """A request whose body is a JSON object with a ``model`` and perhaps ``stream``."""

    path: str
    body: bytes = attrs.field(repr=False)
    model: str | None
    stream: bool
    choices: int = 1
    include_usage: bool = False
    content_type: bytes = b"application/json"

    @classmethod
    def parse(cls, path: str, body: bytes, depth: int) -> JSONCall:
        """Read and check a request body; errors as :meth:`.chat.ChatRequest.parse`."""
        fields = parse_object(body, depth)
        model = check_model(fields.get("model"))
        stream = check_flag(fields.get("stream"), "stream")
        if path == "/v1/completions":
            options = fields.get("stream_options")
            usage = isinstance(options, dict) and options.get("include_usage") is True
            choices = check_choices(fields.get("n"), _prompts(fields)) if stream else 1
            return cls(path, body, model, stream, choices, usage)
        return cls(path, body, model, stream and path in LAST)

    def reader(self, request_id: str, depth: int, model: str | None) -> Reader | None:
        if self.path == "/v1/completions":
            return CompletionReader(None, self.include_usage, self.choices, depth, model)
        if self.path == "/v1/audio/speech":
            return None
        return EventReader(self.path, depth, model)


def _prompts(fields: dict[str, Any]) -> int:
    """How many prompts a request has: a list of numbers is one, in tokens."""
    prompt = fields.get("prompt")
    several = isinstance(prompt, list) and all(isinstance(p, (str, list)) for p in prompt)
    return len(prompt) if several and prompt else 1


@attrs.frozen
class UploadCall:
    """A request whose body is ``multipart/form-data`` with a ``model`` among its fields."""

    path: str
    body: bytes = attrs.field(repr=False)
    content_type: bytes
    model: str | None
    part: int = 0  # the model's place among the form's parts
    stream: bool = False

    @classmethod
    def parse(cls, path: str, body: bytes, content_type: bytes) -> UploadCall:
        """Find the model in the form; the rest is the backend's to judge.

        :raises InvalidValue: it is no such form.
        """
        boundary = _boundary(content_type)
        try:
            room = len(body) + 1  # all of it in memory: what does not fit there goes to disk
            form = MultipartParser(
                BytesIO(body), boundary, spool_limit=room, memory_limit=room, strict=True
            )
            found = [(n, part) for n, part in enumerate(form) if part.name == "model"]
            values = [part.value for _, part in found]
        except (MultipartError, UnicodeDecodeError, LookupError):
            raise InvalidValue("The body is not valid multipart/form-data.") from None
        if len(found) > 1 or any(part.filename for _, part in found):
            said = "The form must have 'model' once, and not as a file."
            raise InvalidValue(said, param="model")
        if not found:
            return cls(path, body, content_type, None)
        return cls(path, body, content_type, check_model(values[0]), found[0][0])

    def with_model(self, model: str) -> bytes:
        """The form asking for another model; every other byte stays."""
        body, delimiter = self.body, b"\r\n--" + _boundary(self.content_type).encode("utf-8")
        at = -2 if body.startswith(delimiter[2:]) else body.find(delimiter)
        for _ in range(self.part):
            at = body.find(delimiter, at + len(delimiter))
        start = body.find(b"\r\n\r\n", at + len(delimiter)) + 4
        end = body.find(delimiter, start)
        if body[start:end] != (self.model or "").encode("utf-8"):
            raise InvalidValue("The form's 'model' must be plain UTF-8.", param="model")
        return body[:start] + model.encode("utf-8") + body[end:]

    def reader(self, request_id: str, depth: int, model: str | None) -> Reader | None:
        return None


def _boundary(content_type: bytes) -> str:
    kind, options = parse_options_header(content_type.decode("latin-1"))
    boundary: str = options.get("boundary", "")
    if kind != "multipart/form-data" or not boundary:
        raise InvalidValue("The body must be multipart/form-data with a boundary.")
    return boundary


def with_model(call: Call, model: str) -> bytes:
    """A request's body, asking for another model."""
    if isinstance(call, UploadCall):
        return call.with_model(model)
    return chat.with_model(call.body, model)
