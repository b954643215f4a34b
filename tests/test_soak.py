"""Some random exchanges against the model of the promises; ``make soak`` runs for long."""

from __future__ import annotations

import pytest

from tests.soak.client import ClientEnd
from tests.soak.oracle import judge
from tests.soak.run import Runner
from tests.soak.world import World

#: Seeds that once found something, each with what it found.
FOUND = {
    12: "the clock of a client that takes nothing ran on the spot when rounding made it early",
    24: "a connection was pooled while its socket was paused",
    117: "a connection that lingered was reset while the client still read what it had been sent",
}


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(tmp_path_factory.mktemp("soak"))


@pytest.mark.parametrize("seed", sorted(FOUND))
def test_seeds_that_once_found_a_bug_find_none(runner: Runner, seed: int) -> None:
    assert runner.run(seed).problems == []


def test_random_exchanges_keep_every_promise(runner: Runner) -> None:
    exchanges = 0
    for seed in range(1000, 1060):
        found = runner.run(seed)
        assert found.problems == [], f"seed {seed}: python -m tests.soak --seed {seed}"
        exchanges += found.exchanges
    assert exchanges > 500


def _lie(world: World) -> None:
    """A log that says of every request that it was complete."""
    lines = world.log_lines()
    for line in lines:
        line["end"] = "complete"
    world.log_lines = lambda: lines  # type: ignore[method-assign]


def _forget_a_line(world: World) -> None:
    lines = world.log_lines()[1:]
    world.log_lines = lambda: lines  # type: ignore[method-assign]


def _swap_answers(world: World) -> None:
    one, other = [
        client
        for client in world.clients
        if client.received.startswith(b"HTTP/1.1 200 OK") and client.left is None
    ][:2]
    one.received, other.received = other.received, one.received


def _add_done(world: World) -> None:
    """Every stream that was cut looks whole."""
    for client in _cut_streams(world):
        client.received += b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


def _cut_streams(world: World) -> list[ClientEnd]:
    """The clients whose stream ended with an error."""
    return [
        client
        for client in world.clients
        if b'"error"' in client.received and b"event-stream" in client.received
    ]


def _ask_twice(world: World) -> None:
    attempt = next(a for a in world.attempts if a.answered and a.fresh)
    world.attempts.insert(0, attempt)


def _keep_pending(world: World) -> None:
    world.service.serving.api.router.targets[0].in_flight += 1


@pytest.mark.parametrize(
    "break_it", [_lie, _forget_a_line, _swap_answers, _add_done, _ask_twice, _keep_pending]
)
def test_the_oracle_notices_a_broken_promise(runner: Runner, break_it: object) -> None:
    seed = 1004
    while not _cut_streams(world := runner.world(seed)):  # what a seed plays changes with the code
        world.close()
        seed += 1
    assert judge(world) == []
    break_it(world)  # type: ignore[operator]
    assert judge(world) != []
    world.close()


def test_the_oracle_notices_two_executions_at_one_time(runner: Runner) -> None:
    world = runner.world(1013)
    assert world.reask and judge(world) == []
    for attempt in world.attempts:
        attempt.socket.closed_at = 10**9  # long after any other backend was asked
    assert any("was under way" in problem for problem in judge(world))
    world.close()
