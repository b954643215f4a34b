"""The supervisor and its workers' processes, on a clock and without processes."""

from __future__ import annotations

import errno
import itertools
import os
import pickle
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.python.failure import Failure

from gatewayd.daemon import worker_process
from gatewayd.daemon.supervisor import LAST_SECONDS, Supervisor
from gatewayd.daemon.worker import FIRST_SOCKET, WORKER_NUMBER, Handover
from gatewayd.daemon.worker_process import (
    CHECK_SECONDS,
    IDLE_CHECKS,
    SILENT_CHECKS,
    NotifySocket,
    WorkerProcess,
)
from gatewayd.settings.load import SettingsError
from gatewayd.settings.model import Settings
from tests.memory import settings


class Process:
    """A worker's process as Twisted shows it, and what the supervisor does with it."""

    def __init__(
        self, protocol: WorkerProcess, command: list[str], environment: dict[str, str], fds: Any
    ) -> None:
        self.protocol = protocol
        self.pid = -1
        self.command = command
        self.environment = environment
        self.descriptors = fds
        self.written = b""
        self.signals: list[int] = []
        self.ended = False
        protocol.makeConnection(self)

    def writeToChild(self, descriptor: int, data: bytes) -> None:
        assert descriptor == 0
        self.written += data

    def signalProcess(self, number: int) -> None:
        if self.ended:
            raise ProcessExitedAlready
        self.signals.append(number)

    def end(self, status: int = 0) -> None:
        self.ended = True
        reason = ProcessTerminated(exitCode=status) if status else ProcessDone(0)
        self.protocol.processEnded(Failure(reason))

    @property
    def told(self) -> list[Handover | Settings | None]:
        """All messages until now."""
        rest, messages = self.written, []
        while rest:
            end = 4 + int.from_bytes(rest[:4], "big")
            messages.append(pickle.loads(rest[4:end]))
            rest = rest[end:]
        return messages


class Reactor(Clock):
    """Starts processes that do nothing; ``failing`` has the errors of the next starts."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[Process] = []
        self.failing: list[OSError] = []
        self.notices: list[NotifySocket] = []

    def spawnProcess(
        self, protocol: Any, executable: str, args: Any, env: Any, childFDs: Any
    ) -> None:
        if self.failing:
            raise self.failing.pop(0)
        self.processes.append(Process(protocol, args, env, childFDs))

    def listenUNIXDatagram(self, address: str, protocol: NotifySocket) -> None:
        self.notices.append(protocol)

    def callWhenRunning(self, call: Any) -> None:
        """No signals here."""

    def addSystemEventTrigger(self, *arguments: Any) -> None:
        """No signals here."""

    def say(self, worker: int, what: bytes = b"WATCHDOG=1") -> None:
        self.notices[worker].datagramReceived(what, None)

    def pass_seconds(self, seconds: float, *alive: int) -> None:
        """Check by check, while these workers say that they live."""
        for _ in range(round(seconds / CHECK_SECONDS)):
            for worker in alive:
                self.say(worker)
            self.advance(CHECK_SECONDS)


class World:
    def __init__(self) -> None:
        self.reactor = Reactor()
        self.loaded: Settings | SettingsError = settings(gateway_workers="2", gateway_port="0")
        assert isinstance(self.loaded, Settings)
        self.supervisor = Supervisor(self.loaded, self.load, self.reactor, ["--option"], False)
        self.supervisor.startService()

    def load(self) -> Settings:
        if isinstance(self.loaded, SettingsError):
            raise self.loaded
        return self.loaded

    @property
    def processes(self) -> list[Process]:
        return self.reactor.processes

    def both_serve(self) -> None:
        for number in (0, 1):
            self.reactor.say(number, b"READY=1\nSTATUS=serves")


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    if world.supervisor._stopped is None:
        world.supervisor.stopService()
    for process in world.processes:
        if not process.ended:
            process.end()


def test_a_worker_is_handed_settings_sockets_and_no_key_in_sight(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAYD_BACKEND_A_API_KEY", "secret")
    monkeypatch.setenv("BACKEND_URL", "http://a")
    monkeypatch.setenv("LISTEN_FDS", "1")
    world.loaded = settings(
        gateway_workers="2", backend_a_url="http://a", backend_a_api_key="secret"
    )
    world.supervisor.reload()
    world.processes[0].end(1)
    world.reactor.advance(1)
    process = world.processes[2]
    (handover,) = process.told
    assert isinstance(handover, Handover)
    assert handover.settings.backends == world.loaded.backends
    key = handover.settings.backends[0].api_key
    assert key is not None and key.reveal() == "secret"
    assert (handover.sockets, handover.kept) == (1, False)
    (given,) = world.supervisor._sockets
    assert process.descriptors[FIRST_SOCKET] == given.fileno()
    shown = [*process.command, *process.environment, *process.environment.values()]
    assert "secret" not in shown
    assert not {"BACKEND_URL", "LISTEN_FDS"} & process.environment.keys()
    assert process.environment[WORKER_NUMBER] == "0"
    assert process.command[-4:] == ["--nodaemon", "--pidfile=", "--option", "gatewayd"]


def test_a_start_that_fails_is_tried_again(world: World) -> None:
    """As with a lack of descriptors that lasts a moment."""
    world.reactor.failing = [OSError(errno.EMFILE, "Too many open files")] * 3
    with capturedLogs() as events:
        world.processes[0].end(1)
        world.reactor.pass_seconds(60, 1)
    assert len(world.processes) == 2 + 1
    said = [event for event in events if "could not be started" in str(event.get("why"))]
    assert len(said) == 3


def test_one_that_ends_young_again_and_again_is_started_later_and_later(world: World) -> None:
    starts = [world.reactor.seconds()]
    for _ in range(8):
        world.processes[-1].end(1)
        before = len(world.processes)
        while len(world.processes) == before:
            world.reactor.advance(0.25)
        starts.append(world.reactor.seconds())
    waits = [after - before for before, after in itertools.pairwise(starts)]
    assert waits[:4] == [0.5, 1.5, 3.5, 7.5] and max(waits) == 30


def test_a_worker_that_says_nothing_is_killed_and_another_starts(world: World) -> None:
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


def test_a_worker_that_is_busy_has_more_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client may keep it busy for seconds, and may not have it killed by that."""
    used = itertools.count()
    monkeypatch.setattr(worker_process, "processor_time", lambda pid: next(used))
    world.both_serve()
    world.reactor.pass_seconds(SILENT_CHECKS - 1, 1)
    assert [process.signals for process in world.processes] == [[], []]
    world.reactor.pass_seconds(1, 1)
    assert [process.signals for process in world.processes] == [[signal.SIGKILL], []]


