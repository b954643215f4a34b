"""The order of backends that could all take a request."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from gatewayd.routing.evidence import FAILURES
from gatewayd.routing.health import FIRST_BACKOFF, RAMP_SECONDS
from gatewayd.routing.order import MOST_LOAD, Turns, in_order
from gatewayd.routing.rendezvous import score
from gatewayd.routing.target import Target
from gatewayd.wire.affinity import of_session
from tests.memory import FakeBackend, fails

WEIGHTS = st.lists(st.sampled_from([0.5, 1.0, 1.0, 2.0, 3.0]), min_size=1, max_size=6)
KEYS = st.integers(1, 2**64 - 1)  # the scores of 0 are all equal


def targets_of(weights: list[float], clock: Clock | None = None) -> list[Target]:
    clock = clock or Clock()
    return [
        Target(FakeBackend(f"gpu{n}"), clock, weight=weight) for n, weight in enumerate(weights)
    ]


def run(targets: list[Target], keys: list[int | None]) -> Counter[str]:
    """Send requests one after the other; return how many each backend was sent."""
    turns, sent = Turns(targets), Counter[str]()
    for key in keys:
        first = in_order(targets, key, turns)[0]
        if key is None:
            turns.take(first)
        first.settle(first.begin(), None)
        sent[first.backend.name] += 1
    return sent


# -- tiers ---------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.none() | KEYS)
def test_a_lower_number_comes_first_with_or_without_a_key(
    priorities: list[int], key: int | None
) -> None:
    clock = Clock()
    targets = [Target(FakeBackend(f"{n}"), clock, priority=p) for n, p in enumerate(priorities)]
    for target in targets[::2]:
        target.begin()  # the load of one tier does not send a request to the next
    found = in_order(targets, key, Turns(targets))
    assert [target.priority for target in found] == sorted(priorities)
    assert set(found) == set(targets)


# -- keys ----------------------------------------------------------------------------------------


@given(WEIGHTS, KEYS)
def test_idle_backends_are_asked_in_the_order_of_their_scores(
    weights: list[float], key: int
) -> None:
    targets = targets_of(weights)
    found = in_order(targets, key, Turns(targets))
    scores = [score(key, target.seed, target.share) for target in found]
    assert scores == sorted(scores, reverse=True)


@given(WEIGHTS, st.lists(st.tuples(KEYS, st.booleans(), st.integers(0, 50)), max_size=80))
def test_no_backend_is_sent_more_than_its_share_of_the_requests_in_flight(
    weights: list[float], steps: list[tuple[int, bool, int]]
) -> None:
    targets = targets_of(weights)
    turns, running = Turns(targets), list[Target]()
    for key, ends, which in steps:
        if ends and running:
            running.pop(which % len(running)).settle(0, None)
            continue
        first = in_order(targets, key, turns)[0]
        share = first.share / sum(target.share for target in targets)
        assert first.in_flight <= math.ceil(MOST_LOAD * share * (len(running) + 1))
        by_score = sorted(targets, key=lambda t: score(key, t.seed, t.share), reverse=True)
        for passed_over in by_score[: by_score.index(first)]:
            share = passed_over.share / sum(target.share for target in targets)
            assert passed_over.in_flight > MOST_LOAD * share * (len(running) + 1)
        first.begin()
        running.append(first)


def test_a_key_returns_to_its_backend_when_there_is_room_again() -> None:
    a, b = targets = targets_of([1.0, 1.0])
    turns, key = Turns(targets), 1
    own, other = in_order(targets, key, turns)
    assert {own, other} == {a, b}
    for _ in range(5):  # 1.25 times its share of six requests, rounded up, is 4
        assert in_order(targets, key, turns)[0] is own
        own.begin()
    assert in_order(targets, key, turns) == [other, own]
    own.settle(0, None)
    assert in_order(targets, key, turns)[0] is own


# -- turns ---------------------------------------------------------------------------------------


@given(WEIGHTS)
def test_requests_without_a_key_take_turns_in_proportion_to_the_weights(
    weights: list[float],
) -> None:
    targets = targets_of(weights)
    sent = run(targets, [None] * int(10 * sum(weights) * 2))
    for target, weight in zip(targets, weights, strict=True):
        assert abs(sent[target.backend.name] - 20 * weight) <= 1


@given(WEIGHTS, st.integers(1, 60))
def test_requests_in_flight_without_a_key_are_in_proportion_to_the_weights(
    weights: list[float], count: int
) -> None:
    targets = targets_of(weights)
    turns = Turns(targets)
    for _ in range(count):
        first = in_order(targets, None, turns)[0]
        turns.take(first)
        first.begin()
    loads = [(target.in_flight - 1) / target.share for target in targets]
    assert max(loads) <= min(target.in_flight / target.share for target in targets) + 1e-9


def test_a_backend_that_was_away_does_not_catch_up_on_its_turns() -> None:
    a, b = targets = targets_of([1.0, 1.0])
    turns = Turns(targets)
    for _ in range(50):
        turns.take(a)
    firsts = []
    for _ in range(10):
        first = in_order(targets, None, turns)[0]
        turns.take(first)
        firsts.append(first)
    assert firsts.count(b) in (5, 6)


def test_turns_go_on_under_new_settings() -> None:
    """A reload makes new turns for targets that have taken many."""
    a, b = targets = targets_of([1.0, 1.0])
    run(targets, [None] * 101)
    c = Target(FakeBackend("c"), Clock())
    sent = run([a, b, c], [None] * 30)
    assert all(9 <= count <= 11 for count in sent.values()) and len(sent) == 3


# -- recovery ------------------------------------------------------------------------------------


def recovered(clock: Clock, weights: list[float]) -> list[Target]:
    """Targets of which the first was ejected, and has just answered its trial."""
    targets = targets_of(weights, clock)
    for _ in range(FAILURES):
        fails(targets[0].health)
    clock.advance(FIRST_BACKOFF)
    targets[0].settle(targets[0].begin(), None)
    assert targets[0].health.usable
    return targets


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, 1), (0.5, 5), (0.9, 9), (1.0, 10)])
def test_a_recovered_backend_gets_its_share_of_the_requests_back_over_some_seconds(
    seconds: float, expected: int
) -> None:
    clock = Clock()
    targets = recovered(clock, [1.0, 1.0])
    turns = Turns(targets)
    clock.advance(seconds * RAMP_SECONDS)
    for _ in range(10):
        targets[1].begin()
    for _ in range(20):
        first = in_order(targets, None, turns)[0]
        turns.take(first)
        first.begin()
    assert targets[0].in_flight == pytest.approx(30 * seconds / (1 + seconds) or 3, abs=1.5)


def test_each_key_of_a_recovered_backend_returns_to_it_once() -> None:
    clock = Clock()
    targets = recovered(clock, [1.0, 1.0, 1.0])
    turns = Turns(targets)
    keys = [of_session(b"session %d" % n) for n in range(400)]
    before: list[Target] = []
    counts = []
    for _ in range(12):
        firsts = [in_order(targets, key, turns)[0] for key in keys]
        for old, new in zip(before, firsts, strict=False):
            assert new in (old, targets[0])
        counts.append(firsts.count(targets[0]))
        before = firsts
        clock.advance(RAMP_SECONDS / 10)
    assert counts == sorted(counts) and counts[0] < 0.1 * len(keys)
    assert counts[-1] == pytest.approx(len(keys) / 3, rel=0.2)
