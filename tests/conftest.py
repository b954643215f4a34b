"""What holds for all tests."""

import hypothesis
import pytest

from tests import programs

# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("gatewayd", deadline=None)
hypothesis.settings.load_profile("gatewayd")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture starts a server for a test that cannot run."""
    programs.check(item)
