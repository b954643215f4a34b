"""The clocks of a backend."""

from __future__ import annotations

from gatewayd.backend.interface import Clocks


def test_clocks_are_limited_except_the_total() -> None:
    assert Clocks(10, 0, 0).at_most(5) == Clocks(5, 5, 0)
    assert Clocks(3, 4, 100).at_most(5) == Clocks(3, 4, 100)
