"""The table of the endpoints whose requests are relayed. No other module knows their paths.

To add an endpoint, add a row; :class:`.call.Endpoint` says what the columns mean. The endpoints
that the gateway answers itself are handlers in :mod:`gatewayd.api.app`.

Sources: https://platform.openai.com/docs/api-reference, https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

from .call import Call, Endpoint
from .chat import ChatCall, CompletionCall
from .choices import ChatReader, CompletionReader
from .dialects import ANTHROPIC, OPENAI, Dialect
from .events import EventReader
from .request import JSONCall
from .transcript import TranscriptReader
from .upload import FormCall


def _chat(call: Call, request_id: str, depth: int, model: str | None) -> ChatReader:
    return ChatReader(request_id, call.include_usage, call.choices, depth, model)


def _completion(call: Call, request_id: str, depth: int, model: str | None) -> ChatReader:
    return CompletionReader(None, call.include_usage, call.choices, depth, model)


def _events(call: Call, request_id: str, depth: int, model: str | None) -> EventReader:
    return EventReader(call.endpoint.ends, depth, model)


def _transcript(
    call: Call, request_id: str, depth: int, model: str | None
) -> TranscriptReader | None:
    return TranscriptReader(call.endpoint.ends, depth, model) if call.stream else None


# The events that end a stream well.
_DONE = frozenset({"[DONE]"})
_RESPONSE = frozenset({"response.completed", "response.incomplete"})
_MESSAGE = frozenset({"message_stop"})
_TRANSCRIPT = frozenset({"transcript.text.done"})  # OpenAI's; the reader knows other streams too

ENDPOINTS = (
    # path, request, reader, ends
    Endpoint("/v1/chat/completions", ChatCall, _chat, _DONE, usage_on_request=True),
    Endpoint("/v1/completions", CompletionCall, _completion, _DONE, usage_on_request=True),
    Endpoint("/v1/responses", JSONCall, _events, _RESPONSE),
    Endpoint("/v1/messages", JSONCall, _events, _MESSAGE, dialect=ANTHROPIC),
    Endpoint("/v1/messages/count_tokens", JSONCall, _events, dialect=ANTHROPIC),
    Endpoint("/v1/embeddings", JSONCall, _events),
    Endpoint("/v1/rerank", JSONCall, _events),
    Endpoint("/v1/audio/speech", JSONCall, None, opaque=True),
    Endpoint("/v1/audio/transcriptions", FormCall, _transcript, _TRANSCRIPT, opaque=True),
    Endpoint("/v1/audio/translations", FormCall, _transcript, _TRANSCRIPT, opaque=True),
)


def dialect_of(path: str) -> Dialect:
    """The dialect of a path: that of the endpoint there, or of the endpoint above it.

    So the errors for unknown paths below an endpoint are written as its clients expect.

    :param path: without the gateway's ``root_path``.
    """
    for endpoint in ENDPOINTS:
        if path == endpoint.path or path.startswith(endpoint.path + "/"):
            return endpoint.dialect
    return OPENAI
