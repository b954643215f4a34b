"""Programs under test as child processes: started, waited for, stopped, and their last words read.

What a program prints goes into a file, so that no pipe can fill up and block it.
"""

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
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.programs import require

#: Seconds: what a program may take to answer its health check, and to go after it was told to.
START = 30
STOP = 15

BIN = Path(sys.executable).parent


def free_port() -> int:
    """A TCP port of the loopback address that nobody listened on a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def clean_environment() -> dict[str, str]:
    """This environment without what would configure a gateway."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in {"PORT", "BACKEND_URL"} and not name.startswith("GATEWAYD_")
    }


#: An error of the gateway's own in its log. A line there may quote a backend's traceback.
UNHANDLED = re.compile(r"^\s*Traceback|Unhandled", re.MULTILINE)


class Server:
    """An HTTP server in a process of its own: a context manager that leaves nothing running.

    :param arguments: the command line.
    :param port: where the command line tells it to listen, on the loopback address.
    :param health: the path that answers 200 once it serves.
    :param folder: an empty folder; the process runs there and its output lies there.
    :param trust: says that it speaks TLS, and how to know it by its certificate.
    :param descriptors: of this process that it gets too.
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
        """Everything it has printed until now."""
        return self._output.read_text(errors="replace")

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def send(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.runs:
            self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def wait(self) -> int:
        """Wait for the end, and return the exit status."""
        try:
            return self._process.wait(STOP)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError(f"still there after {STOP} s:\n{self.output}") from None

    def stop(self) -> int:
        """Send SIGTERM, wait for the end, and return the exit status."""
        self.send(signal.SIGTERM)
        return self.wait()

    def _wait_until_it_serves(self) -> None:
        deadline = time.monotonic() + START
        while not answers(self._health, self._trust):
            if self._process.poll() is not None:
                raise AssertionError(
                    f"ended with status {self._process.returncode}:\n{self.output}"
                )
            if time.monotonic() > deadline:
                raise AssertionError(f"not serving after {START} s:\n{self.output}")
            time.sleep(0.05)


TWISTD = (f"{BIN / 'twistd'}", "--nodaemon", "--pidfile=")
TWIST = (f"{BIN / 'twist'}",)


class Gateway(Server):
    """gatewayd, started as its user starts it: ``twistd gatewayd`` in the foreground.

    :param options: what stands after ``gatewayd`` on the command line, besides the port.
    :param runner: what stands before it.
    :param port: where it listens; by default any free port.
    :param config: the text of its ini file.
    :param before: a command that starts it, in front of its own.
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

    def reload(self, config: str | None = None) -> str:
        """Write the ini file anew, send SIGHUP, and return what is said until that was done."""
        if config is not None:
            self.ini.write_text(config)
        before = len(self.output)
        self.send(signal.SIGHUP)
        deadline = time.monotonic() + STOP
        while not any(word in self.output[before:] for word in ("reloaded:", "stay as they were")):
            assert self.runs and time.monotonic() < deadline, self.output
            time.sleep(0.002)
        return self.output[before:]

    def stop(self) -> int:
        """Stop it, and hold it to its promises: it exits with 0 and no error went unhandled.

        One that was killed is not held to the first.
        """
        status = super().stop()
        assert status in (0, -signal.SIGKILL), f"exit status {status}:\n{self.output}"
        assert not UNHANDLED.search(self.output), self.output
        return status


class LlamaServer(Server):
    """llama.cpp's own HTTP server with one model.

    :param model: a GGUF file.
    :param options: ``embeddings`` for a server that gives these.
    :param alias: the name the model goes by in ``/v1/models`` and in replies.
    :param port: where it listens; by default any free port.
    """

    def __init__(self, model: Path, *options: str, alias: str, folder: Path, port: int = 0) -> None:
        require("libgomp.so.1")  # the wheel with the server takes it from the system
        port = port or free_port()
        script = Path(__file__).with_name("llamaserver.py")
        super().__init__(
            [sys.executable, str(script), str(model), str(port), alias, *options],
            port=port,
            health="/health",
            folder=folder,
        )


def answers(url: str, trust: ssl.SSLContext | None = None) -> bool:
    """Whether a GET of this URL is answered with 200."""
    # No proxy: one named in the environment would be asked for the loopback address, too.
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
