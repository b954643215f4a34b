"""Chat requests: what the gateway must know of one.

Everything else in it belongs to the client and the backend, and crosses as it came.

Source: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import attrs
import msgspec
from msgspec import UNSET, Raw, UnsetType

from . import json
from .completion import MAX_CHOICES, ChatReader
from .errors import InvalidJSON, InvalidValue

MAX_MODEL = 256

#: The members that the gateway itself reads, of any endpoint's request.
MEMBERS = ("model", "stream", "stream_options", "messages", "prompt", "n")


@attrs.frozen
class ChatRequest:
    """A chat request that was found good.

    ``body`` is what the client sent, byte for byte; the rest was read from it.
    """

    path: ClassVar[str] = "/v1/chat/completions"
    content_type: ClassVar[bytes] = b"application/json"
    opaque: ClassVar[bool] = False

    body: bytes = attrs.field(repr=False)
    messages: list[dict[str, Any]] = attrs.field(repr=False)
    model: str | None
    stream: bool
    include_usage: bool
    choices: int

    @classmethod
    def parse(cls, body: bytes, depth: int) -> ChatRequest:
        """Read and check a request body.

        :param depth: how many levels of JSON may nest.
        :raises InvalidJSON: when two parsers could differ about it.
        :raises InvalidValue: naming the field in ``param``.
        """
        fields = parse_object(body, depth)
        stream = check_flag(fields.get("stream"), "stream")
        return cls(
            body=body,
            messages=_messages(fields),
            model=check_model(fields.get("model")),
            stream=stream,
            include_usage=wants_usage(fields),
            choices=check_choices(fields.get("n")) if stream else 1,
        )

    def renamed(self, model: str) -> ChatRequest:
        return attrs.evolve(self, model=model, body=with_model(self.body, model))

    def counting_usage(self) -> ChatRequest:
        return attrs.evolve(self, body=with_usage(self.body)) if self.stream else self

    def reader(self, request_id: str, depth: int, model: str | None) -> ChatReader:
        """What reads the reply to this request; ``model`` is the name to put into it, if any."""
        return ChatReader(request_id, self.include_usage, self.choices, depth, model)

    def prompt(self) -> str:
        """The last user message: its text, or its text parts joined by newlines.

        :raises InvalidValue: when there is none.
        """
        for message in reversed(self.messages):
            if message["role"] == "user":
                return _text_of(message.get("content"))
        raise InvalidValue("'messages' has no message with role 'user'.", param="messages")


def parse_object(body: bytes, depth: int) -> dict[str, Any]:
    """Read a request body that must be a JSON object, strictly.

    :raises InvalidJSON: it is not, or two parsers could differ about it: about the text, or about
        the names of the members that the gateway reads.
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


def wants_usage(fields: dict[str, Any]) -> bool:
    """Whether a request asks for the usage of its stream."""
    options = fields.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def _check_names(fields: dict[str, Any], known: Sequence[str]) -> None:
    """Refuse a name that differs from a known one only in case.

    Go's decoder (Ollama) and others would take it for the known one. A caller chooses how many
    names there are, so they are judged together, by a few passes of C over all of them.
    """
    names = "".join(fields)
    if names.isascii() and names.islower():
        return
    # Both ways, since each folds what the other leaves: a dotless i, the Kelvin sign.
    folded = ("\n" + "\n\n".join(fields) + "\n").upper().lower()
    for name in known:
        if folded.count(f"\n{name}\n") > (name in fields):
            said = f"The name of a member differs from '{name}' only in the case of its letters."
            raise InvalidJSON(said, param=name)


def with_model(body: bytes, model: str) -> bytes:
    """A request body that was found good, asking for another model."""
    old = msgspec.json.decode(body, type=_Asked).model
    return json.replace_member(body, "model", bytes(old), msgspec.json.encode(model))


def with_usage(body: bytes) -> bytes:
    """A request body that was found good, asking for ``stream_options.include_usage``."""
    options = msgspec.json.decode(body, type=_Asked).stream_options
    if options is UNSET or bytes(options) == b"null":
        old = None if options is UNSET else bytes(options)
        return json.replace_member(body, "stream_options", old, b'{"include_usage":true}')
    if not bytes(options).startswith(b"{"):
        return body  # the backend's to judge
    fields = msgspec.json.decode(options, type=dict[str, Raw])
    fields["include_usage"] = Raw(b"true")
    return json.replace_member(body, "stream_options", bytes(options), msgspec.json.encode(fields))


class _Asked(msgspec.Struct):
    model: Raw = Raw(b"null")
    stream_options: Raw | UnsetType = UNSET


def _messages(fields: dict[str, Any]) -> list[dict[str, Any]]:
    if "messages" not in fields:
        raise InvalidValue("'messages' is missing: a list of messages is needed.", param="messages")
    messages = fields["messages"]
    if not isinstance(messages, list) or not messages:
        raise InvalidValue("'messages' must be a list with at least one message.", param="messages")
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InvalidValue(f"'messages[{i}]' must be an object.", param=f"messages[{i}]")
        if not isinstance(message.get("role"), str):
            raise InvalidValue(
                f"'messages[{i}].role' must be a string.", param=f"messages[{i}].role"
            )
    return messages


def check_model(value: Any) -> str | None:
    """The name of a model; None where it is missing, null or empty.

    :raises InvalidValue: it is no name.
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


def check_flag(value: Any, name: str) -> bool:
    """A flag; missing, null and 0 are false.

    Every server that takes a 0 reads it as false. 1 and strings are read differently: vLLM takes
    1 and "true" for true, older llama.cpp goes on with false, newer and Ollama refuse them.

    :raises InvalidValue: it is anything else.
    """
    if value is True:
        return True
    if value is None or value == 0:
        return False
    raise InvalidValue(f"'{name}' must be true or false.", param=name)


def check_choices(n: Any, prompts: int = 1) -> int:
    """How many choices a stream was asked for: ``n`` for each prompt. An ``n`` that is no number of
    choices is the backend's to judge.

    :raises InvalidValue: more than can be kept track of.
    """
    choices = (int(n) if isinstance(n, (int, float)) and n >= 1 else 1) * prompts
    if choices > MAX_CHOICES:
        said = f"A stream may have {MAX_CHOICES} choices, and this one asks for more."
        raise InvalidValue(said, param="n" if prompts == 1 else "prompt")
    return choices


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [p.get("text") for p in parts if isinstance(p, dict) and p.get("type") == "text"]
    return "\n".join(t for t in texts if isinstance(t, str))
