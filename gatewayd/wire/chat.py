"""Requests for completions: of chats, and of prompts (the older kind).

The reply to both consists of choices, and a request may ask for several.

Source: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from typing import Any

import msgspec

from .call import Endpoint
from .choices import MAX_CHOICES
from .errors import InvalidValue
from .request import JSON_TYPE, JSONCall, check_model, check_stream, parse_object


class ChatCall(JSONCall, frozen=True):
    """A request for the completion of a chat. Its ``messages`` are checked."""

    @classmethod
    def parse(cls, endpoint: Endpoint, body: bytes, content_type: bytes, depth: int) -> ChatCall:
        fields = parse_object(body, depth)
        stream = check_stream(fields.get("stream"))
        _check_messages(fields)
        return cls(
            endpoint,
            body,
            JSON_TYPE,
            check_model(fields.get("model")),
            stream,
            _includes_usage(fields),
            _choices(fields.get("n")) if stream else 1,
        )

    def prompt(self) -> str:
        """The text of the last user message; if it has parts, its text parts joined by newlines.

        :raises InvalidValue: there is no user message.
        """
        for message in reversed(msgspec.json.decode(self.body)["messages"]):
            if message["role"] == "user":
                return _text_of(message.get("content"))
        raise InvalidValue("'messages' has no message with role 'user'.", param="messages")


class CompletionCall(JSONCall, frozen=True):
    """A request for the completions of one or several prompts."""

    @classmethod
    def parse(
        cls, endpoint: Endpoint, body: bytes, content_type: bytes, depth: int
    ) -> CompletionCall:
        fields = parse_object(body, depth)
        model = check_model(fields.get("model"))
        stream = check_stream(fields.get("stream"))
        return cls(
            endpoint,
            body,
            JSON_TYPE,
            model,
            stream,
            _includes_usage(fields),
            _choices(fields.get("n"), _prompts(fields)) if stream else 1,
        )


def _includes_usage(fields: dict[str, Any]) -> bool:
    """Whether the client asks for the usage of a stream."""
    options = fields.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def _prompts(fields: dict[str, Any]) -> int:
    """How many prompts a request has. A list of numbers is one prompt, given as tokens."""
    prompt = fields.get("prompt")
    several = isinstance(prompt, list) and all(isinstance(p, (str, list)) for p in prompt)
    return len(prompt) if several and prompt else 1


def _choices(n: Any, prompts: int = 1) -> int:
    """How many choices a stream is asked for: ``n`` for each prompt.

    An ``n`` that is not a number of choices counts as 1: the backend judges it.

    :raises InvalidValue: more than :data:`.choices.MAX_CHOICES`.
    """
    choices = (int(n) if isinstance(n, (int, float)) and n >= 1 else 1) * prompts
    if choices > MAX_CHOICES:
        reason = f"A stream may have {MAX_CHOICES} choices, and this request asks for more."
        raise InvalidValue(reason, param="n" if prompts == 1 else "prompt")
    return choices


def _check_messages(fields: dict[str, Any]) -> None:
    """Check that ``messages`` is a list of objects with a ``role``, and not empty.

    :raises InvalidValue: it is not.
    """
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


def _text_of(content: Any) -> str:
    """The text of a message's ``content``: a string, or a list of parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [p.get("text") for p in parts if isinstance(p, dict) and p.get("type") == "text"]
    return "\n".join(t for t in texts if isinstance(t, str))
