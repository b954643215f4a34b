"""The access log: one line for each exchange that has ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache

import msgspec
from msgspec import UNSET, UnsetType, structs

from gatewayd.exchange import End, Exchange, Tried

from .lines import LineWriter

_encoder = msgspec.json.Encoder()


class Line(msgspec.Struct, gc=False):
    """A line; its fields in order. Times are in milliseconds, sizes in bytes."""

    time: str
    id: str
    client: str
    caller: str | None
    traceparent: str | None
    method: str
    route: str
    model: str | None
    stream: bool
    backend: list[str]
    status: int
    end: End | None
    code: str | None
    detail: str | None
    total_ms: float
    connect_ms: float | None
    first_byte_ms: float | None
    first_event_ms: float | None
    longest_gap_ms: float
    events: int
    prompt_tokens: int | None
    completion_tokens: int | None
    bytes: int
    attempts: list[Attempt] | UnsetType = UNSET
    #: Of tunnels only.
    bytes_in: int | UnsetType = UNSET
    #: Left out if it is 0.
    priority: int | UnsetType = UNSET
    #: Only where the prompt was too long for the model that the client named.
    fallback: str | UnsetType = UNSET


class Attempt(msgspec.Struct, gc=False):
    """One backend that was asked, in the line of a request that was sent to several."""

    backend: str
    end: str
    code: str | None
    ms: float

    def __str__(self) -> str:
        return f"{self.backend}:{self.end}:{self.code or ''}:{self.ms}"


def line_of(exchange: Exchange) -> Line:
    """The line of an exchange that has ended."""
    started, connected, usage = exchange.started, exchange.connected, exchange.usage
    first_byte, first_event = exchange.first_byte, exchange.first_event
    return Line(
        _now(),
        exchange.id,
        exchange.client,
        exchange.caller,
        exchange.traceparent,
        exchange.method,
        exchange.route,
        exchange.model,
        exchange.stream,
        exchange.backends,
        exchange.status,
        exchange.end,
        exchange.code or None,
        exchange.detail or None,
        _ms(exchange.ended - started),
        connected and _ms(connected),
        None if first_byte is None else _ms(first_byte - started),
        None if first_event is None else _ms(first_event - started),
        _ms(exchange.longest_gap),
        exchange.events,
        None if usage is None else usage.prompt_tokens,
        None if usage is None else usage.completion_tokens,
        exchange.bytes_out,
        UNSET if exchange.tried is None else _attempts(exchange, exchange.tried),
        UNSET if exchange.bytes_in is None else exchange.bytes_in,
        exchange.priority or UNSET,
        UNSET if exchange.fallback is None else exchange.fallback,
    )


def _attempts(exchange: Exchange, tried: Sequence[Tried]) -> list[Attempt] | UnsetType:
    """Every attempt of a request that was sent to several backends, else nothing.

    The attempts follow each other, and the last one ends with the request.
    """
    names = exchange.backends
    if len(names) < 2:
        return UNSET
    attempts = [
        Attempt(each.backend, each.end, each.code or None, _ms(each.left - each.began))
        for each in tried
    ]
    if len(attempts) < len(names):
        end, code = str(exchange.end), exchange.code or None
        attempts.append(Attempt(names[-1], end, code, _ms(exchange.ended - tried[-1].left)))
    return attempts


def _ms(seconds: float) -> float:
    """Milliseconds, to the nearest microsecond. ``round(x, 3)`` costs twice as much."""
    return int(seconds * 1e6 + 0.5) / 1000


def _now() -> str:
    """The date and time, such as ``2026-01-31T23:59:59.999+00:00``."""
    milliseconds = time.time_ns() // 1_000_000
    return f"{_date_and_time(milliseconds // 1000)}.{milliseconds % 1000:03}+00:00"


@lru_cache(maxsize=1)
def _date_and_time(second: int) -> str:
    """A second of Unix time, such as ``2026-01-31T23:59:59``."""
    return datetime.fromtimestamp(second, UTC).replace(tzinfo=None).isoformat()


def as_json(exchange: Exchange) -> bytes:
    return _encoder.encode_lines((line_of(exchange),))


def as_text(exchange: Exchange) -> bytes:
    """``key=value`` pairs. A string that holds a space or the like is quoted as JSON."""
    words = []
    for key, value in structs.asdict(line_of(exchange)).items():  # attempts stay structs
        if isinstance(value, list):
            value = ",".join(map(str, value))
        if value is None or value is UNSET or value == "":
            continue
        text = str(value).lower() if isinstance(value, bool) else str(value)
        plain = all(c.isalnum() or c in "-._:/+@~,{}" for c in text)
        words.append(f"{key}={text if plain else _encoder.encode(text).decode()}")
    return " ".join(words).encode() + b"\n"


class AccessLog:
    """
    :param path: as in :class:`.lines.LineWriter`.
    :param format: ``json`` or ``text``.
    :param count_lost: called for each line that could not be written.
    """

    def __init__(self, path: str, format: str, count_lost: Callable[[], None]) -> None:
        self._path = path
        self._encode = as_json if format == "json" else as_text
        self._lines = LineWriter(path, f"access log {path}", count_lost)
        self.reopen, self.close = self._lines.reopen, self._lines.close

    def __call__(self, exchange: Exchange) -> None:
        if self._path:
            self._lines.write(self._encode(exchange))
