"""Programs under test as child processes: started, waited for, stopped, and their last words read.

What a program prints goes into a file, so that no pipe can fill up and block it.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

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


class Server:
    """An HTTP server in a process of its own: a context manager that leaves nothing running.

    :param arguments: the command line.
    :param port: where the command line tells it to listen, on the loopback address.
    :param health: the path that answers 200 once it serves.
    :param folder: an empty folder; the process runs there and its output lies there.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        port: int,
        health: str,
        folder: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
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
            )

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

    def stop(self) -> int:
        """Send SIGTERM, wait for the end, and return the exit status."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(STOP)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError(f"still there {STOP} s after SIGTERM:\n{self.output}") from None

    def _wait_until_it_serves(self) -> None:
        deadline = time.monotonic() + START
        while not answers(self._health):
            if self._process.poll() is not None:
                raise AssertionError(
                    f"ended with status {self._process.returncode}:\n{self.output}"
                )
            if time.monotonic() > deadline:
                raise AssertionError(f"not serving after {START} s:\n{self.output}")
            time.sleep(0.05)


class Gateway(Server):
    """gatewayd, started as its user starts it: ``twistd gatewayd`` in the foreground.

    :param options: what stands after ``gatewayd`` on the command line, besides the port.
    """

    def __init__(self, *options: str, folder: Path) -> None:
        port = free_port()
        command = [BIN / "twistd", "--nodaemon", "--pidfile=", "gatewayd", "--port", port, *options]
        super().__init__(
            [str(word) for word in command], port=port, health="/healthz", folder=folder
        )

    def stop(self) -> int:
        """Stop it, and hold it to its promises: it exits with 0 and no error went unhandled."""
        status = super().stop()
        assert status == 0, f"exit status {status}:\n{self.output}"
        for word in ("Traceback", "Unhandled"):
            assert word not in self.output, self.output
        return status


class LlamaServer(Server):
    """llama.cpp's own HTTP server with one model.

    :param model: a GGUF file.
    :param alias: the name the model goes by in ``/v1/models`` and in replies.
    """

    def __init__(self, model: Path, *, alias: str, folder: Path) -> None:
        port = free_port()
        script = Path(__file__).with_name("llamaserver.py")
        super().__init__(
            [sys.executable, str(script), str(model), str(port), alias],
            port=port,
            health="/health",
            folder=folder,
        )


def answers(url: str) -> bool:
    """Whether a GET of this URL is answered with 200."""
    # No proxy: one named in the environment would be asked for the loopback address, too.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5):
            return True
    except urllib.error.HTTPError as refusal:
        refusal.close()
        return False
    except OSError:
        return False
