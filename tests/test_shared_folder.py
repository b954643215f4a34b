"""The folder that a supervisor and its workers share."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from gatewayd.daemon.shared_folder import SharedFolder


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_removed_folder_no_longer_exists(temporary: Path) -> None:
    folder = SharedFolder()
    (Path(folder.path) / "file").touch()
    folder.remove()
    assert list(temporary.iterdir()) == []


def test_a_folder_whose_supervisor_was_killed_is_removed_by_the_next(temporary: Path) -> None:
    killed = SharedFolder()
    os.close(killed.lock)  # as the kernel does
    next_one = SharedFolder()
    assert [str(path) for path in temporary.iterdir()] == [next_one.path]
    next_one.remove()


def test_a_folder_that_a_worker_still_locks_is_kept(temporary: Path) -> None:
    first = SharedFolder()
    lock_of_a_worker = os.dup(first.lock)
    os.close(first.lock)
    second = SharedFolder()
    assert {str(path) for path in temporary.iterdir()} == {first.path, second.path}
    os.close(lock_of_a_worker)
    second.remove()
