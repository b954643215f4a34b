"""Servers as child processes: started, waited for, stopped.

The output of a process goes into a file, so that no full pipe can block the process.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from tests.programs import require

T = TypeVar("T")

#: Seconds in which a server must answer its health check, and in which it must stop.
START = 30
STOP = 15

#: Seconds for what happens at once, on a busy machine.
AT_ONCE = 1.0

BIN = Path(sys.executable).parent

TWISTD = (f"{BIN / 'twistd'}", "--nodaemon", "--pidfile=")

TWIST = (f"{BIN / 'twist'}",)

#: An error of the gateway itself in its output. The traceback of a backend is quoted within a line.
UNHANDLED = re.compile(r"^\s*Traceback|Unhandled", re.MULTILINE)


def wait_for(predicate: Callable[[], T | None], timeout: float, what: str) -> T:
    """Wait until ``predicate`` returns a true value, and return that value."""
    end = time.monotonic() + timeout
    while not (result := predicate()):
        assert time.monotonic() < end, f"not within {timeout} s: {what}"
        time.sleep(0.002)
    return result


def free_port() -> int:
    """A loopback port on which nothing was listening a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def clean_environment() -> dict[str, str]:
    """The environment of this process without the variables that configure a gateway."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in {"PORT", "BACKEND_URL"} and not name.startswith("GATEWAYD_")
    }


class Server:
    """An HTTP server in its own process. As a context manager it stops the process at the end.

    :param arguments: the command line.
    :param port: the loopback port that the command line makes it listen on.
    :param health: the path that answers 200 once the server is ready.
    :param folder: an empty folder; the working folder of the process, with its output.
    :param trust: the server speaks TLS, and this context verifies its certificate.
    :param descriptors: file descriptors of this process that the server inherits.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        port: int,
        health: str,
        folder: Path,
        environment: Mapping[str, str] | None = None,
        trust: ssl.SSLContext | None = None,
        descriptors: Sequence[int] = (),
    ) -> None:
        self.port = port
        self.url = f"{'https' if trust else 'http'}://127.0.0.1:{port}"
        self._trust = trust
        self._health = self.url + health
        self._output = folder / "output.txt"
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**clean_environment(), **(environment or {})},
                pass_fds=descriptors,
            )
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        try:
            self._wait_until_it_serves()
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def output(self) -> str:
        """Everything that the process has printed so far."""
        return self._output.read_text(errors="replace")

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def send(self, number: int) -> None:
        """Send a signal unless the process has ended."""
        if self.runs:
            self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def wait(self) -> int:
        """Wait until the process ends; return its exit status."""
        try:
            return self._process.wait(STOP)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError(f"still there after {STOP} s:\n{self.output}") from None

    def stop(self) -> int:
        """Send SIGTERM and wait until the process ends; return its exit status."""
        self.send(signal.SIGTERM)
        return self.wait()

    def _wait_until_it_serves(self) -> None:
        deadline = time.monotonic() + START
        while not answers(self._health, self._trust):
            assert self.runs, f"ended with status {self._process.returncode}:\n{self.output}"
            assert time.monotonic() < deadline, f"not serving after {START} s:\n{self.output}"
            time.sleep(0.05)


class Gateway(Server):
    """gatewayd, started as users start it: ``twistd gatewayd`` in the foreground.

    :param options: the command line after ``gatewayd``, without the port.
    :param runner: the command line before ``gatewayd``.
    :param port: the port to listen on; by default any free port.
    :param config: the text of its ini file.
    :param before: a command that is given the whole command line as its arguments.
    """

    def __init__(
        self,
        *options: str,
        folder: Path,
        runner: Sequence[str] = TWISTD,
        port: int = 0,
        config: str | None = None,
        environment: Mapping[str, str] | None = None,
        trust: ssl.SSLContext | None = None,
        before: Sequence[str] = (),
        descriptors: Sequence[int] = (),
    ) -> None:
        port = port or free_port()
        self.ini = folder / "gatewayd.ini"
        if config is not None:
            self.ini.write_text(config)
            options = ("--config", str(self.ini), *options)
        super().__init__(
            [*before, *runner, "gatewayd", "--port", str(port), *options],
            port=port,
            health="/healthz",
            folder=folder,
            environment=environment,
            trust=trust,
            descriptors=descriptors,
        )

    def memory(self, which: str = "VmRSS") -> int:
        """Resident bytes; with ``VmHWM`` the peak since :meth:`reset_peak_memory`."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition(f"{which}:")[2].split()[0]) * 1024

    def reset_peak_memory(self) -> int:
        """Begin to measure ``VmHWM`` anew; return the resident bytes now."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        return self.memory()

    def cpu_seconds(self) -> float:
        words = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def descriptors(self) -> int:
        """The number of open file descriptors."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def workers(self) -> list[int]:
        """The process ids of its workers."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    def wait_for_workers(self) -> None:
        """Wait until two workers serve."""
        wait_for(lambda: "2 workers serve" in self.output, START, "two workers")

    def reload(self, config: str | None = None) -> str:
        """Write the ini file if given, send SIGHUP, and return what is printed until the end."""
        if config is not None:
            new = self.ini.with_suffix(".new")  # a reload that is under way reads a whole file
            new.write_text(config)
            new.replace(self.ini)
        before = len(self.output)
        self.send(signal.SIGHUP)
        deadline = time.monotonic() + STOP
        while not any(word in self.output[before:] for word in ("reloaded:", "stay as they were")):
            assert self.runs and time.monotonic() < deadline, self.output
            time.sleep(0.002)
        return self.output[before:]

    def stop(self) -> int:
        """Stop it; check that it exits with 0, or was killed, and that it logged no traceback."""
        status = super().stop()
        assert status in (0, -signal.SIGKILL), f"exit status {status}:\n{self.output}"
        assert not UNHANDLED.search(self.output), self.output
        return status


class LlamaServer(Server):
    """llama.cpp's own HTTP server with one model.

    :param model: a GGUF file.
    :param options: the number of its slots; ``embeddings`` or ``reranking``.
    :param alias: the name of the model in ``/v1/models`` and in replies.
    :param port: the port to listen on; by default any free port.
    """

    def __init__(self, model: Path, *options: str, alias: str, folder: Path, port: int = 0) -> None:
        require("libgomp.so.1")  # the wheel loads it from the system
        port = port or free_port()
        script = Path(__file__).with_name("llamaserver.py")
        super().__init__(
            [sys.executable, str(script), str(model), str(port), alias, *options],
            port=port,
            health="/health",
            folder=folder,
        )


def answers(url: str, trust: ssl.SSLContext | None = None) -> bool:
    """Whether a GET of this URL returns 200."""
    # Without a proxy: one of the environment would be used for the loopback address too.
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust)
    )
    try:
        with opener.open(url, timeout=5):
            return True
    except urllib.error.HTTPError as refusal:
        refusal.close()
        return False
    except OSError:
        return False


def refuses(port: int) -> bool:
    """Whether connections to this loopback port are refused."""
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    return False
