"""What a backend does with one request, and the outcome that the oracle expects."""

from __future__ import annotations

import json
import random
from typing import Any

import attrs

#: The limits of the gateway under test, in bytes.
EVENT_LIMIT, REPLY_LIMIT = 4096, 64 * 1024

#: Seconds; longer than each timeout of the gateway under test.
FOR_EVER = 1000.0


@attrs.define
class Plan:
    """
    :param steps: what is done, in order: seconds to wait, ``send``, ``fin``, ``reset`` or
        ``mute``, and the bytes to send.
    :param complete: whether the reply is whole and good.
    :param status: the status of an error that is passed on; 0 if there is none.
    :param payloads: the payloads of the good events, in order.
    :param body: the body of a whole reply.
    :param may_have_run: whether the backend may have begun the work.
    """

    name: str
    steps: list[tuple[float, str, bytes]]
    complete: bool = False
    status: int = 0
    payloads: list[bytes] = attrs.field(factory=list)
    body: bytes = b""
    may_have_run: bool = True
    keeps: bool = False  # keep the connection for another request


def chunk(id: str, n: int, finish: str | None = None, size: int = 0) -> bytes:
    """A chunk of a stream; its text names the request, so that foreign content is detected."""
    delta = {"content": f"{id}:{n}" + "x" * size} if finish is None else {}
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        }
    ).encode()


def completion(id: str, size: int = 0, finish: str | None = "stop") -> bytes:
    message = {"role": "assistant", "content": f"{id}:" + "y" * size}
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8},
        }
    ).encode()


def _envelope(status: int) -> bytes:
    error = {"message": f"sim says {status}", "type": "x", "param": None, "code": f"sim_{status}"}
    return json.dumps({"error": error}).encode()