def test_the_processor_time_of_a_process_is_known(world: World) -> None:
    before = worker_process.processor_time(os.getpid())
    assert before is not None
    began = time.process_time()
    while time.process_time() < began + 0.05:
        pass
    after = worker_process.processor_time(os.getpid())
    assert after is not None and after > before
    assert worker_process.processor_time(-1) is None


def test_one_that_starts_has_more_time_to_be_heard(world: World) -> None:
    world.reactor.pass_seconds(SILENT_CHECKS - 1)
    assert world.processes[0].signals == []
    world.reactor.pass_seconds(1)
    assert world.processes[0].signals == [signal.SIGKILL]


def test_a_pause_of_the_supervisor_itself_is_not_blamed_on_the_workers(world: World) -> None:
    world.both_serve()
    world.reactor.advance(3600)
    assert [process.signals for process in world.processes] == [[], []]


def test_accepted_settings_go_to_those_that_run_and_to_those_that_start_later(
    world: World,
) -> None:
    world.both_serve()
    world.loaded = settings(
        gateway_workers="3", gateway_port="1", gateway_api_title="new", log_level="warn"
    )
    with capturedLogs() as events:
        world.supervisor.reload()
    differences = [str(event["difference"]) for event in events if "difference" in event]
    assert len(differences) == 2 and "workers stays 2" in differences[1]
    for process in world.processes:
        _, told = process.told
        assert isinstance(told, Settings)
        assert (told.gateway.api_title, told.gateway.port) == ("new", 0)
    world.processes[0].end(1)
    world.reactor.advance(1)
    (handover,) = world.processes[2].told
    assert isinstance(handover, Handover)
    assert handover.settings == world.processes[1].told[1]


def test_a_mistake_is_said_once_and_reaches_no_worker(world: World) -> None:
    world.both_serve()
    accepted = world.supervisor.settings
    world.loaded = SettingsError(("gatewayd.ini:1: a mistake",))
    with capturedLogs() as events:
        world.supervisor.reload()
    assert [event["problem"] for event in events if "problem" in event] == [
        "gatewayd.ini:1: a mistake"
    ]
    assert [process.told[1:] for process in world.processes] == [[None], [None]]
    world.processes[0].end(1)
    world.reactor.advance(1)
    (handover,) = world.processes[2].told
    assert isinstance(handover, Handover) and handover.settings == accepted


def test_settings_that_workers_could_not_use_are_not_accepted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise SettingsError(("[backend a]: cannot be used",))

    world.both_serve()
    accepted = world.supervisor.settings
    world.loaded = settings(gateway_workers="2", gateway_port="0", gateway_api_title="other")
    monkeypatch.setattr("gatewayd.daemon.supervisor.build", fails)
    world.supervisor.reload()
    assert [process.told[1:] for process in world.processes] == [[None], [None]]
    assert world.supervisor.settings is accepted
    assert world.supervisor._failed


