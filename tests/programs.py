"""Programs of the system that some tests run, which no Python package brings along.

A test names what it runs: ``@needs("haproxy")``. On a machine without that program the test is
skipped, and the reason names the Debian package; with ``CI=true`` it fails instead.
``python -m tests.programs`` prints the packages that this machine lacks.
"""

from __future__ import annotations

import os
import shutil

import pytest

#: Each program, and the Debian package that has it.
PACKAGES = {
    "curl": "curl",
    "debootstrap": "debootstrap",
    "groff": "groff-base",
    "haproxy": "haproxy",
    "promtool": "prometheus",
    "systemd-analyze": "systemd",
    "systemd-nspawn": "systemd-container",
}


def needs(*programs: str) -> pytest.MarkDecorator:
    """Mark a test, or as ``pytestmark`` a module, that runs these programs."""
    assert set(programs) <= PACKAGES.keys(), programs
    return pytest.mark.needs(*programs)


def find(program: str) -> str | None:
    """The path of a program; ``/usr/sbin`` is searched too, which users often lack."""
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")


def path_of(program: str) -> str:
    """The path of a program that the test has marked as needed."""
    found = find(program)
    assert found is not None, f"{program} is missing: mark this test with needs({program!r})"
    return found


def check(item: pytest.Item) -> None:
    """Skip a test whose programs are missing; with ``CI=true``, fail it."""
    programs = [name for mark in item.iter_markers("needs") for name in mark.args]
    missing = [name for name in dict.fromkeys(programs) if find(name) is None]
    if not missing:
        return
    packages = " ".join(PACKAGES[name] for name in missing)
    reason = f"needs {', '.join(missing)} (Debian: apt-get install {packages})"
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


if __name__ == "__main__":
    print(*(package for program, package in PACKAGES.items() if find(program) is None))
