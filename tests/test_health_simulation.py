"""Simulated clients and servers: no good request is refused while a server would answer it.

``python -m tests.test_health_simulation 2000`` runs more worlds and prints the sums.
"""

from __future__ import annotations

import random
import sys

import attrs
import pytest
from twisted.internet.task import Clock

from gatewayd.routing.evidence import ClientLeft
from gatewayd.routing.router import Candidate, Router
from gatewayd.routing.target import Target
from gatewayd.wire import errors
from tests.memory import FakeBackend

#: Virtual seconds of one world, and seconds that a good client waits for a first byte.
SECONDS = 120.0
PATIENCE = 6.0


@attrs.define
class Server:
    """A backend that answers, is silent, or refuses connections. A bad request gets its 500."""

    target: Target
    mode: str = "answers"
    has_health_path: bool = False


@attrs.define
class Outcome:
    good: int = 0
    refused: int = 0  # good requests, although a server would have answered
    silent: int = 0  # good requests that a silent server kept until their client gave up
    bad: int = 0


class World:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        random.seed(seed)  # the jitter of back-offs
        self.clock = Clock()
        pick = self.random.choice
        count = pick([1, 2, 2, 3, 5])
        self.servers = [
            Server(Target(FakeBackend(f"b{n}"), self.clock), has_health_path=pick([False, True]))
            for n in range(count)
        ]
        self.router = Router([server.target for server in self.servers])
        self.outcome = Outcome()
        self._good_gap, self._bad_gap = pick([0.05, 0.5, 3]), pick([0.05, 0.5, 1, 10, 1000])
        self._good_callers, self._bad_callers = pick([1, 4]), pick([1, 2])
        self._faults = pick([("answers",), ("answers", "refuses"), ("answers", "silent")])

    def run(self) -> Outcome:
        self._every(self._good_gap, self.good_request)
        self._every(self._bad_gap, self.bad_request)
        self._every(1.0, self.check)
        self._every(20.0, self.change)
        while self.clock.seconds() < SECONDS:
            self.clock.advance(0.05)
        return self.outcome

    def _every(self, seconds: float, call: object) -> None:
        def again() -> None:
            call()  # type: ignore[operator]
            self.clock.callLater(seconds * self.random.uniform(0.5, 1.5), again)

        self.clock.callLater(seconds * self.random.random(), again)

    def change(self) -> None:
        """Servers fail and recover, but the first one always answers."""
        for server in self.servers[1:]:
            server.mode = self.random.choice(self._faults)

    def check(self) -> None:
        for server in self.servers:
            if server.has_health_path:
                if server.mode == "answers":
                    server.target.health.check_passed()
                else:
                    server.target.health.check_failed()

    def good_request(self) -> None:
        self.outcome.good += 1
        caller = f"good-{self.random.randrange(self._good_callers)}"
        self._ask(caller, b"%d" % self.random.randrange(10**6), None)

    def bad_request(self) -> None:
        self.outcome.bad += 1
        caller = f"bad-{self.random.randrange(self._bad_callers)}"
        self._ask(caller, b"an image", errors.BackendFailed("It failed.", status=500))

    def _ask(self, caller: str, body: bytes, answer: errors.BackendFailed | None) -> None:
        try:
            candidates = self.router.route("m")
        except errors.Overloaded:
            candidates = []
        for candidate in candidates:
            if not candidate.available and candidate is not candidates[0]:
                continue
            if self._one(candidate, caller, body, answer):
                return
        if answer is None:
            self.outcome.refused += 1

    def _one(
        self, candidate: Candidate, caller: str, body: bytes, answer: errors.BackendFailed | None
    ) -> bool:
        """Send a request to one backend; False if the next one is to be asked."""
        target = candidate.target
        (server,) = [server for server in self.servers if server.target is target]
        trial = target.begin()
        if server.mode == "refuses":
            target.settle(trial, errors.Unreachable("No."), caller, body)
            return False
        if server.mode == "answers":
            target.settle(trial, answer, caller, body)
            return True
        if answer is None:
            self.outcome.silent += 1
        self.clock.callLater(PATIENCE, target.settle, trial, ClientLeft(PATIENCE), caller, body)
        return True


@pytest.mark.parametrize("seed", range(60))
def test_no_good_request_is_refused_while_a_server_would_answer_it(seed: int) -> None:
    outcome = World(seed).run()
    assert outcome.good > 20
    assert outcome.refused == 0


def test_few_good_requests_meet_a_silent_server() -> None:
    """One of two is silent for the whole time, and neither has a health path."""
    for gap in (0.1, 1.0):
        world = World(1)
        world.servers = [
            Server(Target(FakeBackend(name), world.clock), mode)
            for name, mode in (("a", "answers"), ("b", "silent"))
        ]
        world.router = Router([server.target for server in world.servers])
        world.change = lambda: None  # type: ignore[method-assign]
        world._good_gap, world._bad_gap = gap, 1000
        outcome = world.run()
        # Requests of the first seconds, then one trial for each back-off and PATIENCE.
        assert outcome.silent <= 6 + 3 * SECONDS / (15 + PATIENCE), outcome
        assert outcome.refused == 0


def test_bad_requests_of_one_client_make_no_server_unusable_for_others() -> None:
    """Two servers, one client whose every request is answered with 500, again and again."""
    for has_health_path in (False, True):
        world = World(1)
        for server in world.servers:
            server.has_health_path = has_health_path
        world.change = lambda: None  # type: ignore[method-assign]
        world._bad_gap = 0.05
        outcome = world.run()
        assert outcome.bad > 1000 and outcome.refused == outcome.silent == 0


if __name__ == "__main__":
    total = Outcome()
    for seed in range(int(sys.argv[1])):
        outcome = World(seed).run()
        if outcome.refused:
            print(f"seed {seed}: {outcome}")
        for field in attrs.fields(Outcome):
            setattr(total, field.name, getattr(total, field.name) + getattr(outcome, field.name))
    print(total)
