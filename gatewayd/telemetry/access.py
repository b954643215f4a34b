"""One line for each exchange that has ended."""

from __future__ import annotations

import errno
import os
import sys
from datetime import UTC, datetime
from typing import Any

import msgspec
from twisted.logger import Logger

from gatewayd.exchange import Exchange

_log = Logger()


def fields(exchange: Exchange) -> dict[str, Any]:
    """What a line says, in order. Times are milliseconds, sizes bytes."""

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
    """``key=value`` pairs; strings that hold anything odd are quoted as JSON."""
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
    """Writes lines to a file, or to standard output for ``-``.

    A line that cannot be written is dropped, and that is said once; when lines can be written
    again, that is said too, with how many are missing. A full disk must not disturb a request.
    """

    def __init__(self, path: str, format: str) -> None:
        self._path = path
        self._encode = as_json if format == "json" else as_text
        self._lost = 0
        self._failing = False
        self._torn = False  # the last line was written in part
        self._fd: int | None = None
        self.reopen()

    def reopen(self) -> None:
        """Open the file anew, after it was renamed."""
        self.close()
        self._torn = False
        try:
            if self._path == "-":
                # twistd puts a logger in sys.stdout's place; the lines go to the descriptor itself.
                self._fd = os.dup(sys.__stdout__.fileno()) if sys.__stdout__ else None
            elif self._path:
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
                self._fd = os.open(self._path, flags, 0o640)
        except OSError as e:
            self._failed(e)

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __call__(self, exchange: Exchange) -> None:
        if not self._path:
            return
        if self._fd is None:
            self.reopen()
        line = self._encode(exchange)
        try:
            if self._fd is not None:
                self._write(self._fd, line)
            else:
                self._lost += 1
        except OSError as e:
            self._lost += 1
            self._failed(e)

    def _write(self, fd: int, line: bytes) -> None:
        if self._torn:
            line = b"\n" + line
        written = os.write(fd, line)
        if written != len(line):
            self._torn = written > 0 or self._torn
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._torn = False
        if self._failing:
            _log.info(
                "access log {path}: can be written again; {lost} lines were lost",
                path=self._path,
                lost=self._lost,
            )
            self._failing, self._lost = False, 0

    def _failed(self, e: OSError) -> None:
        if not self._failing:
            self._failing = True
            _log.error(
                "access log {path}: {why}; lines are lost until it can be written again",
                path=self._path,
                why=e.strerror,
            )
