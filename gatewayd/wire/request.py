"""Requests whose body is a JSON object: how one is read, checked and changed.

The gateway reads few members. Everything else belongs to the client and the backend, and crosses
as it came. What only chats and completions have is in :mod:`.chat`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import msgspec
from msgspec import UNSET, Raw, UnsetType

from . import affinity, json
from .call import Call, Endpoint
from .errors import InvalidJSON, InvalidValue

#: The most characters of a model's name.
MAX_MODEL = 256

#: The ``Content-Type`` of every JSON request to a backend.
JSON_TYPE = b"application/json"

#: The members that the gateway reads, at any endpoint.
MEMBERS = ("model", "stream", "stream_options", "messages", "prompt", "n")


class _Changeable(msgspec.Struct):
    """The members that the gateway may change, as they stand in the body."""

    model: Raw = Raw(b"null")
    stream_options: Raw | UnsetType = UNSET


class JSONCall(Call, frozen=True):
    """A request whose body is a JSON object with a ``model`` and perhaps ``stream``."""

    media_type: ClassVar = re.compile(rb"application/json[ \t]*(;[!-~ \t]*)?", re.IGNORECASE)
    media_type_hint: ClassVar = "Send JSON, with the header 'Content-Type: application/json'."

    @classmethod
    def parse(cls, endpoint: Endpoint, body: bytes, content_type: bytes, depth: int) -> Self:
        fields = parse_object(body, depth)
        model = check_model(fields.get("model"))
        stream = check_stream(fields.get("stream"))
        return cls(endpoint, body, JSON_TYPE, model, stream and bool(endpoint.ends))

    def renamed(self, model: str) -> Self:
        old = msgspec.json.decode(self.body, type=_Changeable).model
        body = json.replace_member(self.body, "model", bytes(old), msgspec.json.encode(model))
        return msgspec.structs.replace(self, model=model, body=body)

    def counting_usage(self) -> Self:
        if not self.stream or not self.endpoint.usage_on_request:
            return self
        return msgspec.structs.replace(self, body=_with_usage(self.body))

    def key(self, by_user: bool, by_prompt: bool) -> int | None:
        # Without streams, no answer is generated token by token, and no prompt is kept.
        return affinity.of_document(self.body, by_user, by_prompt and bool(self.endpoint.ends))


def _with_usage(body: bytes) -> bytes:
    """A request body with ``stream_options.include_usage`` set to true.

    ``stream_options`` that are not an object stay as they are: the backend judges them.
    """
    options = msgspec.json.decode(body, type=_Changeable).stream_options
    if options is UNSET or bytes(options) == b"null":
        old = None if options is UNSET else bytes(options)
        return json.replace_member(body, "stream_options", old, b'{"include_usage":true}')
    if not bytes(options).startswith(b"{"):
        return body
    fields = msgspec.json.decode(options, type=dict[str, Raw])
    fields["include_usage"] = Raw(b"true")
    return json.replace_member(body, "stream_options", bytes(options), msgspec.json.encode(fields))


def parse_object(body: bytes, depth: int) -> dict[str, Any]:
    """Read the body of a request, strictly.

    :raises InvalidJSON: the body is not a JSON object, or two parsers could read different
        documents or find different members under the names that the gateway reads.
    """
    try:
        fields = json.parse(body, depth)
    except json.NotJSON as e:
        raise InvalidJSON(f"The request body is not valid JSON: {e}.") from None
    if not isinstance(fields, dict):
        raise InvalidJSON("The request body must be a JSON object.")
    _check_names(fields, MEMBERS)
    options = fields.get("stream_options")
    if isinstance(options, dict):
        _check_names(options, ("include_usage",))
    return fields


def _check_names(fields: dict[str, Any], known: Sequence[str]) -> None:
    """Refuse a name that differs from a known one only in the case of its letters.

    Go's decoder (Ollama) and others take such a name for the known one. The client decides how many
    names there are, so all of them are checked together, in a few passes of C.
    """
    names = "".join(fields)
    if names.isascii() and names.islower():
        return
    # Each of upper and lower folds letters that the other leaves: a dotless i, the Kelvin sign.
    folded = ("\n" + "\n\n".join(fields) + "\n").upper().lower()
    for name in known:
        if folded.count(f"\n{name}\n") > (name in fields):
            reason = f"The name of a member differs from '{name}' only in the case of its letters."
            raise InvalidJSON(reason, param=name)


def check_model(value: Any) -> str | None:
    """The name of a model; None if it is missing, null or empty.

    :raises InvalidValue: the value is not the name of a model.
    """
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise InvalidValue("'model' must be a string.", param="model")
    if len(value) > MAX_MODEL:
        raise InvalidValue(f"'model' is longer than {MAX_MODEL} characters.", param="model")
    if not value.isprintable() or ".." in value.split("/"):
        raise InvalidValue("'model' has characters that no model name has.", param="model")
    return value


def check_stream(value: Any) -> bool:
    """The flag ``stream``; false if it is missing, null or 0.

    Every server that accepts 0 reads it as false. Servers disagree on 1 and "true": vLLM reads
    true, older llama.cpp false; newer llama.cpp and Ollama refuse the request.

    :raises InvalidValue: the value is anything else than these, true and false.
    """
    if value is True:
        return True
    if value is None or value == 0:
        return False
    raise InvalidValue("'stream' must be true or false.", param="stream")
