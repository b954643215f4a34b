"""Notifications to systemd, and the sockets that it hands over."""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Iterator

import pytest
from twisted.logger import LogLevel, capturedLogs

from gatewayd.daemon.notify import Systemd, inherited_sockets


@pytest.fixture(params=["a path", "an abstract name"])
def listener(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, str]]:
    """systemd's end, and the address of it that a service is given."""
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard,
    ):
        name = f"{folder}/n" if request.param == "a path" else f"@gatewayd-{secrets.token_hex(8)}"
        heard.bind(name.replace("@", "\0", 1))
        heard.settimeout(2)
        yield heard, name


def test_each_message_is_one_datagram_of_lines(listener: tuple[socket.socket, str]) -> None:
    heard, name = listener
    systemd = Systemd({"NOTIFY_SOCKET": name})
    systemd.ready("serves")
    assert heard.recv(4096) == b"READY=1\nSTATUS=serves"
    before = time.monotonic_ns() // 1000
    systemd.reloading()
    first, second = heard.recv(4096).split(b"\n")
    assert first == b"RELOADING=1"
    assert before <= int(second.removeprefix(b"MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
    systemd.reloaded("serves", failed=True)
    kept = b"STATUS=the last reload failed, the settings stay as they were; serves"
    assert heard.recv(4096).endswith(kept)
    systemd.reloaded("serves", failed=False)
    assert heard.recv(4096) == b"READY=1\nSTATUS=serves"
    systemd.stopping("waits")
    assert heard.recv(4096) == b"STOPPING=1\nSTATUS=waits"
    systemd.alive()
    assert heard.recv(4096) == b"WATCHDOG=1"


def test_a_busy_systemd_misses_only_watchdog_messages(
    listener: tuple[socket.socket, str],
) -> None:
    heard, name = listener
    systemd = Systemd({"NOTIFY_SOCKET": name})
    with capturedLogs() as events:
        while not events:  # until its queue is full
            systemd.alive()
    reader = threading.Timer(0.1, heard.recv, (4096,))
    reader.start()
    with capturedLogs() as events:
        systemd.ready("serves")
    reader.join()
    assert events == []
    heard.setblocking(False)
    while not (message := heard.recv(4096)).startswith(b"READY=1"):
        assert message == b"WATCHDOG=1"


def test_without_systemd_nothing_is_sent() -> None:
    with capturedLogs() as events:
        Systemd({}).ready("serves")
    assert events == []


def test_a_systemd_that_does_not_listen_is_a_warning() -> None:
    with capturedLogs() as events:
        Systemd({"NOTIFY_SOCKET": "/nonexistent/notify"}).ready("serves")
    assert [event["log_level"] for event in events] == [LogLevel.warn]


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, 0.0),
        ({"WATCHDOG_USEC": "3000000"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, 0.0),
    ],
)
def test_the_watchdog_is_notified_twice_in_its_time(
    environ: dict[str, str], seconds: float
) -> None:
    assert Systemd(environ).watchdog_seconds == seconds


@pytest.mark.parametrize(
    ("pid", "count", "descriptors"),
    [
        (str(os.getpid()), "1", [3]),
        (str(os.getpid()), "2", [3, 4]),
        (str(os.getpid()), "0", []),
        (str(os.getpid()), "many", []),
        ("1", "1", []),
    ],
)
def test_sockets_are_taken_if_they_are_meant_for_this_process(
    pid: str, count: str, descriptors: list[int]
) -> None:
    assert inherited_sockets({"LISTEN_PID": pid, "LISTEN_FDS": count}) == descriptors


def test_without_systemd_there_is_no_socket() -> None:
    assert inherited_sockets({}) == inherited_sockets() == []
