"""Which backend a key belongs to: shares by weight, and which keys a change moves."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatewayd.routing.rendezvous import score, seed_of
from gatewayd.wire.affinity import of_session

KEYS = [key for n in range(1000) if (key := of_session(b"session %d" % n)) is not None]

NAMES = st.lists(
    st.text(st.sampled_from("abcdefghijklmnopqrstuvwxyz0123456789-_."), min_size=1, max_size=12),
    min_size=2,
    max_size=12,
    unique=True,
)
WEIGHTS = st.sampled_from([0.001, 0.1, 0.5, 1.0, 2.0, 3.0, 1000.0])


def winners(weights: dict[str, float]) -> list[str]:
    """The backend that each of :data:`KEYS` belongs to."""
    seeds = {name: seed_of(name) for name in weights}
    return [max(weights, key=lambda name: score(key, seeds[name], weights[name])) for key in KEYS]


def few(share: float) -> float:
    """How far the number of keys of a share may be from the expected one: 5 standard deviations."""
    return 5 * math.sqrt(len(KEYS) * share * (1 - share)) + 1


@settings(max_examples=30)
@given(NAMES)
def test_equal_weights_win_equally_many_keys_whatever_the_names(names: list[str]) -> None:
    won = Counter(winners(dict.fromkeys(names, 1.0)))
    share = 1 / len(names)
    for name in names:
        assert abs(won[name] - len(KEYS) * share) <= few(share)


@settings(max_examples=30)
@given(NAMES, st.data())
def test_keys_are_won_in_proportion_to_the_weights(names: list[str], data: st.DataObject) -> None:
    weights = {name: data.draw(WEIGHTS) for name in names}
    won = Counter(winners(weights))
    for name, weight in weights.items():
        share = weight / sum(weights.values())
        assert abs(won[name] - len(KEYS) * share) <= few(share)


@settings(max_examples=30)
@given(NAMES, st.data())
def test_a_backend_that_goes_or_comes_moves_only_its_own_keys(
    names: list[str], data: st.DataObject
) -> None:
    weights = {name: data.draw(WEIGHTS) for name in names}
    gone = data.draw(st.sampled_from(names))
    with_it, without = winners(weights), winners({n: w for n, w in weights.items() if n != gone})
    for before, after in zip(with_it, without, strict=True):
        assert before in (gone, after)


@settings(max_examples=30)
@given(NAMES, st.data())
def test_a_weight_that_grows_only_attracts_keys(names: list[str], data: st.DataObject) -> None:
    weights = {name: data.draw(WEIGHTS) for name in names}
    grown = data.draw(st.sampled_from(names))
    before, after = winners(weights), winners({**weights, grown: weights[grown] * 1.7})
    for old, new in zip(before, after, strict=True):
        assert new in (old, grown)


@pytest.mark.parametrize("key", [0, 1, 2**64 - 1, 2**63])
def test_every_key_has_scores_that_can_be_compared(key: int) -> None:
    assert 0 < score(key, seed_of("a"), 0.001) <= math.inf
    assert 0 < score(key, 1, 1000.0) <= math.inf


def test_another_process_finds_the_same_backend() -> None:
    """Python's own hashes of strings differ between processes."""
    script = (
        "from tests.test_rendezvous import winners\n"
        "print(*winners({'gpu1': 1.0, 'gpu2': 2.0, 'gpu3': 1.0}))"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout.split()
        for seed in ("1", "2")
    ]
    assert found[0] == found[1] == winners({"gpu1": 1.0, "gpu2": 2.0, "gpu3": 1.0})
