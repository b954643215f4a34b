"""Settings and hooks for all tests."""

import hypothesis
import pytest

from tests import programs

# The time of an example depends on the load of the machine.
hypothesis.settings.register_profile("gatewayd", deadline=None)
hypothesis.settings.load_profile("gatewayd")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that cannot run before any fixture starts a server for it."""
    programs.check(item)
