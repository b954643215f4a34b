"""The far end of a client's connection: sends requests, reads at its pace, may disconnect."""

from __future__ import annotations

import json
import random
from typing import Any

import attrs

from .network import Plain


@attrs.define
class Ask:
    """One request.

    :param fault: why the gateway should refuse it; empty if it should not.
    """

    id: str
    path: str
    stream: bool
    body: bytes
    raw: bytes
    fault: str = ""

    @property
    def is_audio(self) -> bool:
        return self.path == "/v1/audio/speech"


@attrs.define
class Answer:
    """One response, read by an independent parser."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    whole: bool

    def header(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name]

    @property
    def is_stream(self) -> bool:
        return self.header("content-type") == ["text/event-stream"]

    @property
    def payloads(self) -> list[bytes]:
        """The data of each complete event, without comments."""
        blocks = self.body.split(b"\n\n")[:-1]
        return [b.removeprefix(b"data: ") for b in blocks if not b.startswith(b":")]

    @property
    def error(self) -> Any:
        return json.loads(self.body)["error"]


class ClientEnd:
    """
    :param rate: bytes of one read, and seconds between two reads.
    :param leaves: the time at which it disconnects, and whether by a reset; None for never.
    """

    def __init__(
        self,
        end: Plain,
        asks: list[Ask],
        minor: int,
        rate: tuple[int, float],
        leaves: tuple[float, bool] | None,
        pause: float,
        random: random.Random,
    ) -> None:
        self.end = end
        self.asks = asks
        self.minor = minor
        self.received = bytearray()
        self.wake: float | None = None
        self.left: float | None = None
        self.ended = False  # the gateway has closed the connection
        self.broken = False  # ... and reset it
        self.done = False
        self._rate = rate
        self._leaves = leaves
        self._pause = pause
        self._pieces: list[bytes] = []
        data = b"".join(ask.raw for ask in asks)
        count = random.choice([1, 1, 3, 10])
        cuts = sorted(random.randrange(len(data) + 1) for _ in range(count - 1))
        self._pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        self._next_piece = self._next_read = 0.0

    def act(self, now: float) -> bool:
        if self.done:
            return False
        if self._leaves is not None and now >= self._leaves[0]:
            self.left, self.done, self.wake = now, True, None
            if self._leaves[1]:
                self.end.reset()
            else:
                self.end.socket.close()
            return True
        moved = False
        if self._pieces and now >= self._next_piece:
            self.end.write(self._pieces.pop(0))
            self._next_piece = now + self._pause
            moved = True
        most, interval = self._rate
        data = self.end.pump(most if now >= self._next_read else 0)
        moved = moved or self.end.moved
        if data:
            self.received += data
            self._next_read = now + interval
        if self.end.ended or self.end.broken or self.end.socket.broken:
            self.ended, self.broken = True, not self.end.ended
            self.done, self.wake = True, None
            self.end.socket.close()
            return True
        if data and len(self.answers()) == len(self.asks) and self.answers()[-1].whole:
            self.done, self.wake = True, None
            self.end.socket.close()
            return True
        times = [self._next_piece] if self._pieces else []
        if most and interval:
            times.append(self._next_read)
        if self._leaves is not None:
            times.append(self._leaves[0])
        later = [t for t in times if t > now]
        self.wake = min(later, default=None)
        return moved

    @property
    def reads_all(self) -> bool:
        """Whether it must have read all answers.

        A client that sends after the gateway has closed may lose answers to a reset.
        """
        return self.reads and not self.end.socket.sent_too_late

    @property
    def reads(self) -> bool:
        return self._rate[0] > 0

    def answers(self) -> list[Answer]:
        """The responses that were read; the last one may be incomplete.

        :raises AssertionError: they are not HTTP, or there are more responses than requests.
        """
        answers, data = [], bytes(self.received)
        while data:
            answer, data = _parse(data, self.minor, self.ended and not self.broken)
            if answer is None:
                break
            if answer.status != 100:
                answers.append(answer)
        assert len(answers) <= len(self.asks), "more answers than requests"
        return answers


def _parse(data: bytes, minor: int, closed: bool) -> tuple[Answer | None, bytes]:
    head, separator, rest = data.partition(b"\r\n\r\n")
    if not separator:
        return None, b""
    line, *lines = head.decode("latin-1").split("\r\n")
    version, status, _ = line.split(" ", 2)
    assert version == "HTTP/1.1", line
    headers = [tuple(field.split(": ", 1)) for field in lines]
    answer = Answer(int(status), headers, b"", False)  # type: ignore[arg-type]  # all are pairs
    if answer.status == 100:
        return answer, rest
    if answer.header("transfer-encoding"):
        assert minor == 1, "chunks for HTTP/1.0"
        answer.body, answer.whole, rest = _dechunk(rest)
    elif lengths := answer.header("content-length"):
        length = int(lengths[0])
        answer.body, rest = rest[:length], rest[length:]
        answer.whole = len(answer.body) == length
    else:
        assert minor == 0, "a body without framing"
        answer.body, answer.whole, rest = rest, closed, b""
    return answer, rest


def _dechunk(data: bytes) -> tuple[bytes, bool, bytes]:
    body = bytearray()
    while data:
        size, newline, rest = data.partition(b"\r\n")
        if not newline:
            break
        length = int(size, 16)
        if len(rest) < length + 2:
            body += rest[:length]
            break
        assert rest[length : length + 2] == b"\r\n", "a chunk of another size"
        body += rest[:length]
        data = rest[length + 2 :]
        if not length:
            return bytes(body), True, data
    return bytes(body), False, b""