class Planner:
    """Makes random plans of every kind."""

    def __init__(self, random: random.Random) -> None:
        self._random = random

    def plan(self, id: str, stream: bool, audio: bool) -> Plan:
        chance = self._random.random()
        if chance < 0.5:
            return self._good(id, stream, audio)
        kinds = [self._cut, self._silent, self._refuses, self._gone, self._garbage, self._reported]
        if not audio:
            kinds += [self._too_large, self._unfinished]
        return self._random.choice(kinds)(id, stream, audio)

    # -- good replies --------------------------------------------------------------------------

    def _good(self, id: str, stream: bool, audio: bool) -> Plan:
        pick = self._random.choice
        if audio:
            body = id.encode() + b"\x00" * pick([0, 10, 5_000, 60_000, 250_000])
            plan = self._framed("audio", body, b"audio/mpeg", pick(["length", "chunks"]))
            plan.body = body
        elif not stream or self._random.random() < 0.1:
            body = completion(id, pick([0, 0, 100, 20_000, 50_000]))
            plan = self._framed("document", body, b"application/json", self._framing())
            plan.body = body
        else:
            payloads = [chunk(id, n, size=pick([0, 0, 0, 500])) for n in range(pick([1, 3, 9, 60]))]
            payloads.append(chunk(id, 0, "stop"))
            end = pick([b"data: [DONE]\n\n", b"data: [DONE]\n\n", b""])
            body = self._events(payloads) + end
            plan = self._framed("events", body, b"text/event-stream", self._framing())
            plan.payloads = payloads
        plan.complete = True
        if plan.keeps and self._random.random() < 0.1:
            plan.steps.append((0, "send", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother"))
            plan.name += " and a second reply that nobody asked for"
            plan.keeps = False
        if plan.keeps and self._random.random() < 0.1:
            plan.steps.append((0, self._random.choice(["fin", "reset"]), b""))
            plan.name += " and closes"
            plan.keeps = False
        return plan

    def _framing(self) -> str:
        return self._random.choice(["length", "chunks", "chunks", "close"])

    def _events(self, payloads: list[bytes]) -> bytes:
        line = self._random.choice([b"\n", b"\n", b"\r\n"])
        comment = b": ping" + line + line
        return b"".join(
            (comment if self._random.random() < 0.1 else b"") + b"data: " + p + line + line
            for p in payloads
        )

    def _framed(self, name: str, body: bytes, media_type: bytes, framing: str) -> Plan:
        """The head and the body, in pieces with pauses between them."""
        head = b"HTTP/1.1 200 OK\r\nContent-Type: " + media_type + b"\r\n"
        closes = framing == "close" or self._random.random() < 0.2
        if framing == "length":
            head += b"Content-Length: %d\r\n" % len(body)
        elif framing == "chunks":
            head += b"Transfer-Encoding: chunked\r\n"
            size = self._random.choice([100, 1000, 16_000])
            pieces = [body[at : at + size] for at in range(0, len(body), size)]
            body = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"
        if closes and framing != "close":
            head += b"Connection: close\r\n"
        steps = self._pieces(head + b"\r\n" + body)
        if closes:
            steps.append((0, "fin", b""))
        return Plan(f"{name} by {framing}", steps, keeps=not closes)

    def _pieces(self, data: bytes) -> list[tuple[float, str, bytes]]:
        count = self._random.choice([1, 1, 2, 5, 20])
        cuts = sorted(self._random.randrange(len(data) + 1) for _ in range(count - 1))
        pauses = self._random.choice([(0.0,), (0.0, 0.01), (0.0, 0.3, 0.7)])
        return [
            (self._random.choice(pauses), "send", data[start:end])
            for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)
        ]

    # -- faults --------------------------------------------------------------------------------

    def _shortened(self, id: str, stream: bool, audio: bool, last: str) -> Plan:
        """A good reply that fails before its last byte of content."""
        while True:
            plan = self._good(id, stream, audio)
            if "close" not in plan.name and "reply" not in plan.name:
                break
        data = b"".join(data for _, action, data in plan.steps if action == "send")
        needed = data.rfind(b'"stop"') if plan.payloads else len(data) - 8
        steps = self._pieces(data[: self._random.randrange(1, max(2, needed))])
        steps.append((self._random.choice([0.0, 0.2]), last, b""))
        return Plan(f"{plan.name}, {last} before its end", steps, payloads=plan.payloads)

    def _cut(self, id: str, stream: bool, audio: bool) -> Plan:
        return self._shortened(id, stream, audio, self._random.choice(["fin", "reset"]))

    def _silent(self, id: str, stream: bool, audio: bool) -> Plan:
        return self._shortened(id, stream, audio, "mute")

    def _refuses(self, id: str, stream: bool, audio: bool) -> Plan:
        status = self._random.choice([400, 404, 422, 429, 500, 503])
        body = _envelope(status)
        head = b"HTTP/1.1 %d Error\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        ran = status not in (429, 503)
        steps = self._pieces(head % (status, len(body)) + body)
        return Plan(f"status {status}", steps, status=status, may_have_run=ran, keeps=True)

    def _gone(self, id: str, stream: bool, audio: bool) -> Plan:
        how = self._random.choice(["fin", "reset", "mute"])
        return Plan(f"{how} instead of a reply", [(self._random.choice([0.0, 0.1]), how, b"")])

    def _garbage(self, id: str, stream: bool, audio: bool) -> Plan:
        garbage = self._random.choice(
            [
                b"SSH-2.0-OpenSSH_9.2\r\n",
                b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
                b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\n<h1>",
                b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n",
                b"HTTP/1.1 401 No\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
                b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b",
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked"
                b"\r\n\r\nzz\r\n",
                b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
                b"HTTP/1.1 200 OK\r\nX-Long: " + b"a" * 40_000,
            ]
        )
        return Plan(f"garbage {garbage[:30]!r}", self._pieces(garbage))

    def _reported(self, id: str, stream: bool, audio: bool) -> Plan:
        """An error in place of the reply."""
        if not stream:
            body = _envelope(500)
            plan = self._framed("an error under a 200", body, b"application/json", "chunks")
            plan.complete = audio  # opaque replies are not parsed
            plan.body = body if audio else b""
            return plan
        payloads = [chunk(id, n) for n in range(self._random.choice([0, 1, 5]))]
        body = self._events([*payloads, _envelope(500)]) + b"data: [DONE]\n\n"
        plan = self._framed("an error event", body, b"text/event-stream", "chunks")
        plan.payloads = payloads
        return plan

    def _too_large(self, id: str, stream: bool, audio: bool) -> Plan:
        if not stream:
            body = completion(id, REPLY_LIMIT + 10)
            return self._framed("a document past the limit", body, b"application/json", "length")
        payloads = [chunk(id, n) for n in range(self._random.choice([0, 2]))]
        body = self._events([*payloads, chunk(id, 0, size=EVENT_LIMIT + 10)])
        plan = self._framed("an event past the limit", body, b"text/event-stream", "chunks")
        plan.payloads = payloads
        return plan

    def _unfinished(self, id: str, stream: bool, audio: bool) -> Plan:
        """A well-framed reply in which a choice stays open."""
        if not stream:
            return self._cut(id, stream, audio)
        if self._random.random() < 0.3:
            body = completion(id, finish=None)
            return self._framed("a document left open", body, b"application/json", "length")
        payloads = [chunk(id, n) for n in range(self._random.choice([0, 1, 4]))]
        end = self._random.choice([b"data: [DONE]\n\n", b""])
        body = self._events(payloads) + end
        plan = self._framed("events left open", body, b"text/event-stream", self._framing())
        plan.payloads = payloads
        return plan


def without_id(payload: bytes) -> Any:
    """A completion or chunk as a value, without the member that the gateway replaces."""
    value = json.loads(payload)
    value.pop("id", None)
    return value
