"""The rest of the API: what must be known of each call and its reply so that its end is true.

Bodies and payloads cross as they came; only ``model`` is changed, where an alias says so. How a
stream ends differs: completions with ``[DONE]`` after every choice was finished, responses with an
event ``response.completed`` or ``response.incomplete``, messages with ``message_stop``. Audio is
bytes, whole when the connection says so.

Sources: https://platform.openai.com/docs/api-reference/responses-streaming,
https://docs.anthropic.com/en/docs/build-with-claude/streaming
"""

from __future__ import annotations

from io import BytesIO
from typing import Any, Protocol, TypeVar

import attrs
import msgspec
from msgspec import UNSET, Raw, UnsetType
from multipart import MultipartError, MultipartParser, parse_options_header

from . import chat, json
from .chat import check_flag, check_model, parse_object
from .completion import ChatReader, Usage, reported
from .errors import BackendFailed, BadReply, InvalidValue

T = TypeVar("T")


class Reader(Protocol):
    """Reads one reply and knows whether it is all of it; see :class:`.completion.ChatReader`."""

    by_done: bool
    started: bool
    usage: Usage | None

    def whole(self, body: bytes) -> bytes: ...
    def as_stream(self, body: bytes) -> list[bytes]: ...
    def take(self, name: bytes, payload: bytes) -> bytes | None: ...
    def frames(self, segment: bytes) -> list[bytes] | None: ...
    def complete(self, done: bool) -> bool: ...


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

#: The events that end a stream well, by path.
_LAST = {
    "/v1/responses": frozenset({"response.completed", "response.incomplete"}),
    "/v1/messages": frozenset({"message_stop"}),
}
_FAILED = frozenset({"error", "response.failed"})

#: How many completions one stream may have: each is remembered until it is finished.
MAX_CHOICES = 4096


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
            return cls(path, body, model, stream, _choices(fields) if stream else 1, usage)
        return cls(path, body, model, stream and path in _LAST)

    def reader(self, request_id: str, depth: int, model: str | None) -> Reader | None:
        if self.path == "/v1/completions":
            return CompletionReader(None, self.include_usage, self.choices, depth, model)
        if self.path == "/v1/audio/speech":
            return None
        return EventReader(_LAST.get(self.path, frozenset()), depth, model)


def _choices(fields: dict[str, Any]) -> int:
    """How many completions were asked for: ``n`` for each prompt.

    :raises InvalidValue: more than can be kept track of.
    """
    n, prompt = fields.get("n"), fields.get("prompt")
    each = int(n) if isinstance(n, (int, float)) and 1 <= n <= 1024 else 1
    several = isinstance(prompt, list) and all(isinstance(p, (str, list)) for p in prompt)
    choices = each * (len(prompt) if several and prompt else 1)
    if choices > MAX_CHOICES:
        said = f"A stream may have {MAX_CHOICES} completions; 'n' and 'prompt' ask for more."
        raise InvalidValue(said, param="prompt")
    return choices


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


class CompletionReader(ChatReader):
    """Reads completions of the older kind, whose chunks have the shape of the whole."""

    def as_stream(self, body: bytes) -> list[bytes]:
        return [body]


class _Payload(msgspec.Struct):
    type: str | UnsetType = UNSET
    object: str | UnsetType = UNSET
    model: Raw | UnsetType = UNSET
    response: Raw | UnsetType = UNSET
    message: Raw | UnsetType = UNSET
    usage: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET


class _Tokens(msgspec.Struct):
    """Usage by either name."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


class _Inner(msgspec.Struct):
    model: Raw | UnsetType = UNSET
    usage: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET


_NO_ERROR = (UNSET, Raw(b"null"), Raw(b"false"), Raw(b"{}"), Raw(b'""'))


def _failure(payload: bytes, read: _Payload) -> BackendFailed:
    """What an event that reports a failure says, as an envelope.

    Servers put it into ``error``, responses into ``response.error`` or the event itself.
    """
    if read.error not in _NO_ERROR:
        return reported(payload)
    told: Any = payload
    if read.response is not UNSET:
        try:
            told = msgspec.json.decode(read.response, type=_Inner).error
        except msgspec.ValidationError:
            told = UNSET
    return reported(payload if told is UNSET else b'{"error":%b}' % bytes(told))


class EventReader:
    """Reads a reply whose stream ends with an event of a certain type.

    :param last: the types that end a stream well; none where there are no streams.
    """

    by_done = False

    def __init__(self, last: frozenset[str], depth: int, model: str | None) -> None:
        self._last = last
        self._depth = depth
        self._model = None if model is None else msgspec.json.encode(model)
        self._ended = False
        self.started = False
        self.usage: Usage | None = None

    def whole(self, body: bytes) -> bytes:
        if not self._last and body.lstrip().startswith(b"["):  # rerank, as one of its dialects is
            self._decode(body, list[Raw], "a reply")
            return body
        read = self._read(body, "a reply")
        if read.error not in _NO_ERROR and read.object != "response":  # these say so with a 200
            raise reported(body)
        return self._named(body, read)

    def as_stream(self, body: bytes) -> list[bytes]:
        raise BadReply("The backend sent a whole reply where a stream was asked for.")

    def take(self, name: bytes, payload: bytes) -> bytes | None:
        read = self._read(payload, "an event")
        self.started = True
        kind = read.type if isinstance(read.type, str) else name.decode("latin-1")
        if kind in _FAILED or read.error not in _NO_ERROR:
            raise _failure(payload, read)
        if kind in self._last:
            self._ended = True
        return self._named(payload, read)

    def frames(self, segment: bytes) -> None:
        """Each event is read with care here: its type decides."""

    def complete(self, done: bool) -> bool:
        return self._ended

    def _read(self, payload: bytes, what: str) -> _Payload:
        return self._decode(payload, _Payload, what)

    def _decode(self, payload: bytes, type: type[T], what: str) -> T:
        try:
            return json.decode(payload, type, self._depth)
        except json.NotJSON as e:
            raise BadReply(f"The backend sent {what} that is not valid: {e}.") from None

    def _named(self, payload: bytes, read: _Payload) -> bytes:
        """Count usage and put the asked model's name in, at the top or one level below."""
        self._count(read.usage)
        if self._model is not None and read.model is not UNSET:
            payload = json.replace_member(payload, "model", bytes(read.model), self._model)
        for key, raw in (("response", read.response), ("message", read.message)):
            if raw is UNSET or not bytes(raw).startswith(b"{"):
                continue
            inner = msgspec.json.decode(raw, type=_Inner)
            self._count(inner.usage)
            if self._model is not None and inner.model is not UNSET:
                old = bytes(raw)
                new = json.replace_member(old, "model", bytes(inner.model), self._model)
                payload = json.replace_member(payload, key, old, new)
        return payload

    def _count(self, raw: Any) -> None:
        if raw is UNSET:
            return
        try:
            tokens = msgspec.json.decode(raw, type=_Tokens | None)
        except msgspec.ValidationError:
            return  # what cannot be counted is still the client's
        if tokens is None:
            return
        before = self.usage or Usage()
        prompt = tokens.prompt_tokens if tokens.input_tokens is None else tokens.input_tokens
        made = tokens.completion_tokens if tokens.output_tokens is None else tokens.output_tokens
        if prompt is None and made is None:
            return
        self.usage = Usage(
            before.prompt_tokens if prompt is None else prompt,
            before.completion_tokens if made is None else made,
        )
