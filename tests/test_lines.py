"""A line is written at once or dropped: the writer waits for no destination."""

from __future__ import annotations

import os
import pty
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from twisted.logger import capturedLogs

from gatewayd.telemetry import lines
from gatewayd.telemetry.lines import LineWriter
from tests.observing import messages

LINE = b"x" * 999 + b"\n"

#: Writes 5,000 lines of 1,000 bytes to standard output and says on standard error how many it lost.
PROGRAM = """
import sys
import time
from gatewayd.telemetry.lines import LineWriter
lost = []
out = LineWriter("-", "standard output", lambda: lost.append(1))
for n in range(5000):
    out.write(b"%999d\\n" % n)
out.close()
print(len(lost), file=sys.stderr)
"""


class Counter:
    """Counts the lines that were lost."""

    def __init__(self) -> None:
        self.lost = 0

    def __call__(self) -> None:
        self.lost += 1


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


@pytest.fixture
def lost() -> Counter:
    return Counter()


def test_a_fifo_without_a_reader_delays_nothing_and_is_used_once_it_has_one(
    fifo: Path, lost: Counter
) -> None:
    with capturedLogs() as events:
        out = LineWriter(str(fifo), "access log", lost)
        out.write(b"lost\n")
        out.write(b"lost\n")
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        out.write(b"kept\n")
        assert os.read(reader, 100) == b"kept\n"
        os.close(reader)
        out.close()
    assert lost.lost == 2
    failure, recovery = messages(events)
    assert failure.startswith("access log: no program reads it; lines are dropped")
    assert recovery == "access log: can be written again; 2 lines were lost"


def test_a_full_pipe_loses_lines_and_the_loss_is_reported_once(fifo: Path, lost: Counter) -> None:
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with capturedLogs() as events:
        out = LineWriter(str(fifo), "access log", lost)
        for _ in range(5000):
            out.write(LINE)
        (failed,) = messages(events)
        assert "it is full, because its reader does not read" in failed
        assert 0 < lost.lost < 5000
        read = b""
        while len(read) < (5000 - lost.lost) * len(LINE):
            read += os.read(reader, 1 << 20)
        out.write(b"kept\n")
        out.close()
    assert read + os.read(reader, 1 << 20) == LINE * (5000 - lost.lost) + b"kept\n"
    os.close(reader)
    recovery = f"access log: can be written again; {lost.lost} lines were lost"
    assert messages(events)[1:] == [recovery]


def test_a_pipe_that_is_read_too_slowly_is_not_reported_again_and_again(
    fifo: Path, lost: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    out = LineWriter(str(fifo), "access log", lost)

    def fill_and_empty() -> None:
        for _ in range(2000):
            out.write(LINE)
        while os.read(reader, 1 << 20)[-len(LINE) :] == LINE and _waits(reader):
            pass
        out.write(b"kept\n")

    with capturedLogs() as events:
        for _ in range(5):
            fill_and_empty()
        assert len(events) == 2
        now += lines.QUIET_SECONDS
        fill_and_empty()
        assert len(events) == 4
    _, first, _, second = messages(events)
    assert f"{lost.lost - _first_number(first)} lines were lost" in second
    out.close()
    os.close(reader)


def _waits(reader: int) -> bool:
    return bool(select.select([reader], [], [], 0)[0])


def _first_number(text: str) -> int:
    return next(int(word) for word in text.split() if word.isdigit())


def run(stdout: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=stdout, stderr=subprocess.PIPE, cwd=os.getcwd()
    )


def told_to_be_lost(program: subprocess.Popen[bytes]) -> int:
    """How many lines it lost; it must have ended although nobody read its standard output."""
    _, errors = program.communicate(timeout=60)
    assert program.returncode == 0, errors
    return int(errors)


def test_a_full_pipe_as_standard_output_delays_nothing() -> None:
    reader, writer = os.pipe()
    program = run(writer)
    assert 0 < told_to_be_lost(program) < 5000
    assert os.get_blocking(writer)  # the programs that share it would not expect that
    os.close(reader)
    os.close(writer)


def test_a_full_socket_as_standard_output_delays_nothing() -> None:
    ours, its = socket.socketpair()
    program = run(its)
    assert 0 < told_to_be_lost(program) < 5000
    assert os.get_blocking(its.fileno())
    ours.close()
    its.close()


def test_a_full_terminal_as_standard_output_delays_nothing() -> None:
    ours, its = pty.openpty()
    program = run(its)
    assert 0 < told_to_be_lost(program) <= 5000
    assert os.get_blocking(its)
    os.close(ours)
    os.close(its)


def test_a_file_as_standard_output_gets_every_line_after_its_old_content(
    tmp_path: Path,
) -> None:
    with (tmp_path / "out").open("wb") as file:
        file.write(b"before\n")
        file.flush()
        assert told_to_be_lost(run(file)) == 0
    first, *rest = (tmp_path / "out").read_bytes().splitlines()
    assert first == b"before" and [int(line) for line in rest] == list(range(5000))


def test_a_pipe_of_another_user_is_written_only_while_it_takes_lines(
    monkeypatch: pytest.MonkeyPatch, lost: Counter
) -> None:
    """Without the right to open it anew, the shared description has to stay blocking."""
    reader, writer = os.pipe()
    really_open = os.open

    def refuse(path: Any, *more: Any) -> int:
        if str(path).startswith("/proc/self/fd/"):
            raise PermissionError(13, "Permission denied")
        return really_open(path, *more)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(sys, "__stdout__", os.fdopen(os.dup(writer), "w"))
    out = LineWriter("-", "standard output", lost)
    for _ in range(5000):
        out.write(LINE)
    out.write(b"y" * 10_000 + b"\n")
    out.close()
    assert 0 < lost.lost <= 5001
    sys.__stdout__.close()  # type: ignore[union-attr]
    os.close(reader)
    os.close(writer)
