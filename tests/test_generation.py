"""Everything that serves requests, built from settings."""

from __future__ import annotations

from unittest import mock

import pytest
from twisted.internet.testing import MemoryReactorClock

from gatewayd.backend.openai import OpenAIBackend
from gatewayd.daemon.generation import build
from gatewayd.settings.load import SettingsError, load


def test_a_backend_that_cannot_be_built_is_named_with_its_section() -> None:
    settings = load({"BACKEND_URL": "http://127.0.0.1:1"})

    def fails(*_: object) -> None:
        raise RuntimeError("why")

    with (
        mock.patch.object(OpenAIBackend, "__init__", fails),
        pytest.raises(SettingsError) as caught,
    ):
        build(settings, MemoryReactorClock(), bytes)
    assert caught.value.problems == ("[backend default]: cannot be used (why)",)
