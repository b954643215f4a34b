"""One worker as its supervisor sees it: its reports, its log lines, its starts."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Iterator

import pytest
from twisted.logger import capturedLogs

from gatewayd.daemon import worker_process
from gatewayd.daemon.worker_process import IDLE_CHECKS, SILENT_CHECKS
from tests.supervised import World


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        yield world


def test_a_silent_worker_is_killed_and_another_is_started(world: World) -> None:
    world.both_serve()
    world.reactor.pass_seconds(IDLE_CHECKS - 1, 1)
    assert [process.signals for process in world.processes] == [[], []]
    with capturedLogs() as events:
        world.reactor.pass_seconds(1, 1)
    assert [process.signals for process in world.processes] == [[signal.SIGKILL], []]
    assert [(event["number"], event["seconds"]) for event in events] == [(0, IDLE_CHECKS)]
    world.processes[0].end(9)
    world.reactor.pass_seconds(1, 1)
    assert len(world.processes) == 3


def test_a_busy_worker_may_be_silent_for_longer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client can keep a worker busy for seconds, and must not get it killed that way."""
    used = itertools.count()
    monkeypatch.setattr(worker_process, "processor_time", lambda pid: next(used))
    world.both_serve()
    world.reactor.pass_seconds(SILENT_CHECKS - 1, 1)
    assert [process.signals for process in world.processes] == [[], []]
    world.reactor.pass_seconds(1, 1)
    assert [process.signals for process in world.processes] == [[signal.SIGKILL], []]


def test_the_processor_time_of_a_process_is_read(world: World) -> None:
    before = worker_process.processor_time(os.getpid())
    assert before is not None
    began = time.process_time()
    while time.process_time() < began + 0.05:
        pass
    after = worker_process.processor_time(os.getpid())
    assert after is not None and after > before
    assert worker_process.processor_time(-1) is None


def test_a_worker_that_starts_may_be_silent_for_longer(world: World) -> None:
    world.reactor.pass_seconds(SILENT_CHECKS - 1)
    assert world.processes[0].signals == []
    world.reactor.pass_seconds(1)
    assert world.processes[0].signals == [signal.SIGKILL]


def test_a_pause_of_the_supervisor_counts_as_one_check(world: World) -> None:
    world.both_serve()
    world.reactor.advance(3600)
    assert [process.signals for process in world.processes] == [[], []]


def test_a_worker_that_hangs_during_a_stop_is_killed(world: World) -> None:
    world.both_serve()
    stopped = world.supervisor.stopService()
    world.reactor.pass_seconds(IDLE_CHECKS + 5, 1)
    assert world.processes[0].signals[:2] == [signal.SIGTERM, signal.SIGKILL]
    assert world.processes[1].signals == [signal.SIGTERM]
    for process in world.processes:
        process.end()
    assert stopped.called


def test_lines_of_workers_are_logged_whole(world: World) -> None:
    with capturedLogs() as events:
        protocol = world.processes[0].protocol
        protocol.childDataReceived(1, b"first\nsec")
        protocol.childDataReceived(2, b"other\n")
        protocol.childDataReceived(1, b"ond\nlast")
        world.processes[0].end(1)
    assert [event["line"] for event in events if "line" in event] == [
        "first", "other", "second", "last",
    ]  # fmt: skip


def test_a_worker_that_keeps_ending_early_is_restarted_later_and_later(world: World) -> None:
    starts = [world.reactor.seconds()]
    for _ in range(8):
        world.processes[-1].end(1)
        before = len(world.processes)
        while len(world.processes) == before:
            world.reactor.advance(0.25)
        starts.append(world.reactor.seconds())
    waits = [after - before for before, after in itertools.pairwise(starts)]
    assert waits[:4] == [0.5, 1.5, 3.5, 7.5] and max(waits) == 30
