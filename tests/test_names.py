"""Names, globs and aliases of models, as the settings give them."""

from __future__ import annotations

import pytest

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
    assert names.all and names.offer("any")
    assert names.real_name("any") == "any" and not names.names and not names.globs
    assert not NAMES.all


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
