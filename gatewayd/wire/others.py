"""The rest of the API: what must be known of each call, and what reads its reply.

Bodies cross as they came; only ``model`` is changed, where an alias says so. Completions are read
by :mod:`.completion`, other replies by :mod:`.events`. Audio is bytes that nobody reads.
"""

from __future__ import annotations

from typing import Any, ClassVar

import attrs

from . import form
from .call import Reader
from .chat import (
    check_choices,
    check_flag,
    check_model,
    parse_object,
    wants_usage,
    with_model,
    with_usage,
)
from .completion import CompletionReader
from .events import LAST, EventReader
from .transcript import TranscriptReader

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

#: What a form's ``stream`` may say for true: what FastAPI (vLLM) takes for it.
_TRUE = frozenset({"true", "1", "on", "yes", "t", "y"})


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
            choices = check_choices(fields.get("n"), _prompts(fields)) if stream else 1
            return cls(path, body, model, stream, choices, wants_usage(fields))
        return cls(path, body, model, stream and path in LAST)

    @property
    def opaque(self) -> bool:
        return self.path == "/v1/audio/speech"

    def renamed(self, model: str) -> JSONCall:
        return attrs.evolve(self, model=model, body=with_model(self.body, model))

    def counting_usage(self) -> JSONCall:
        if self.stream and self.path == "/v1/completions":
            return attrs.evolve(self, body=with_usage(self.body))
        return self

    def reader(self, request_id: str, depth: int, model: str | None) -> Reader | None:
        if self.path == "/v1/completions":
            return CompletionReader(None, self.include_usage, self.choices, depth, model)
        if self.opaque:
            return None
        return EventReader(LAST.get(self.path, frozenset()), depth, model)


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
    stream: bool = False
    field: form.Field | None = attrs.field(default=None, repr=False)  # the model's
    opaque: ClassVar[bool] = True

    @classmethod
    def parse(cls, path: str, body: bytes, content_type: bytes) -> UploadCall:
        """Find the model in the form; the rest is the backend's to judge.

        :raises InvalidValue: it is no form, or two parsers could read two forms.
        """
        found = form.read(body, form.boundary(content_type), ("model", "stream"))
        model, stream = found.get("model"), found.get("stream")
        return cls(
            path,
            body,
            content_type,
            check_model(model and model.value),
            stream is not None and stream.value.strip().lower() in _TRUE,
            model,
        )

    def renamed(self, model: str) -> UploadCall:
        field = self.field
        assert field is not None, "only a request that names a model can be renamed"
        name = model.encode("utf-8")
        body = self.body[: field.start] + name + self.body[field.end :]
        renamed = form.Field(model, field.start, field.start + len(name))
        return attrs.evolve(self, model=model, body=body, field=renamed)

    def counting_usage(self) -> UploadCall:
        return self

    def reader(self, request_id: str, depth: int, model: str | None) -> Reader | None:
        return TranscriptReader(depth, model) if self.stream else None
