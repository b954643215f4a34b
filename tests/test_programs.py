"""What happens to a test on a machine without a program that it runs."""

import pytest

from tests import programs
from tests.programs import needs


@pytest.fixture
def item(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> pytest.Item:
    """A test that needs two programs, of which this machine has only curl."""
    monkeypatch.setattr(programs, "find", {"curl": "/usr/bin/curl"}.get)
    marked: pytest.Item = request.node
    marked.add_marker(needs("curl", "groff"))
    return marked


def test_a_missing_program_skips_the_test_and_the_reason_names_it(
    item: pytest.Item, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception) as skipped:
        programs.check(item)
    assert skipped.value.msg == "needs groff (Debian: apt-get install groff-base)"


def test_a_missing_program_fails_the_test_with_ci(
    item: pytest.Item, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="needs groff"):
        programs.check(item)


def test_a_test_runs_if_all_its_programs_are_installed(
    item: pytest.Item, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "find", {"curl": "/c", "groff": "/g"}.get)
    programs.check(item)
