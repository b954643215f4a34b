"""The table of the endpoints whose requests are relayed. No other module knows their paths.

To add an endpoint, add a row; :class:`.call.Endpoint` says what the columns mean. The endpoints
that the gateway answers itself are handlers in :mod:`gatewayd.api.app`.

Sources: https://platform.openai.com/docs/api-reference, https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

import re

from .audio import AudioReader, SpeechCall
from .call import Call, Endpoint
from .chat import ChatCall, CompletionCall
from .choices import ChatReader, CompletionReader
from .dialects import ANTHROPIC, OPENAI, Dialect
from .events import EventReader
from .images import EditCall, ImageCall, ImageReader
from .native import NativeReader
from .request import JSONCall
from .responses import ResponseReader, ResponsesCall, StoredCall
from .tunnels import TunnelEndpoint
from .upload import FormCall


def _chat(call: Call, request_id: str, depth: int, model: str | None) -> ChatReader:
    return ChatReader(request_id, call.include_usage, call.choices, depth, model)


def _completion(call: Call, request_id: str, depth: int, model: str | None) -> ChatReader:
    return CompletionReader(None, call.include_usage, call.choices, depth, model)


def _events(call: Call, request_id: str, depth: int, model: str | None) -> EventReader:
    return EventReader(call.endpoint.ends, depth, model)


def _native(call: Call, request_id: str, depth: int, model: str | None) -> NativeReader:
    return NativeReader(call.endpoint.ends, depth, model)


def _response(call: Call, request_id: str, depth: int, model: str | None) -> ResponseReader:
    return ResponseReader(call.endpoint.ends, depth, model)


def _audio(call: Call, request_id: str, depth: int, model: str | None) -> AudioReader | None:
    return AudioReader(call.endpoint.ends, depth, model) if call.stream else None


def _images(call: Call, request_id: str, depth: int, model: str | None) -> ImageReader:
    return ImageReader(call.endpoint.ends, call.choices, depth, model)


# The events that end a stream well.
_DONE = frozenset({"[DONE]"})
_RESPONSE = frozenset({"response.completed", "response.incomplete"})
_MESSAGE = frozenset({"message_stop"})
_IMAGE = frozenset({"image_generation.completed"})
_EDIT = frozenset({"image_edit.completed"})
# OpenAI's; the reader knows other streams, too.
_SPEECH = frozenset({"speech.audio.done"})
_TRANSCRIPT = frozenset({"transcript.text.done"})

_STOP = frozenset({"stop"})  # not the type of an event, but a member of the last one

#: vLLM sends vectors in this form if a request asks for ``encoding_format: bytes``.
_VECTORS = frozenset({"application/octet-stream"})

#: Servers have one handler for these paths, or only one of them, or two that differ. So a backend
#: is asked for the path that the client used. llama.cpp's completions and embeddings without /v1
#: are not those of OpenAI.
_RANKING = ("/v1/rerank", "/rerank", "/v2/rerank", "/v1/reranking", "/reranking")
_COMPLETIONS = ("/completion", "/completions", "/infill")
_SCORING = ("/v1/score", "/score", "/classify")

#: Asks for a stored response. A backend that has it replies with 200.
RETRIEVAL = Endpoint("/v1/responses/{id}", StoredCall, _response, _RESPONSE, method="GET")

ENDPOINTS = (
    # path, request, reader, ends
    Endpoint(
        "/v1/chat/completions",
        ChatCall,
        _chat,
        _DONE,
        usage_on_request=True,
        aliases=("/chat/completions",),
    ),
    Endpoint("/v1/completions", CompletionCall, _completion, _DONE, usage_on_request=True),
    Endpoint("/v1/responses", ResponsesCall, _response, _RESPONSE, aliases=("/responses",)),
    RETRIEVAL,
    Endpoint("/v1/responses/{id}", StoredCall, _events, method="DELETE"),
    Endpoint("/v1/responses/{id}/cancel", StoredCall, _response),
    Endpoint("/v1/responses/{id}/input_items", StoredCall, _events, method="GET"),
    Endpoint("/v1/messages", JSONCall, _events, _MESSAGE, dialect=ANTHROPIC),
    Endpoint("/v1/chat/completions/input_tokens", JSONCall, _events),
    Endpoint("/v1/responses/input_tokens", JSONCall, _events, aliases=("/responses/input_tokens",)),
    Endpoint("/v1/responses/compact", JSONCall, _events),
    Endpoint("/v1/messages/count_tokens", JSONCall, _events, dialect=ANTHROPIC),
    Endpoint("/v1/embeddings", JSONCall, _events, unread=_VECTORS),
    Endpoint("/pooling", JSONCall, _events, unread=_VECTORS),
    *(Endpoint(path, JSONCall, _events) for path in (*_RANKING, *_SCORING)),
    *(Endpoint(path, JSONCall, _native, _STOP) for path in _COMPLETIONS),
    *(Endpoint(path, JSONCall, _events) for path in ("/embedding", "/embeddings")),
    Endpoint("/v1/moderations", JSONCall, _events),
    Endpoint("/v1/images/generations", ImageCall, _images, _IMAGE),
    Endpoint("/v1/images/edits", EditCall, _images, _EDIT),
    Endpoint("/v1/images/variations", FormCall, _events),
    Endpoint("/v1/audio/speech", SpeechCall, _audio, _SPEECH, opaque=True),
    Endpoint(
        "/v1/audio/transcriptions",
        FormCall,
        _audio,
        _TRANSCRIPT,
        opaque=True,
        aliases=("/audio/transcriptions",),
    ),
    Endpoint("/v1/audio/translations", FormCall, _audio, _TRANSCRIPT, opaque=True),
)

#: The endpoints for WebSockets. Their requests are GET.
TUNNELS = (
    TunnelEndpoint("/v1/realtime", "/v1/realtime"),
    TunnelEndpoint("/v1/responses", "/v1/responses (WebSocket)", models_in_messages=True),
)


#: The first names of the endpoints, by all of their names.
_FIRST_NAMES = {name: row.path for row in ENDPOINTS for name in (row.path, *row.aliases)}
_FIRST_NAMES |= dict.fromkeys(("/v1/models", "/models"), "/v1/models")


def first_name(path: str) -> str:
    """The path of the endpoint that has this path as another name; else the path itself.

    :param path: without the gateway's ``root_path``; it may have one slash more at its end.
    """
    return _FIRST_NAMES.get(path.removesuffix("/"), path)


_ANTHROPIC_PATHS = [row.path for row in ENDPOINTS if row.dialect is ANTHROPIC]


def dialect_of(path: str) -> Dialect:
    """The dialect of a path: that of the endpoint there, or of the endpoint above it.

    So the errors for unknown paths below an endpoint are written as its clients expect, and so are
    those for a wrong base URL, with which ``/v1`` is missing or comes twice.

    :param path: without the gateway's ``root_path``.
    """
    plain = "/v1" + re.sub("^(/v1)+(?=/)", "", path)
    for known in _ANTHROPIC_PATHS:
        if plain == known or plain.startswith(known + "/"):
            return ANTHROPIC
    return OPENAI


def retrieval_of(id: str) -> Call:
    """A request for the stored response with this id.

    :raises InvalidValue: it cannot be the id of a response.
    """
    return StoredCall(RETRIEVAL, b"", b"", None, False).located({"id": id}, b"")
