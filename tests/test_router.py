"""The order in which backends are asked, without a gateway around it."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from gatewayd.routing.evidence import FAILURES
from gatewayd.routing.router import Router
from gatewayd.routing.target import Target
from gatewayd.settings.values import models_and_aliases
from gatewayd.wire.errors import ModelNotFound, Overloaded
from tests.memory import FakeBackend, fails


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=120),
    st.integers(2, 5),
    st.integers(0, 4),
)
def test_no_request_goes_to_a_backend_while_another_has_fewer_in_flight(
    steps: list[tuple[bool, int]], count: int, limit: int
) -> None:
    clock = Clock()
    targets = [Target(FakeBackend(f"{n}"), clock, (), limit or None) for n in range(count)]
    router = Router(targets)
    running: list[Target] = []
    for begin, which in steps:
        if not begin and running:
            target = running.pop(which % len(running))
            target.settle(0, None)
            continue
        before = [target.in_flight for target in targets]
        if limit and min(before) >= limit:
            with pytest.raises(Overloaded):
                router.route("m")
            continue
        candidates = router.route("m")
        target = candidates[0].target
        assert target.in_flight == min(before)
        assert [candidate.target.in_flight for candidate in candidates] == sorted(
            target.in_flight for target in targets if not target.full
        )
        target.begin()
        running.append(target)
    assert Counter(running) == Counter({t: t.in_flight for t in targets if t.in_flight})


def test_an_ejected_backend_is_the_last_resort_and_one_that_loads_is_left_out() -> None:
    ejected, loading, healthy = targets = [Target(FakeBackend(n), Clock()) for n in "abc"]
    for _ in range(FAILURES):
        fails(ejected.health)
    loading.health.check_loading()
    candidates = Router(targets).route("m")
    assert [each.target for each in candidates] == [healthy, ejected]
    assert [each.last_resort for each in candidates] == [False, True]
    assert all(each.available for each in candidates)


def test_a_candidate_is_available_until_its_backend_is_full() -> None:
    target = Target(FakeBackend(), Clock(), limit=1)
    (candidate,) = Router([target]).route("m")
    target.begin()
    assert not candidate.available


def test_the_model_is_renamed_for_each_backend() -> None:
    targets = [
        Target(FakeBackend("a"), Clock(), [("m", "real")]),
        Target(FakeBackend("b"), Clock(), [("m", None)]),
    ]
    assert [each.model for each in Router(targets).route("m")] == ["real", None]


def test_known_names_are_listed_once_and_in_order() -> None:
    router = Router([Target(FakeBackend(), Clock(), [("x", None)])])
    with pytest.raises(ModelNotFound) as caught:
        router.route("no", lambda: ["x", "y", "x"])
    assert caught.value.message == "There is no such model. Known ones: x, y."


def test_states_are_reported_by_backend_name() -> None:
    targets = [Target(FakeBackend(name), Clock()) for name in ("a", "b")]
    targets[1].health.check_loading()
    assert Router(targets).answering() == {"a": True, "b": False}


def test_a_gateway_without_an_answering_backend_is_not_ready() -> None:
    target = Target(FakeBackend(), Clock())
    router = Router([target])
    assert router.ready()
    target.health.check_loading()
    assert not router.ready()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["", "auto", "m", "x", "auto, x"]),
            st.none() | st.frozensets(st.sampled_from(["m", "x", "y"])),
        ),
        min_size=2,
        max_size=5,
    )
)
def test_a_model_goes_to_no_backend_without_it_while_another_is_known_to_serve_it(
    backends: list[tuple[str, frozenset[str] | None]],
) -> None:
    """Of each backend: its ``models``, and what it lists (None: no list has come)."""
    clock = Clock()
    targets = []
    for text, listed in backends:
        target = Target(FakeBackend(), clock, models_and_aliases(text), alone=False)
        if listed is not None:
            target.listing.known, target.listing.names = True, listed
        targets.append(target)

    def serves(text: str, listed: frozenset[str] | None) -> bool:
        return text == "m" or (text in ("", "auto", "auto, x") and "m" in (listed or ()))

    def may_serve(text: str, listed: frozenset[str] | None) -> bool:
        return text == "" or (text.startswith("auto") and listed is None)

    known = {t for t, of in zip(targets, backends, strict=True) if serves(*of)}
    possible = {t for t, of in zip(targets, backends, strict=True) if may_serve(*of)}
    try:
        asked = {candidate.target for candidate in Router(targets).route("m")}
    except ModelNotFound:
        asked = set()
    assert asked == (known or possible)
