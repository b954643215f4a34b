"""Reads replies of llama.cpp's own completions, whose form is not OpenAI's.

Each event has a piece of ``content`` and says with ``stop`` whether it is the last one of its
completion. ``index`` tells several completions apart. There is no ``[DONE]``.

Source: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md (POST /completion)
"""

from __future__ import annotations

import contextlib

import msgspec

from . import json
from .choices import MAX_CHOICES
from .content import Usage
from .errors import BadReply
from .events import EventReader


class _Result(msgspec.Struct):
    index: int = 0
    stop: bool = False
    tokens_evaluated: int = 0
    tokens_predicted: int = 0


_RESULT = msgspec.json.Decoder(_Result)


class NativeReader(EventReader):
    """The reader of such a reply.

    How many completions a stream has is not known before its end, so only the framing of the body
    can end it: then each completion that has begun must have stopped.
    """

    def __init__(self, ends: frozenset[str], depth: int, model: str | None) -> None:
        super().__init__(ends, depth, model)
        self._open: set[int] = set()
        self._stopped: set[int] = set()

    def read_document(self, body: bytes) -> bytes:
        if body.lstrip().startswith(b"["):  # several completions
            return self.read_list(body)
        document = super().read_document(body)
        with contextlib.suppress(json.NotJSON):  # it may be another server's
            self._count(json.decode(body, _RESULT, self._depth))
        return document

    def read_event(self, name: bytes, payload: bytes) -> bytes | None:
        crossing = super().read_event(name, payload)
        if crossing is None:
            return None
        result = self._decode(payload, _RESULT, "an event")
        if result.stop:
            self._open.discard(result.index)
            self._stopped.add(result.index)
            self._count(result)
        else:
            self._open.add(result.index)
            self._stopped.discard(result.index)
        if len(self._open) + len(self._stopped) > MAX_CHOICES:
            raise BadReply("The backend sent too many completions.")
        return crossing

    def is_complete(self, done: bool, framed: bool = True) -> bool:
        """Whether the body has ended and every completion has stopped."""
        return framed and bool(self._stopped) and not self._open

    def _count(self, result: _Result) -> None:
        before = self.usage or Usage()
        self.usage = Usage(
            before.prompt_tokens + max(0, result.tokens_evaluated),
            before.completion_tokens + max(0, result.tokens_predicted),
        )
