"""The command that has a daemon reload and waits for its answer."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator

import pytest

from gatewayd.__main__ import main
from gatewayd.daemon.reload_command import ReloadError, answer, reload

StartDaemon = Callable[[str], int]


@pytest.fixture
def start() -> Iterator[StartDaemon]:
    """Start a process that runs this code for each SIGHUP; return its process ID."""
    started: list[subprocess.Popen[str]] = []

    def begin(on_signal: str) -> int:
        program = textwrap.dedent(
            f"""
            import signal
            from gatewayd.daemon.reload_command import answer
            signal.signal(signal.SIGHUP, lambda *_: {on_signal})
            print("runs", flush=True)
            while True:
                signal.pause()
            """
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "runs\n"
        return process.pid

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def test_a_reload_ends_when_the_daemon_has_reloaded(
    start: StartDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reload", str(start("answer(failed=False)"))]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_reload_that_failed_is_status_1_and_names_the_log(
    start: StartDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reload", str(start("answer(failed=True)"))]) == 1
    assert "the daemon's log says why" in capsys.readouterr().err


def test_no_other_process_can_answer(start: StartDaemon) -> None:
    other = (
        "__import__('subprocess').run([__import__('sys').executable, '-c', "
        "'import socket, os; socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)"
        '.sendto(b"reloaded", "\\0gatewayd-reload-%d" % os.getppid())\'])'
    )
    with pytest.raises(ReloadError, match="has not answered"):
        reload(start(other), timeout=1)


def test_a_process_that_does_not_exist_is_an_error() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with pytest.raises(ReloadError, match=f"process {gone.pid} cannot be told: No such process"):
        reload(gone.pid)


def test_a_daemon_sends_no_answer_if_no_command_waits() -> None:
    answer(failed=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as waits:
        waits.bind(f"\0gatewayd-reload-{os.getpid()}")
        waits.setblocking(False)
        with pytest.raises(BlockingIOError):
            waits.recv(16)


def test_a_daemon_without_a_free_descriptor_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socket, "socket", fails)
    answer(failed=False)
