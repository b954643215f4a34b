"""Keys of conversations: requests with equal keys should be sent to the same backend.

A backend keeps the prompts that it has computed in a cache, and the next request of a conversation
begins with the prompt of the one before. A key is made of what stays the same in all requests of a
conversation, from the first of these sources that the request has:

1. a key that the client sends: in a header, or as ``prompt_cache_key``;
2. the user (``safety_identifier``, ``user`` or ``metadata.user_id``), if the operator wants this;
3. the head of the conversation: the model, and the messages up to the first of the user.

A key is a hash of 64 bits. It does not depend on the process, the white space of the document or
the order of its members. A wrong key is no error: it costs the use of a cache.

Sources: https://platform.openai.com/docs/guides/prompt-caching,
https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

from hashlib import blake2b

import msgspec
from msgspec import Raw

#: The most bytes of a key that a client sends. A longer one is not used.
MAX_SENT = 512

#: A prompt of ``/v1/completions`` counts up to this many bytes of its JSON. Each request of a
#: conversation repeats the prompt before, and makes it longer.
PROMPT_BYTES = 1024

#: Of a text or an image that is longer than both together, this many bytes at its start and at its
#: end count.
_END_BYTES = 1024

#: Claude Code sends its version and a checksum of the request as the first text of ``system``.
#: Servers leave that text out of the prompt (https://github.com/vllm-project/vllm/pull/36829).
_NOT_PROMPT = b'"x-anthropic-billing-header:'

_NONE = Raw(b"")


class _Part(msgspec.Struct):
    """A part of a message. Only what it shows counts, not a mark such as ``cache_control``."""

    text: Raw = _NONE
    image_url: Raw = _NONE
    input_audio: Raw = _NONE
    file: Raw = _NONE
    file_id: Raw = _NONE
    source: Raw = _NONE


class _Message(msgspec.Struct):
    role: str = ""
    content: Raw = _NONE


class _Metadata(msgspec.Struct):
    user_id: Raw = _NONE


class _Request(msgspec.Struct):
    """The members that a key is made of, at all endpoints."""

    model: Raw = _NONE
    prompt_cache_key: Raw = _NONE
    safety_identifier: Raw = _NONE
    user: Raw = _NONE
    metadata: Raw = _NONE
    system: Raw = _NONE
    instructions: Raw = _NONE
    messages: list[_Message] = []
    input: Raw = _NONE
    prompt: Raw = _NONE


_request = msgspec.json.Decoder(_Request).decode
_metadata = msgspec.json.Decoder(_Metadata).decode
_messages = msgspec.json.Decoder(list[_Message]).decode
_parts = msgspec.json.Decoder(list[_Part]).decode


def of_session(sent: bytes) -> int | None:
    """The key for a value that a client sent; None if it is empty or too long."""
    return _hash(b"session", sent) if 0 < len(sent) <= MAX_SENT else None


def of_document(body: bytes, by_user: bool, by_prompt: bool) -> int | None:
    """The key of a request with a JSON body; None if it has none.

    :param body: an object that was found good.
    :param by_user: whether the user is a key.
    :param by_prompt: whether the head of the conversation is a key.
    """
    if not by_user and not by_prompt and b'"prompt_cache_key"' not in body:
        return None
    try:
        request = _request(body)
        key = of_session(_text(request.prompt_cache_key))
        if key is None and by_user:
            key = of_session(_user(request))
        if key is None and by_prompt:
            head = _head(request)
            key = _hash(*head) if head else None
    except msgspec.ValidationError:  # a member has another type: the backend judges it
        return None
    return key


def _hash(*values: bytes) -> int:
    # JSON has no byte 0, and neither have the headers of a request.
    return int.from_bytes(blake2b(b"\0".join(values), digest_size=8).digest())


def _text(value: Raw) -> bytes:
    """The bytes between the quotes of a JSON string; nothing for another value."""
    return bytes(value)[1:-1] if _begins(value, b'"') else b""


def _begins(value: Raw, byte: bytes) -> bool:
    return memoryview(value)[:1] == byte


def _user(request: _Request) -> bytes:
    found = _text(request.safety_identifier) or _text(request.user)
    if not found and _begins(request.metadata, b"{"):
        found = _text(_metadata(request.metadata).user_id)
    return found


# -- the head of a conversation --------------------------------------------------------------------


def _head(request: _Request) -> list[bytes]:
    """What tells a conversation from another one; nothing if there is no conversation.

    :raises msgspec.ValidationError: a member has another type.
    """
    head = [bytes(request.model)]
    if request.messages:  # chats, and Anthropic's messages
        _add_content(head, request.system)
        _add_messages(head, request.messages)
    elif request.input:  # responses
        _add_content(head, request.instructions)
        if _begins(request.input, b"["):
            _add_messages(head, _messages(request.input))
        else:
            _add_content(head, request.input)
    elif request.prompt:  # completions
        head.append(bytes(memoryview(request.prompt)[:PROMPT_BYTES]))
    else:
        return []
    return head


def _add_messages(head: list[bytes], messages: list[_Message]) -> None:
    """Add the messages up to the first of the user; all of them if there is none."""
    for message in messages:
        _add_content(head, message.content)
        if message.role == "user":
            return


def _add_content(head: list[bytes], content: Raw) -> None:
    """Add a string, or what a list of parts shows. A list of one text is as good as a string."""
    text = _ends(content)
    if not text.startswith(b"["):
        head.append(text)
        return
    for part in _parts(content):
        for shown in msgspec.structs.astuple(part):
            if shown and not _is_no_prompt(shown):
                head.append(_ends(shown))


def _is_no_prompt(shown: Raw) -> bool:
    return memoryview(shown)[: len(_NOT_PROMPT)] == _NOT_PROMPT


def _ends(shown: Raw) -> bytes:
    """A text or an image; if it is long, its ends and its length."""
    size = len(shown)
    if size <= 2 * _END_BYTES:
        return bytes(shown)
    view = memoryview(shown)
    return b"%b%b%d" % (bytes(view[:_END_BYTES]), bytes(view[-_END_BYTES:]), size)
