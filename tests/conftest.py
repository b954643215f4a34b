"""What holds for all tests."""

import pytest

from tests import programs


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture starts a server for a test that cannot run."""
    programs.check(item)
