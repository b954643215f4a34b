"""A clean Debian with systemd: made once, and booted for each run in its own namespace.

debootstrap makes the tree. It stays in the user's cache folder, under a name that depends on
everything that it is made from. A booted system writes to memory on top of the tree, so the tree
stays clean and several runs can share it. The system uses the network of the host, so servers on
both sides reach each other on the loopback address.

The commands are those of docs/operations.rst, where each block of commands has a name.
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
#: Packages of every server that the smallest Debian lacks.
PACKAGES = ("dbus", "logrotate", "systemd-sysv")
#: Seconds in which the slowest machine can make the tree.
MAKE_TREE = 900
#: Seconds for a boot; on an idle machine it takes two.
BOOT = 90


class CannotBoot(Exception):
    """This machine cannot make or boot a Debian, for this reason."""


def page_commands(name: str) -> str:
    """The commands in the block of the page that has this name."""
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
            timeout=MAKE_TREE,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CannotBoot(f"{what} took more than {MAKE_TREE} s") from None
    if done.returncode:
        raise CannotBoot(f"{what} failed: {' '.join(done.stdout.split())[-300:]}")


def _cached(name: str, made_from: object, make: Callable[[Path], None]) -> Path:
    """A folder of the cache. A new one gets its name only when it is complete."""
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
    """The smallest Debian, and the Debian packages that the page installs."""
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
        except CannotBoot as error:  # the machine works: it has just run a command in the tree
            raise AssertionError(str(error)) from None

    return _cached("debian", (SUITE, PACKAGES, commands), make)


def _wheels(python: str) -> Path:
    """The packages that pip needs to install gatewayd with this version of Python.

    The pip of this environment downloads them, with the configuration of this machine, so that the
    pip inside the tree needs no network.
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
    """The files of a clone that an installation reads."""
    copy = folder / "source"
    copy.mkdir()
    for name in ("deploy", "docs", "etc", "gatewayd", "twisted"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("LICENSE", "README.rst", "pyproject.toml", "requirements.lock", "setup.cfg"):
        shutil.copy(ROOT / name, copy / name)
    return copy


class Machine:
    """A booted Debian; the context manager shuts it down at the end.

    :param folder: an empty folder. It gets a copy of the source, ``/root/gatewayd`` of the machine.
    """

    def __init__(self, folder: Path) -> None:
        # pytest's faulthandler would end the run after 120 seconds. The first boot takes minutes,
        # and each step here has its own timeout.
        faulthandler.cancel_dump_traceback_later()
        tree = _tree()
        (python,) = (tree / "usr" / "lib").glob("python3.*")
        wheels = _wheels(python.name.removeprefix("python"))
        self._log = folder / "boot.txt"
        #: The process id of its init on the host.
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
                    output = " ".join(self._log.read_text(errors="replace").split())
                    raise CannotBoot(f"systemd-nspawn did not boot it: {output[-300:]}")
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
        """Run commands as root in the folder of the source; return their output.

        :param given: the standard input.
        :raises AssertionError: one of them failed.
        """
        status, output = self.attempt(commands, given)
        assert status == 0, f"{commands}\nended with {status}: {output}\n{self.journal()}"
        return output

    def attempt(self, commands: str, given: str = "") -> tuple[int, str]:
        """Like :meth:`run`, but return the exit status and the output."""
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
        """The path of a file of the machine on the host."""
        return Path(f"/proc/{self.init}/root") / name.removeprefix("/")

    def journal(self) -> str:
        """The last lines of gatewayd and systemd about the service."""
        return self.attempt("journalctl --no-pager -o cat -n 60 -u gatewayd.service")[1]

    def _state(self) -> str:
        """The state of the whole system, from systemd; empty while systemd does not answer."""
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
