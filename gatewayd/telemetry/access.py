"""The access log: one line for each exchange that has ended."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from gatewayd.exchange import Exchange

from .lines import LineWriter


def fields(exchange: Exchange) -> dict[str, Any]:
    """The fields of a line, in order. Times are in milliseconds, sizes in bytes."""

    def after_start(when: float | None) -> float | None:
        return None if when is None else round((when - exchange.started) * 1000, 3)

    connected, usage = exchange.connected, exchange.usage
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "id": exchange.id,
        "client": exchange.client,
        "caller": exchange.caller,
        "traceparent": exchange.traceparent,
        "method": exchange.method,
        "route": exchange.route,
        "model": exchange.model,
        "stream": exchange.stream,
        "backend": exchange.backends,
        "status": exchange.status,
        "end": str(exchange.end),
        "code": exchange.code or None,
        "detail": exchange.detail or None,
        "total_ms": after_start(exchange.ended),
        "connect_ms": None if connected is None else round(connected * 1000, 3),
        "first_byte_ms": after_start(exchange.first_byte),
        "first_event_ms": after_start(exchange.first_event),
        "longest_gap_ms": round(exchange.longest_gap * 1000, 3),
        "events": exchange.events,
        "prompt_tokens": None if usage is None else usage.prompt_tokens,
        "completion_tokens": None if usage is None else usage.completion_tokens,
        "bytes": exchange.bytes_out,
    }


def as_json(exchange: Exchange) -> bytes:
    return msgspec.json.encode(fields(exchange)) + b"\n"


def as_text(exchange: Exchange) -> bytes:
    """``key=value`` pairs. A string that holds a space or the like is quoted as JSON."""
    words = []
    for key, value in fields(exchange).items():
        if isinstance(value, list):
            value = ",".join(value)
        if value is None or value == "":
            continue
        text = str(value).lower() if isinstance(value, bool) else str(value)
        plain = all(c.isalnum() or c in "-._:/+@~,{}" for c in text)
        words.append(f"{key}={text if plain else msgspec.json.encode(text).decode()}")
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
