"""The access log: the fields of a line, and lines that cannot be written."""

from __future__ import annotations

import json
import re
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.logger import capturedLogs

from gatewayd.exchange import End, Exchange, Tried
from gatewayd.telemetry.access import AccessLog, as_json, as_text
from tests.observing import messages


def ended(
    id: str = "req-1",
    end: End = End.COMPLETE,
    code: str = "",
    detail: str = "",
    **more: Any,
) -> Exchange:
    exchange = Exchange(id=id, started=10.0, client="192.0.2.7", on_end=lambda _: None)
    for name, value in more.items():
        setattr(exchange, name, value)
    exchange.finish(end, 12.5, code=code, detail=detail)
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


#: Values that JSON escapes, numbers that are rounded, and each field that may be null.
ODD: dict[str, Any] = {
    "end": End.BACKEND_TRUNCATED,
    "code": "upstream_truncated",
    "detail": 'it said "no"\n',
    "traceparent": f"00-{'a' * 32}-{'b' * 16}-01",
    "model": "ü/\u2028\U0001f600\x7f\x01",
    "backends": ["gpu 1"],
    "status": 502,
    "connected": 0,
    "first_byte": 10.00012345,
    "longest_gap": 1e9,
    "bytes_out": 2**53,
}


#: What is known of an exchange, and both lines, recorded with the date replaced.
RECORDED = [
    (
        FULL,
        b'{"time":"NOW","id":"req-1","client":"192.0.2.7","caller":"alice",'
        b'"traceparent":null,"method":"POST","route":"/v1/chat/completions","model":"m",'
        b'"stream":true,"backend":["a","b"],"status":200,"end":"complete","code":null,'
        b'"detail":null,"total_ms":2500.0,"connect_ms":1.0,"first_byte_ms":250.0,'
        b'"first_event_ms":500.0,"longest_gap_ms":125.0,"events":7,"prompt_tokens":3,'
        b'"completion_tokens":5,"bytes":1234}\n',
        b"time=NOW id=req-1 client=192.0.2.7 caller=alice method=POST "
        b"route=/v1/chat/completions model=m stream=true backend=a,b status=200 "
        b"end=complete total_ms=2500.0 connect_ms=1.0 first_byte_ms=250.0 "
        b"first_event_ms=500.0 longest_gap_ms=125.0 events=7 prompt_tokens=3 "
        b"completion_tokens=5 bytes=1234\n",
    ),
    (
        {},
        b'{"time":"NOW","id":"req-1","client":"192.0.2.7","caller":null,"traceparent":null,'
        b'"method":"","route":"","model":null,"stream":false,"backend":[],"status":0,'
        b'"end":"complete","code":null,"detail":null,"total_ms":2500.0,"connect_ms":null,'
        b'"first_byte_ms":null,"first_event_ms":null,"longest_gap_ms":0.0,"events":0,'
        b'"prompt_tokens":null,"completion_tokens":null,"bytes":0}\n',
        b"time=NOW id=req-1 client=192.0.2.7 stream=false status=0 end=complete "
        b"total_ms=2500.0 longest_gap_ms=0.0 events=0 bytes=0\n",
    ),
    (
        ODD,
        b'{"time":"NOW","id":"req-1","client":"192.0.2.7","caller":null,'
        b'"traceparent":"00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-bbbbbbbbbbbbbbbb-01",'
        b'"method":"","route":"",'
        b'"model":"\xc3\xbc/\xe2\x80\xa8\xf0\x9f\x98\x80\x7f\\u0001","stream":false,'
        b'"backend":["gpu 1"],"status":502,"end":"backend_truncated",'
        b'"code":"upstream_truncated","detail":"it said \\"no\\"\\n","total_ms":2500.0,'
        b'"connect_ms":0,"first_byte_ms":0.123,"first_event_ms":null,'
        b'"longest_gap_ms":1000000000000.0,"events":0,"prompt_tokens":null,'
        b'"completion_tokens":null,"bytes":9007199254740992}\n',
        b"time=NOW id=req-1 client=192.0.2.7 "
        b"traceparent=00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-bbbbbbbbbbbbbbbb-01 "
        b'model="\xc3\xbc/\xe2\x80\xa8\xf0\x9f\x98\x80\x7f\\u0001" stream=false '
        b'backend="gpu 1" status=502 end=backend_truncated code=upstream_truncated '
        b'detail="it said \\"no\\"\\n" total_ms=2500.0 connect_ms=0 first_byte_ms=0.123 '
        b"longest_gap_ms=1000000000000.0 events=0 bytes=9007199254740992\n",
    ),
]


@pytest.mark.parametrize(
    ("known", "json_line", "text_line"), RECORDED, ids=["full", "least", "odd"]
)
def test_a_line_is_byte_for_byte_as_recorded(
    known: dict[str, Any], json_line: bytes, text_line: bytes
) -> None:
    exchange = ended(**known)
    for line, recorded in ((as_json(exchange), json_line), (as_text(exchange), text_line)):
        assert re.sub(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", b"NOW", line) == recorded


def test_the_time_of_a_line_is_that_of_its_writing() -> None:
    for _ in range(3):
        before = datetime.now(UTC) - timedelta(milliseconds=1)
        written = datetime.fromisoformat(json.loads(as_json(ended()))["time"])
        assert before <= written <= datetime.now(UTC)


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


SEVERAL: dict[str, Any] = {
    "backends": ["a", "b"],
    "tried": [Tried("a", "backend_timeout", "patience", 10.0, 11.5)],
}


def test_a_request_that_was_sent_to_several_backends_has_each_attempt_in_its_line() -> None:
    exchange = ended(**SEVERAL)
    assert json.loads(as_json(exchange))["attempts"] == [
        {"backend": "a", "end": "backend_timeout", "code": "patience", "ms": 1500.0},
        {"backend": "b", "end": "complete", "code": None, "ms": 1000.0},
    ]
    assert as_text(exchange).endswith(
        b" attempts=a:backend_timeout:patience:1500.0,b:complete::1000.0\n"
    )


def test_the_last_attempt_may_have_ended_in_another_way_than_the_request() -> None:
    tried = [*SEVERAL["tried"], Tried("b", "backend_unreachable", "upstream_dns", 11.5, 12.0)]
    exchange = ended(**{**SEVERAL, "tried": tried}, end=End.BACKEND_ERROR)
    ends = [attempt["end"] for attempt in json.loads(as_json(exchange))["attempts"]]
    assert ends == ["backend_timeout", "backend_unreachable"]


@pytest.mark.parametrize("tried", [None, SEVERAL["tried"]])
def test_a_request_that_was_sent_to_one_backend_has_no_list_of_attempts(tried: Any) -> None:
    assert b"attempts" not in as_json(ended(backends=["a"], tried=tried))


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


def test_the_priority_of_the_backend_is_in_the_line_unless_it_is_zero() -> None:
    assert b"priority" not in as_json(ended(backends=["a"]))
    assert json.loads(as_json(ended(backends=["a", "b"], priority=2)))["priority"] == 2
    assert b" priority=2" in as_text(ended(backends=["a", "b"], priority=2))
