"""Programs and libraries of the system that some tests need and that no Python package installs.

A test names its programs: ``@needs("haproxy")``. On a machine without that program the test is
skipped, and the reason names the Debian package; with ``CI=true`` it fails instead. A fixture that
needs one calls :func:`require`. ``python -m tests.programs`` prints the packages that are missing.
"""

from __future__ import annotations

import ctypes
import os
import shutil

import pytest

#: Each program or library, and the Debian package that has it.
PACKAGES = {
    "curl": "curl",
    "debootstrap": "debootstrap",
    "groff": "groff-base",
    "haproxy": "haproxy",
    "libgomp.so.1": "libgomp1",
    "promtool": "prometheus",
    "systemd-analyze": "systemd",
    "systemd-nspawn": "systemd-container",
}


def needs(*programs: str) -> pytest.MarkDecorator:
    """Mark a test, or as ``pytestmark`` a module, that runs these programs."""
    assert set(programs) <= PACKAGES.keys(), programs
    return pytest.mark.needs(*programs)


def find(program: str) -> str | None:
    """The path of a program, or the name of a library; None if it is missing.

    ``/usr/sbin`` is searched too; it is often missing from a user's PATH.
    """
    if ".so." in program:
        try:
            ctypes.CDLL(program)
        except OSError:
            return None
        return program
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")


def path_of(program: str) -> str:
    """The path of a program that the test has marked as needed."""
    found = find(program)
    assert found is not None, f"{program} is missing: mark this test with needs({program!r})"
    return found


def require(*programs: str) -> None:
    """Skip the test that runs now if one of these is missing; with ``CI=true``, fail it.

    A contributor may lack HAProxy, say, and must be able to run all other tests. ``.ci/run``
    installs these programs where it may, so there a missing one is a fault.
    """
    missing = [name for name in programs if find(name) is None]
    if not missing:
        return
    packages = " ".join(PACKAGES[name] for name in missing)
    reason = f"needs {', '.join(missing)} (Debian: apt-get install {packages})"
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def check(item: pytest.Item) -> None:
    """Require the programs that a test is marked with."""
    require(*dict.fromkeys(n for mark in item.iter_markers("needs") for n in mark.args))


if __name__ == "__main__":
    print(*(package for program, package in PACKAGES.items() if find(program) is None))
