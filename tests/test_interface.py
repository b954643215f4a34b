"""What other rooms know of a backend: its clocks and its replies."""

from __future__ import annotations

from typing import Any

from gatewayd.backend.interface import Clocks, PlainReply


def test_clocks_are_limited_except_the_total() -> None:
    assert Clocks(10, 0, 0).at_most(5) == Clocks(5, 5, 0)
    assert Clocks(3, 4, 100).at_most(5) == Clocks(3, 4, 100)


def test_the_key_of_a_reply_is_not_shown() -> None:
    body: Any = None
    assert "sk-secret" not in repr(PlainReply(200, "a/b", (), body, key="sk-secret"))
