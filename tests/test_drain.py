"""A graceful stop, in memory and on a clock."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from gatewayd.daemon.drain import FLUSH_SECONDS, GRACE_SECONDS, Drain
from tests.memory import FakeBackend, Gateway, completion

SECONDS = 30.0


class Drains(SynchronousTestCase):
    def setUp(self) -> None:
        self.backend = FakeBackend()
        self.gateway = Gateway(self.backend)
        self.closed = 0
        serving: Any = SimpleNamespace(site=self.gateway.site, api=self.gateway.api)
        ports: Any = SimpleNamespace(close=self.close_ports)
        self.drain = Drain(ports, serving, self.gateway.clock)

    def close_ports(self) -> None:
        self.closed += 1

    def passes(self, seconds: float) -> None:
        self.gateway.clock.pump([seconds / 100] * 100)

    def test_without_connections_it_ends_in_the_next_turn_of_the_loop(self) -> None:
        done = self.drain.begin(SECONDS)
        assert self.closed == 1
        self.assertNoResult(done)
        self.gateway.clock.advance(0)
        self.successResultOf(done)
        assert self.gateway.clock.getDelayedCalls() == []

    def test_a_connection_that_was_accepted_late_counts(self) -> None:
        done = self.drain.begin(SECONDS)
        client = self.gateway.connect()
        self.gateway.clock.advance(0)
        self.assertNoResult(done)
        client.leave()
        self.successResultOf(done)

    def test_connections_without_a_request_are_closed_a_moment_later(self) -> None:
        client = self.gateway.connect()
        done = self.drain.begin(SECONDS)
        self.gateway.clock.advance(GRACE_SECONDS / 2)
        assert not client.disconnecting
        self.gateway.clock.advance(GRACE_SECONDS)
        assert client.disconnecting
        client.leave()
        self.successResultOf(done)

    def test_a_running_request_may_end_and_its_client_is_sent_the_whole_reply(self) -> None:
        client = self.gateway.chat()
        done = self.drain.begin(SECONDS)
        self.passes(SECONDS - 1)
        self.backend.calls[0].whole(completion())
        self.assertNoResult(done)
        assert client.value().startswith(b"HTTP/1.1 200 OK")
        client.leave()
        self.successResultOf(done)
        assert [exchange.end for exchange in self.gateway.ended] == ["complete"]

    def late(self, end: Callable[[], object]) -> None:
        client = self.gateway.chat()
        done = self.drain.begin(SECONDS)
        end()
        assert (client.value() and self.backend.calls[0].left == "cancelled") or client.aborted
        if client.connected:
            client.leave()
        self.gateway.clock.advance(0)
        self.successResultOf(done)
        assert [exchange.end for exchange in self.gateway.ended] == ["drained"]
        assert self.gateway.clock.getDelayedCalls() == []

    def test_a_request_that_takes_too_long_ends_with_an_error(self) -> None:
        self.late(lambda: self.passes(SECONDS + 0.1))

    def test_an_abort_closes_all_connections(self) -> None:
        self.late(self.drain.abort)

    def test_a_client_that_does_not_take_its_last_answer_is_disconnected(self) -> None:
        client = self.gateway.chat()
        done = self.drain.begin(SECONDS)
        self.passes(SECONDS + FLUSH_SECONDS + 0.1)
        assert client.aborted
        self.successResultOf(done)
