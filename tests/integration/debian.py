"""A clean Debian with systemd: made once, booted for each run in a namespace of its own.

The tree is made by debootstrap and kept in the user's cache folder, by a name that changes with
what it is made from. A boot writes into memory on top of it, so the tree stays clean and several
runs can share it. The network is the host's: servers here and there meet on the loopback address.

Commands come from docs/operations.rst, where each block of commands has a name.
"""

from __future__ import annotations

import faulthandler
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
import tomllib
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.integration.processes import STOP
from tests.programs import path_of

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "operations.rst"
SUITE = "bookworm"
#: What a Debian of the least size lacks and any server has.
PACKAGES = ("dbus", "logrotate", "systemd-sysv")
#: Seconds: what the slowest machine may take to make the tree.
PATIENCE = 900
#: Seconds: what a boot may take, which is two where nothing else runs.
BOOT = 90


class CannotBoot(Exception):
    """This machine cannot make or boot a Debian, for this reason."""


def page_commands(name: str) -> str:
    """The commands of the page that stand in the block of this name."""
    lines = PAGE.read_text().splitlines()
    (at,) = [number for number, line in enumerate(lines) if line.strip() == f":name: {name}"]
    margin = lines[at].partition(":")[0]
    block = takewhile(lambda line: not line or line.startswith(margin), lines[at + 1 :])
    return textwrap.dedent("\n".join(block)).strip() + "\n"


def _run(command: Sequence[str], what: str) -> None:
    """:raises CannotBoot: the command failed."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CannotBoot(f"{what} took more than {PATIENCE} s") from None
    if done.returncode:
        raise CannotBoot(f"{what} failed: {' '.join(done.stdout.split())[-300:]}")


def _cached(name: str, made_from: object, make: Callable[[Path], None]) -> Path:
    """A folder of the cache; made if it is not there yet, and only then under its name."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gatewayd-tests"
    digest = hashlib.sha256(repr(made_from).encode()).hexdigest()[:16]
    folder = cache / f"{name}-{digest}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix="partial-", dir=cache))
        try:
            make(partial)
            partial.chmod(0o755)
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial)
            raise
    return folder


def _tree() -> Path:
    """A Debian of the least size with what the page installs from Debian."""
    commands = page_commands("packages")

    def make(folder: Path) -> None:
        included = f"--include={','.join(PACKAGES)}"
        debootstrap = [path_of("debootstrap"), "--variant=minbase", included, SUITE, f"{folder}"]
        _run(debootstrap, "debootstrap")
        inside = [path_of("systemd-nspawn"), "--quiet", "--pipe", "--register=no", "--keep-unit"]
        inside += [f"--directory={folder}", "--setenv=DEBIAN_FRONTEND=noninteractive"]
        _run([*inside, "/bin/true"], "systemd-nspawn")
        try:
            _run([*inside, "/bin/sh", "-euxc", f"{commands}\napt-get clean"], "the page's command")
        except CannotBoot as error:  # this machine can: it has just made and entered the tree
            raise AssertionError(str(error)) from None

    return _cached("debian", (SUITE, PACKAGES, commands), make)


def _wheels(python: str) -> Path:
    """What pip needs to install gatewayd for this version of Python.

    They are fetched by this environment's pip, the way that the machine has set it up, so that pip
    inside the tree needs no network.
    """
    lock = ROOT / "requirements.lock"
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]

    def make(folder: Path) -> None:
        pip = [sys.executable, "-m", "pip", "download", "-qq", "--only-binary=:all:"]
        pip += [f"--python-version={python}", "--dest", str(folder)]
        _run([*pip, "--requirement", str(lock)], "pip download")
        _run([*pip, *build], "pip download")

    return _cached("wheels", (python, lock.read_text(), build), make)


def _source(folder: Path) -> Path:
    """What a clone has, as far as an install reads it."""
    copy = folder / "source"
    copy.mkdir()
    for name in ("deploy", "docs", "etc", "gatewayd", "twisted"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("LICENSE", "README.rst", "pyproject.toml", "requirements.lock", "setup.cfg"):
        shutil.copy(ROOT / name, copy / name)
    return copy


class Machine:
    """A Debian that has booted; a context manager that leaves nothing running.

    :param folder: an empty folder. ``/root/gatewayd`` of the machine is a copy of the source in it.
    """

    def __init__(self, folder: Path) -> None:
        # The tests' own guard against hanging knows 120 seconds, a first boot takes minutes; each
        # step here has a timeout of its own.
        faulthandler.cancel_dump_traceback_later()
        tree = _tree()
        (python,) = (tree / "usr" / "lib").glob("python3.*")
        wheels = _wheels(python.name.removeprefix("python"))
        self._log = folder / "boot.txt"
        #: The process number of its init, as the host counts.
        self.init = 0
        # systemd-nspawn shuts the machine down on SIGTERM, which the kernel sends if the tests die.
        self._command = [
            "setpriv", "--pdeathsig=TERM",
            path_of("systemd-nspawn"), "--quiet", "--boot", "--volatile=overlay", "--read-only",
            "--register=no", "--keep-unit", "--console=pipe", f"--directory={tree}",
            f"--machine=gatewayd-{os.getpid()}", f"--bind={_source(folder)}:/root/gatewayd",
            f"--bind-ro={wheels}:/root/wheels",
        ]  # fmt: skip

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + BOOT
        try:
            while self._state() not in ("running", "degraded"):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    said = " ".join(self._log.read_text(errors="replace").split())
                    raise CannotBoot(f"systemd-nspawn did not boot it: {said[-300:]}")
                time.sleep(0.1)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def run(self, commands: str, given: str = "") -> str:
        """Run commands as root in the folder of the source; return what they say.

        :param given: the standard input.
        :raises AssertionError: one of them failed.
        """
        status, said = self.attempt(commands, given)
        assert status == 0, f"{commands}\nended with {status}: {said}\n{self.journal()}"
        return said

    def attempt(self, commands: str, given: str = "") -> tuple[int, str]:
        """Like :meth:`run`, but return the exit status too, whatever it is."""
        done = subprocess.run(
            ["nsenter", f"--target={self.init}", "--all",
             "/bin/bash", "-euo", "pipefail", "-c", f"cd /root/gatewayd\n{commands}"],
            input=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={
                "HOME": "/root",
                "LANG": "C.UTF-8",
                "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "PIP_DISABLE_PIP_VERSION_CHECK": "1",
                "PIP_FIND_LINKS": "/root/wheels",
                "PIP_NO_INDEX": "1",
                "PIP_ROOT_USER_ACTION": "ignore",
                "SYSTEMD_COLORS": "0",
                "SYSTEMD_PAGER": "",
            },
            timeout=100,
            text=True,
            check=False,
        )  # fmt: skip
        return done.returncode, done.stdout

    def path(self, name: str) -> Path:
        """A file of the machine, as seen from here."""
        return Path(f"/proc/{self.init}/root") / name.removeprefix("/")

    def journal(self) -> str:
        """What gatewayd and systemd have said about the service of late."""
        return self.attempt("journalctl --no-pager -o cat -n 60 -u gatewayd.service")[1]

    def _state(self) -> str:
        """What systemd says of the whole system; empty as long as it says nothing."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        try:
            (init,) = children.read_text().split()
            self.init = int(init)
            return self.attempt("systemctl is-system-running --wait || true")[1].strip()
        except (OSError, ValueError):
            return ""

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
