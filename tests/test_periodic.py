"""Calls that are repeated while a service runs."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.daemon.periodic import Periodic


class Periodically(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.times: list[float] = []

    def call(self) -> None:
        self.times.append(self.clock.seconds())

    def test_the_first_call_comes_at_the_start_and_none_after_the_stop(self) -> None:
        service = Periodic(2, self.call, self.clock)
        assert self.times == []
        service.startService()
        self.clock.pump([1] * 4)
        service.stopService()
        self.clock.advance(10)
        assert self.times == [0, 2, 4]
        assert self.clock.getDelayedCalls() == []

    def test_an_exception_is_logged_and_the_calls_go_on(self) -> None:
        def call() -> None:
            self.call()
            raise ZeroDivisionError

        Periodic(1, call, self.clock).startService()
        self.clock.pump([1] * 2)
        assert self.times == [0, 1, 2]
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 3

    def test_calls_that_are_missed_are_not_made_up_for(self) -> None:
        Periodic(1, self.call, self.clock).startService()
        self.clock.advance(3600)
        assert self.times == [0, 3600]
