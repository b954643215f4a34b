"""Settings, hooks and fixtures for all tests."""

import hypothesis
import pytest

from tests import programs
from tests.memory import FakeBackend, Gateway
from tests.replies import ALIASED

# The time of an example depends on the load of the machine.
hypothesis.settings.register_profile("gatewayd", deadline=None)
hypothesis.settings.load_profile("gatewayd")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that cannot run before any fixture starts a server for it."""
    programs.check(item)


@pytest.fixture
def backend() -> FakeBackend:
    """A backend in memory."""
    return FakeBackend()


@pytest.fixture
def gateway(backend: FakeBackend) -> Gateway:
    """A gateway before it, where ``nick`` is an alias."""
    return Gateway(backend, settings=ALIASED)
