"""Requests for completions: chats, and the older kind with a prompt.

Both are answered with choices, of which a request may ask for several.

Source: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from typing import Any

import attrs
import msgspec

from .call import Endpoint
from .completion import MAX_CHOICES
from .errors import InvalidValue
from .request import JSONCall, check_flag, check_model, parse_object


@attrs.frozen
class ChatCall(JSONCall):
    """A request for a chat completion. Its ``messages`` are checked."""

    @classmethod
    def parse(cls, endpoint: Endpoint, body: bytes, content_type: bytes, depth: int) -> ChatCall:
        fields = parse_object(body, depth)
        stream = check_flag(fields.get("stream"), "stream")
        _check_messages(fields)
        return cls(
            endpoint,
            body,
            model=check_model(fields.get("model")),
            stream=stream,
            include_usage=_includes_usage(fields),
            choices=_choices(fields.get("n")) if stream else 1,
        )

    def prompt(self) -> str:
        """The last user message: its text, or its text parts joined by newlines.

        :raises InvalidValue: there is none.
        """
        for message in reversed(msgspec.json.decode(self.body)["messages"]):
            if message["role"] == "user":
                return _text_of(message.get("content"))
        raise InvalidValue("'messages' has no message with role 'user'.", param="messages")


@attrs.frozen
class CompletionCall(JSONCall):
    """A request for completions of one or several prompts."""

    @classmethod
    def parse(
        cls, endpoint: Endpoint, body: bytes, content_type: bytes, depth: int
    ) -> CompletionCall:
        fields = parse_object(body, depth)
        model = check_model(fields.get("model"))
        stream = check_flag(fields.get("stream"), "stream")
        return cls(
            endpoint,
            body,
            model=model,
            stream=stream,
            include_usage=_includes_usage(fields),
            choices=_choices(fields.get("n"), _prompts(fields)) if stream else 1,
        )


def _includes_usage(fields: dict[str, Any]) -> bool:
    options = fields.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def _prompts(fields: dict[str, Any]) -> int:
    """How many prompts a request has. A list of numbers is one prompt, as tokens."""
    prompt = fields.get("prompt")
    several = isinstance(prompt, list) and all(isinstance(p, (str, list)) for p in prompt)
    return len(prompt) if several and prompt else 1


def _choices(n: Any, prompts: int = 1) -> int:
    """How many choices a stream was asked for: ``n`` for each prompt. An ``n`` that is no number of
    choices is the backend's to judge.

    :raises InvalidValue: more than can be kept track of.
    """
    choices = (int(n) if isinstance(n, (int, float)) and n >= 1 else 1) * prompts
    if choices > MAX_CHOICES:
        said = f"A stream may have {MAX_CHOICES} choices, and this one asks for more."
        raise InvalidValue(said, param="n" if prompts == 1 else "prompt")
    return choices


def _check_messages(fields: dict[str, Any]) -> None:
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
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [p.get("text") for p in parts if isinstance(p, dict) and p.get("type") == "text"]
    return "\n".join(t for t in texts if isinstance(t, str))