def test_a_fault_of_our_own_in_a_reload_keeps_nobody_waiting(
    world: World, told_systemd: list[str]
) -> None:
    def broken() -> Settings:
        raise ZeroDivisionError

    world.both_serve()
    world.supervisor._load = broken
    with capturedLogs() as events:
        world.supervisor.reload()
    assert [event["log_failure"].type for event in events if "log_failure" in event] == [
        ZeroDivisionError
    ]
    assert told_systemd[-2:] == ["RELOADING=1", "READY=1"]


def test_what_is_dangerous_is_said_at_the_start_and_at_a_reload(world: World) -> None:
    open_to_all = "is not a loopback address and there are no tokens"
    world.loaded = settings(
        gateway_workers="2", gateway_port="0", gateway_listen="0.0.0.0", token_a_sha256="ab" * 32
    )
    other = Supervisor(world.loaded, world.load, Reactor(), [], False)
    world.loaded = settings(gateway_workers="2", gateway_port="0", gateway_listen="0.0.0.0")
    with capturedLogs() as events:
        other.startService()
        assert not any(open_to_all in str(event.get("warning")) for event in events)
        other.reload()
    other.stopService()
    warnings = [event for event in events if open_to_all in str(event.get("warning"))]
    assert [event["log_level"].name for event in warnings] == ["warn"]


@pytest.fixture
def told_systemd(world: World, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    systemd: Any = world.supervisor._systemd
    monkeypatch.setattr(systemd, "_send", lambda *lines, **_: said.append(lines[0]))
    return said


def test_systemd_hears_ready_when_all_serve_by_the_accepted_settings(
    world: World, told_systemd: list[str]
) -> None:
    world.reactor.say(0, b"READY=1")
    assert told_systemd == []
    world.reactor.say(1, b"READY=1")
    assert told_systemd == ["READY=1"]
    world.supervisor.reload()
    world.reactor.say(0, b"READY=1")
    assert told_systemd == ["READY=1", "RELOADING=1"]
    world.processes[1].end(1)
    world.reactor.advance(1)
    assert told_systemd == ["READY=1", "RELOADING=1"]
    world.reactor.say(1, b"READY=1")
    assert told_systemd == ["READY=1", "RELOADING=1", "READY=1"]
    world.loaded = SettingsError(("a mistake",))
    world.supervisor.reload()
    assert told_systemd[3:] == ["RELOADING=1", "READY=1"]


def test_a_second_stop_kills_what_does_not_end(world: World) -> None:
    world.both_serve()
    stopped = world.supervisor.stopService()
    world.supervisor._stop_at_once()
    world.processes[0].end()
    world.reactor.advance(LAST_SECONDS)
    assert world.processes[0].signals == [signal.SIGTERM, signal.SIGQUIT]
    assert world.processes[1].signals == [signal.SIGTERM, signal.SIGQUIT, signal.SIGKILL]
    assert not stopped.called
    world.processes[1].end(9)
    assert stopped.called


def test_a_worker_that_hangs_while_it_stops_is_killed(world: World) -> None:
    world.both_serve()
    stopped = world.supervisor.stopService()
    world.reactor.pass_seconds(IDLE_CHECKS + 5, 1)
    assert world.processes[0].signals[:2] == [signal.SIGTERM, signal.SIGKILL]
    assert world.processes[1].signals == [signal.SIGTERM]
    for process in world.processes:
        process.end()
    assert stopped.called


def test_nothing_starts_once_a_stop_has_begun(world: World) -> None:
    world.both_serve()
    world.processes[0].end(1)
    stopped = world.supervisor.stopService()
    world.reactor.advance(60)
    assert len(world.processes) == 2 and not stopped.called
    world.processes[1].end()
    assert stopped.called


def test_lines_of_workers_are_whole_in_the_log(world: World) -> None:
    with capturedLogs() as events:
        protocol = world.processes[0].protocol
        protocol.childDataReceived(1, b"first\nsec")
        protocol.childDataReceived(2, b"other\n")
        protocol.childDataReceived(1, b"ond\nlast")
        world.processes[0].end(1)
    assert [event["line"] for event in events if "line" in event] == [
        "first", "other", "second", "last",
    ]  # fmt: skip


def test_the_sockets_are_closed_at_a_stop_so_that_the_last_worker_decides(world: World) -> None:
    (given,) = world.supervisor._sockets
    assert given.fileno() >= 0
    world.supervisor.stopService()
    assert given.fileno() == -1


def test_the_folder_is_gone_with_the_supervisor(world: World) -> None:
    assert world.supervisor._folder is not None
    folder = Path(world.supervisor._folder.path)
    assert folder.is_dir()
    world.supervisor.stopService()
    for process in world.processes:
        process.end()
    assert not folder.exists()
