"""Requests for speech, and the reader of streams with sound or its transcription.

There are three kinds of stream. OpenAI's events have a type, and the last one ends the stream
well. vLLM's events are chunks, and ``[DONE]`` ends the stream. Other servers send JSON or text of
any form, and only the framing of the body says that it is complete.

Sources: https://platform.openai.com/docs/api-reference/audio/speech-audio-done-event,
https://platform.openai.com/docs/api-reference/audio/transcript-text-done-event
"""

from __future__ import annotations

from .call import Endpoint
from .errors import BadReply
from .events import EventReader, Payload
from .request import JSON_TYPE, JSONCall, check_model, check_stream, parse_object

#: What the types of OpenAI's events begin with.
_TYPED = ("speech.", "transcript.")


class SpeechCall(JSONCall, frozen=True):
    """A request for speech. It is one for an event stream if ``stream_format`` is ``sse``."""

    @classmethod
    def parse(cls, endpoint: Endpoint, body: bytes, content_type: bytes, depth: int) -> SpeechCall:
        fields = parse_object(body, depth)
        check_stream(fields.get("stream"))  # it asks for pieces of sound, not for events
        stream = fields.get("stream_format") == "sse"
        return cls(endpoint, body, JSON_TYPE, check_model(fields.get("model")), stream)


class AudioReader(EventReader):
    """The reader of such a stream: its events show of which kind it is."""

    def __init__(self, ends: frozenset[str], depth: int, model: str | None) -> None:
        super().__init__(ends, depth, model)
        self._typed = self._chunks = self._done = False

    def read_event(self, name: bytes, payload: bytes) -> bytes | None:
        self._typed |= name.decode("latin-1").startswith(_TYPED)
        if payload.lstrip().startswith(b"[DONE]"):
            self._done = True
            return payload
        try:
            return super().read_event(name, payload)
        except BadReply:  # it is text
            self.started = self.content = True
            return payload

    def is_complete(self, done: bool, framed: bool = True) -> bool:
        """Whether the stream has ended as streams of its kind end."""
        if self._typed:
            return self._ended
        return self._done or (framed and not self._chunks)

    def _read(self, payload: bytes, what: str) -> Payload:
        read = super()._read(payload, what)
        self._typed |= isinstance(read.type, str) and read.type.startswith(_TYPED)
        self._chunks |= read.object in ("transcription.chunk", "translation.chunk")
        return read
