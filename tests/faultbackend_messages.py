"""Replies of faultbackend.py to requests for messages: Anthropic's API, with the same faults.

A fault about choices, usage or ``[DONE]`` has no effect here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.faultbackend_faults import Event, Reply, Step, Wait

USAGE = {"input_tokens": 7, "output_tokens": 5, "cache_read_input_tokens": 3}


def envelope(message: str, kind: str) -> bytes:
    """Anthropic's error envelope, with the id of a request of its own."""
    error = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_sim"}
    return json.dumps(error).encode()


def named(kind: str, **members: Any) -> Event:
    return Event(json.dumps({"type": kind, **members}).encode(), name=kind.encode())


class MessageReply(Reply):
    """A reply of ``/v1/messages`` or, if its path says so, a count of tokens."""

    failure = Event(envelope("sim failed on the way", "overloaded_error"), name=b"error")

    def events(self) -> Iterator[Step]:
        yield named("message_start", message=self._message([], None))
        block = {"type": "text", "text": ""}
        yield named("content_block_start", index=0, content_block=block)
        for text in self.texts:
            if self.token_gap:
                yield Wait(self.token_gap)
            delta = {"type": "text_delta", "text": json.loads(text)}
            yield named("content_block_delta", index=0, delta=delta)
        yield named("content_block_stop", index=0)
        delta = {"stop_reason": "end_turn", "stop_sequence": None}
        yield named("message_delta", delta=delta, usage=USAGE)
        yield named("message_stop")

    def completion(self) -> bytes:
        if self.record.path.partition("?")[0].endswith("/count_tokens"):
            return b'{"input_tokens": 7}'
        text = "".join(map(json.loads, self.texts))
        message = self._message([{"type": "text", "text": text}], "end_turn")
        return json.dumps(message).encode()

    def _message(self, content: list[dict[str, str]], reason: str | None) -> dict[str, Any]:
        return {
            "id": self.record.sim_id,
            "type": "message",
            "role": "assistant",
            "content": content,
            "model": json.loads(self.model),
            "stop_reason": reason,
            "stop_sequence": None,
            "usage": USAGE,
        }
