"""Names, globs and aliases of models, as the settings give them."""

from __future__ import annotations

import pytest

from gatewayd.routing.listing import Listing
from gatewayd.routing.names import ModelNames
from gatewayd.settings.values import models_and_aliases

NAMES = ModelNames(models_and_aliases("small, llama-*, fast = llama-3-8b, qwen[12]?"))


@pytest.mark.parametrize(
    ("model", "real"),
    [
        ("small", "small"),
        ("llama-3-70b", "llama-3-70b"),
        ("llama-", "llama-"),
        ("fast", "llama-3-8b"),
        ("qwen1x", "qwen1x"),
    ],
)
def test_a_model_is_served_by_name_by_glob_or_by_alias(model: str, real: str) -> None:
    assert NAMES.real_name(model) == real


@pytest.mark.parametrize("model", ["qwen3x", "Small", "smaller", "llama", "x/llama-3", "*", ""])
def test_no_other_model_is_served(model: str) -> None:
    assert NAMES.real_name(model) is None


def test_an_alias_counts_before_a_glob_that_matches_it_too() -> None:
    assert ModelNames(models_and_aliases("*, fast = llama-3-8b")).real_name("fast") == "llama-3-8b"


def test_without_entries_all_models_are_served_under_their_own_names() -> None:
    names = ModelNames()
    assert names.take_unnamed and names.offer("any")
    assert names.real_name("any") == "any" and not names.names and not names.globs
    assert not NAMES.take_unnamed


def test_names_and_globs_are_told_apart() -> None:
    assert NAMES.names == ["small", "fast"]
    assert NAMES.globs == ["llama-*", "qwen[12]?"]


@pytest.mark.parametrize(
    ("listed", "offered"),
    [("small", True), ("llama-3-8b", True), ("fast", False), ("other", False)],
)
def test_a_model_that_the_backend_lists_is_offered_under_its_own_name(
    listed: str, offered: bool
) -> None:
    assert NAMES.offer(listed) is offered


# -- with the backend's own list -------------------------------------------------------------------


def listing(*names: str) -> Listing:
    """A list that has come, with these models."""
    found = Listing()
    found.known, found.names = True, frozenset(names)
    return found


def test_auto_stands_for_the_models_that_the_backend_lists() -> None:
    names = ModelNames(models_and_aliases("auto, fast = x"), listing("x", "y:latest"))
    served = {name: names.real_name(name) for name in ("x", "fast", "y", "y:latest", "y:1b", "z")}
    assert served == {
        "x": "x",
        "fast": "x",
        "y": "y",
        "y:latest": "y:latest",
        "y:1b": None,
        "z": None,
    }
    assert names.follow_list and names.take_unnamed and not names.may_serve_others
    assert names.names == ["fast"] and names.globs == [] and names.offer("x")


def test_auto_may_serve_others_until_the_list_has_come() -> None:
    unknown = Listing()
    names = ModelNames(models_and_aliases("auto"), unknown)
    assert names.may_serve_others and names.real_name("x") is None
    unknown.known, unknown.names = True, frozenset({"x"})
    assert not names.may_serve_others and names.real_name("x") == "x"


def test_a_model_called_auto_can_be_served_by_an_alias_or_a_glob() -> None:
    assert ModelNames(models_and_aliases("auto = x")).real_name("auto") == "x"
    assert ModelNames(models_and_aliases("[a]uto")).real_name("auto") == "auto"


def test_without_entries_beside_others_the_list_says_what_is_served_for_sure() -> None:
    names = ModelNames((), listing("x"), alone=False)
    assert (names.real_name("x"), names.real_name("z")) == ("x", None)
    assert names.may_serve_others and names.follow_list and names.take_unnamed


def test_names_in_the_settings_need_no_list() -> None:
    assert not NAMES.follow_list and not NAMES.may_serve_others
    assert not ModelNames().follow_list and not ModelNames().may_serve_others
