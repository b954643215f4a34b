"""What signals do, without sending any."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.testing import MemoryReactorClock

from gatewayd.daemon.signals import TOGETHER_SECONDS, Signals


class Reactor(MemoryReactorClock):
    def __init__(self) -> None:
        super().__init__()
        self.stops = 0

    def stop(self) -> None:
        self.stops += 1

    def callFromThread(self, call: Callable[..., Any], *arguments: Any) -> None:
        call(*arguments)


class Handled:
    """The handlers of one process, and what they did."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, worker: bool) -> None:
        self.reactor: Any = Reactor()
        self.handlers: dict[int, Any] = {}
        self.done: list[str] = []
        monkeypatch.setattr(signal, "signal", self.handlers.__setitem__)
        monkeypatch.setattr(signal, "pthread_sigmask", lambda *_: None)
        signals = Signals(
            lambda: self.done.append("at once"),
            lambda: self.done.append("reload"),
            self.reactor,
            worker,
        )
        signals.install()
        assert self.handlers == {}
        self.reactor.run()

    def send(self, number: int) -> None:
        self.handlers[number](number, None)
        self.reactor.advance(0)


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Handled:
    return Handled(monkeypatch, worker=False)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Handled:
    return Handled(monkeypatch, worker=True)


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_of_the_same_kind_stops_at_once(daemon: Handled, first: int) -> None:
    stops = daemon.reactor.stops
    daemon.send(first)
    assert (daemon.reactor.stops, daemon.done) == (stops + 1, [])
    daemon.send(first)
    assert (daemon.reactor.stops, daemon.done) == (stops + 1, ["at once"])


def test_another_signal_soon_after_the_first_means_the_same_stop(daemon: Handled) -> None:
    daemon.send(signal.SIGINT)
    daemon.send(signal.SIGTERM)
    assert daemon.done == []
    daemon.reactor.advance(TOGETHER_SECONDS + 0.1)
    daemon.send(signal.SIGTERM)
    assert daemon.done == ["at once"]


def test_a_worker_stops_at_once_only_by_sigquit(worker: Handled) -> None:
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        worker.send(number)
        worker.reactor.advance(TOGETHER_SECONDS)
    assert worker.done == []
    worker.send(signal.SIGQUIT)
    assert worker.done == ["at once"]


def test_sighup_reloads(daemon: Handled) -> None:
    daemon.send(signal.SIGHUP)
    assert daemon.done == ["reload"]
