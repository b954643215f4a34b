"""The access log: the fields of a line, and lines that cannot be written."""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.logger import capturedLogs

from gatewayd.exchange import End, Exchange
from gatewayd.telemetry.access import AccessLog, as_json, as_text
from tests.observing import messages


def ended(id: str = "req-1", **more: Any) -> Exchange:
    exchange = Exchange(id=id, started=10.0, client="192.0.2.7", on_end=lambda _: None)
    for name, value in more.items():
        setattr(exchange, name, value)
    exchange.finish(more.get("end_as", End.COMPLETE), 12.5, code=more.get("code", ""))
    return exchange


FULL: dict[str, Any] = {
    "caller": "alice",
    "method": "POST",
    "route": "/v1/chat/completions",
    "model": "m",
    "stream": True,
    "backends": ["a", "b"],
    "status": 200,
    "connected": 0.001,
    "first_byte": 10.25,
    "first_event": 10.5,
    "longest_gap": 0.125,
    "events": 7,
    "usage": SimpleNamespace(prompt_tokens=3, completion_tokens=5),
    "bytes_out": 1234,
}


def test_a_line_is_one_json_object_with_the_stages_in_milliseconds() -> None:
    line = as_json(ended(**FULL))
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    entry = json.loads(line)
    assert entry.pop("time").endswith("+00:00")
    assert entry == {
        "id": "req-1",
        "client": "192.0.2.7",
        "caller": "alice",
        "traceparent": None,
        "method": "POST",
        "route": "/v1/chat/completions",
        "model": "m",
        "stream": True,
        "backend": ["a", "b"],
        "status": 200,
        "end": "complete",
        "code": None,
        "detail": None,
        "total_ms": 2500.0,
        "connect_ms": 1.0,
        "first_byte_ms": 250.0,
        "first_event_ms": 500.0,
        "longest_gap_ms": 125.0,
        "events": 7,
        "prompt_tokens": 3,
        "completion_tokens": 5,
        "bytes": 1234,
    }


def test_a_stage_that_was_not_reached_is_null_in_json_and_absent_in_text() -> None:
    entry = json.loads(as_json(ended()))
    assert entry["first_byte_ms"] is entry["prompt_tokens"] is entry["caller"] is None
    text = as_text(ended()).decode()
    assert "first_byte_ms" not in text and "caller" not in text and text.endswith(" bytes=0\n")


def test_text_lines_are_pairs_and_unusual_values_are_quoted() -> None:
    line = as_text(ended(**{**FULL, "model": 'a "b"=c\nd'})).decode()
    assert line.count("\n") == 1
    for pair in ("id=req-1", "backend=a,b", "stream=true", "end=complete", "total_ms=2500.0"):
        assert f" {pair} " in line
    assert r' model="a \"b\"=c\nd" ' in line


def opened(path: str) -> AccessLog:
    return AccessLog(path, "json", lambda: None)


def lines(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


def test_lines_are_appended_and_after_a_rename_reopening_makes_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_bytes(as_json(ended("before")))
    log = opened(str(path))
    log(ended("1"))
    path.rename(tmp_path / "old")
    log(ended("2"))
    log.reopen()
    log(ended("3"))
    log.close()
    assert lines(tmp_path / "old") == ["before", "1", "2"]
    assert lines(path) == ["3"]
    assert path.stat().st_mode & 0o007 == 0


def test_without_a_path_nothing_is_written(capfd: pytest.CaptureFixture[str]) -> None:
    log = opened("")
    log(ended())
    log.close()
    assert capfd.readouterr() == ("", "")


def test_a_missing_folder_is_reported_once_and_used_when_it_exists(tmp_path: Path) -> None:
    path = tmp_path / "later" / "access.log"
    with capturedLogs() as events:
        log = opened(str(path))
        for _ in range(3):
            log(ended("lost"))
        assert len(events) == 1
        path.parent.mkdir()
        log(ended("kept"))
        log(ended("kept too"))
        log.close()
    assert lines(path) == ["kept", "kept too"]
    failure, recovery = messages(events)
    assert "No such file or directory" in failure and str(path) in failure
    assert "3 lines were lost" in recovery


def test_a_full_disk_is_reported_once(tmp_path: Path) -> None:
    with capturedLogs() as events:
        log = opened("/dev/full")
        for _ in range(3):
            log(ended("lost"))
        log.close()
    (failed,) = messages(events)
    assert "No space left on device" in failed


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writing past it is cut short, and then fails, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_a_line_that_was_written_in_part_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log = opened(str(path))
    log(ended("whole"))
    with capturedLogs() as events:
        with files_of_at_most(path.stat().st_size + 30):
            log(ended("torn"))
            log(ended("lost"))
        log(ended("again"))
        log(ended("and again"))
        log.close()
    whole, torn, again, and_again = path.read_text().splitlines()
    assert [json.loads(line)["id"] for line in (whole, again, and_again)] == [
        "whole",
        "again",
        "and again",
    ]
    assert len(torn) == 30
    assert "2 lines were lost" in messages(events)[-1]
