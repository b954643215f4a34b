"""The memory of the responses that a backend has made."""

from __future__ import annotations

import pytest

from gatewayd.routing import made
from gatewayd.routing.made import Made, maker_of


class Maker:
    def __init__(self, *ids: str) -> None:
        self.made = Made()
        for id in ids:
            self.made.add(id, None)


def test_the_maker_of_a_response_is_the_target_that_has_it() -> None:
    a, b = Maker("x"), Maker("y")
    assert maker_of("x", [a, b]) is a and maker_of("y", [a, b]) is b
    assert maker_of("z", [a, b]) is None and maker_of("x", []) is None


def test_the_oldest_ids_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made, "MOST_IDS", 2)
    memory = Made()
    for id in ("a", "b", "a", "c"):
        memory.add(id, None)
    assert "a" in memory and "c" in memory and "b" not in memory


def test_the_caller_that_made_a_response_stays_its_maker() -> None:
    memory = Made()
    memory.add("a", "alice")
    memory.add("a", "bob")
    assert memory.by("a", "alice") and not memory.by("a", "bob") and not memory.by("b", "alice")


def test_a_caller_that_is_not_known_is_not_another_one() -> None:
    memory = Made()
    memory.add("a", "alice")
    memory.add("b", None)  # found by a search
    assert memory.by_another("a", "bob") and not memory.by_another("a", "alice")
    assert not memory.by_another("b", "bob") and not memory.by_another("c", "bob")
