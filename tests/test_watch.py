"""The clocks of one relay; the test controls the time."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from gatewayd.api.clocks import Deadline
from gatewayd.backend.interface import Clocks
from gatewayd.exchange import Exchange
from gatewayd.relaying.watch import Watch


class Watched:
    """A watch, and what it called: clocks that ran out, and ``comment``, with the time."""

    def __init__(
        self, ping: float = 0.0, caller_timeout: float = 0.0, leaves: bool = False
    ) -> None:
        self.clock = Clock()
        self.timer = Deadline(self.clock)
        self.exchange = Exchange("req-1", 0.0, "client", lambda _: None)
        self.calls: list[tuple[float, str]] = []
        self.watch = Watch(
            self.clock,
            self.timer,
            self.exchange,
            ping,
            caller_timeout,
            self._called,
            lambda: self._called("comment"),
            self._lost_patience,
        )
        self._leaves = leaves

    def _called(self, what: str) -> None:
        self.calls.append((self.clock.seconds(), what))

    def _lost_patience(self) -> bool:
        self._called("patience")
        return self._leaves

    def run(self, seconds: float) -> list[tuple[float, str]]:
        """Let time pass in steps of an eighth of a second; return all calls so far."""
        self.clock.pump([0.125] * round(8 * seconds))
        return self.calls


def test_first_byte_runs_until_content_and_idle_from_then_on() -> None:
    it = Watched()
    it.watch.start(Clocks(first_byte=10, idle=3))
    assert it.run(9) == []
    it.watch.content()
    assert it.run(2) == []
    it.watch.content()
    assert it.run(9) == [(14.0, "idle")]


@pytest.mark.parametrize("clock", ["first_byte", "total"])
def test_without_content_the_earliest_clock_runs_out(clock: str) -> None:
    it = Watched()
    it.watch.start(Clocks(first_byte=10, total=10 if clock == "first_byte" else 5))
    assert it.run(4.5) == []
    assert it.run(9)[:1] == [(10.0 if clock == "first_byte" else 5.0, it.calls[0][1])]


def test_total_and_the_callers_timeout_run_on_when_another_backend_is_asked() -> None:
    for kind in ("total", "caller_timeout"):
        it = Watched(caller_timeout=5 if kind == "caller_timeout" else 0)
        clocks = Clocks(first_byte=4, total=5 if kind == "total" else 0)
        it.watch.start(clocks)
        it.run(3)
        it.watch.start(clocks)
        assert it.run(6)[:1] == [(5.0, kind)]


def test_a_clock_that_is_due_already_is_called_at_the_start() -> None:
    it = Watched()
    it.run(3)
    it.watch.start(Clocks(total=2))
    assert it.calls == [(3.0, "total")]


def test_an_event_in_parts_holds_off_idle_until_it_proves_empty() -> None:
    it = Watched()
    it.watch.start(Clocks(idle=3))
    it.watch.content()
    it.run(2)
    it.watch.partial_event()
    assert it.run(2) == []
    it.watch.empty_event()
    assert it.calls == []  # never within the call
    assert it.run(0.125) == [(4.125, "idle")]


def test_what_the_fast_path_relays_is_content() -> None:
    it = Watched(ping=5)
    it.watch.start(Clocks(idle=3))
    it.watch.content()
    it.watch.wrote()
    for _ in range(4):
        it.run(2)
        it.watch.relayed(2)
    assert it.calls == [] and it.exchange.events == 8 and it.exchange.longest_gap == 2.0
    assert it.run(4)[:1] == [(11.0, "idle")]


def test_comments_come_after_silence_and_move_no_clock() -> None:
    it = Watched(ping=2)
    it.watch.start(Clocks(first_byte=5))
    assert it.run(6) == [(2.0, "comment"), (4.0, "comment"), (5.0, "first_byte")]


def test_a_slow_client_stops_idle_and_comments_and_resuming_starts_them_anew() -> None:
    it = Watched(ping=2)
    it.watch.start(Clocks(idle=3))
    it.watch.content()
    it.watch.pause()
    assert it.run(20) == []
    it.watch.resume()
    assert it.run(4) == [(22.0, "comment"), (23.0, "idle")]


def test_the_stages_are_noted_in_the_exchange() -> None:
    it = Watched()
    it.watch.start(Clocks())
    it.run(1)
    assert it.watch.waited == 1.0
    it.watch.content()
    assert it.watch.waited == 0.0 and it.exchange.first_byte == 1.0
    it.run(1)
    it.watch.wrote()
    it.run(1)
    it.watch.content()
    assert (it.exchange.first_event, it.exchange.longest_gap) == (2.0, 2.0)


def test_a_stopped_watch_gives_the_timer_back() -> None:
    it = Watched(ping=1)
    it.watch.start(Clocks(1, 1, 1))
    it.watch.stop()
    it.timer.set(3, lambda: it._called("the connection"))
    it.watch.content()
    it.watch.resume()
    it.watch.stop()
    assert it.run(5) == [(3.0, "the connection")]


def test_content_costs_no_timer() -> None:
    it = Watched()
    it.watch.start(Clocks(first_byte=60, idle=60, total=60))
    (timer,) = it.clock.getDelayedCalls()
    for _ in range(100):
        it.watch.content()
        it.watch.relayed(1)
    assert it.clock.getDelayedCalls() == [timer]


@pytest.mark.parametrize("leaves", [False, True])
def test_patience_runs_out_once_and_the_other_clocks_run_on_if_the_backend_is_kept(
    leaves: bool,
) -> None:
    it = Watched(leaves=leaves)
    it.watch.start(Clocks(first_byte=10, patience=4))
    calls = it.run(12)
    assert calls[0] == (4.0, "patience")
    assert calls[1:] == ([] if leaves else [(10.0, "first_byte")])
    it.watch.start(Clocks(patience=4))  # another backend
    assert it.run(5)[-1] == (16.0, "patience")


def test_content_ends_the_patience() -> None:
    it = Watched()
    it.watch.start(Clocks(patience=4))
    it.run(3)
    it.watch.content()
    assert it.run(9) == []
