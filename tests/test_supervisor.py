"""The supervisor: what it tells its workers, systemd and its log."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.logger import capturedLogs

from gatewayd.daemon import reload_command
from gatewayd.daemon.supervisor import LAST_SECONDS, Supervisor
from gatewayd.daemon.worker import FIRST_SOCKET, WORKER_NUMBER, Handover
from gatewayd.settings.load import SettingsError
from gatewayd.settings.model import Settings
from tests.memory import settings
from tests.supervised import Reactor, World


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        yield world


def test_a_worker_gets_settings_and_sockets_and_no_key_is_visible(
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
    """A lack of descriptors may last only a moment."""
    world.reactor.failing = [OSError(errno.EMFILE, "Too many open files")] * 3
    with capturedLogs() as events:
        world.processes[0].end(1)
        world.reactor.pass_seconds(60, 1)
    assert len(world.processes) == 2 + 1
    failures = [event for event in events if "could not be started" in str(event.get("why"))]
    assert len(failures) == 3


def test_accepted_settings_are_sent_to_running_workers_and_to_later_ones(
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


def test_a_mistake_is_logged_once_and_reaches_no_worker(world: World) -> None:
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


def test_an_unexpected_exception_in_a_reload_still_ends_the_reload(
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


def test_dangerous_settings_are_logged_at_the_start_and_at_a_reload(world: World) -> None:
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
    sent: list[str] = []
    systemd: Any = world.supervisor._systemd
    monkeypatch.setattr(systemd, "_send", lambda *lines, **_: sent.append(lines[0]))
    return sent


def test_systemd_is_told_ready_when_all_workers_use_the_accepted_settings(
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


def test_a_reload_during_a_stop_only_reopens_the_logs_and_counts_as_failed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.both_serve()
    world.supervisor.stopService()
    failed: list[bool] = []
    monkeypatch.setattr(reload_command, "answer", lambda **given: failed.append(given["failed"]))
    world.supervisor.reload()
    assert failed == [True]
    assert [process.told[1:] for process in world.processes] == [[None], [None]]


def test_a_second_stop_kills_workers_that_do_not_end(world: World) -> None:
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


def test_no_worker_starts_after_a_stop_has_begun(world: World) -> None:
    world.both_serve()
    world.processes[0].end(1)
    stopped = world.supervisor.stopService()
    world.reactor.advance(60)
    assert len(world.processes) == 2 and not stopped.called
    world.processes[1].end()
    assert stopped.called


def test_a_stop_closes_the_sockets_so_that_the_last_worker_frees_the_port(world: World) -> None:
    (given,) = world.supervisor._sockets
    assert given.fileno() >= 0
    world.supervisor.stopService()
    assert given.fileno() == -1


def test_the_shared_folder_is_removed_when_the_supervisor_ends(world: World) -> None:
    assert world.supervisor._folder is not None
    folder = Path(world.supervisor._folder.path)
    assert folder.is_dir()
    world.supervisor.stopService()
    for process in world.processes:
        process.end()
    assert not folder.exists()
