"""A client that requests /healthz at intervals and measures the delays, under load of others.

It runs in its own process, so the work of the tests does not delay it. The time during which the
gateway or this process waited for a processor is subtracted: the kernel counts it (``schedstat`` in
proc(5)), and the gateway is not responsible for it.

Run as a program: ``healthprobe.py PORT PID EVERY``; it ends with its standard input.
"""

from __future__ import annotations

import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from tests.integration.processes import Server

REQUEST = b"GET /healthz HTTP/1.1\r\nHost: gateway\r\n\r\n"
OK = b'{"status": "ok"}'


def stolen_seconds(pid: int) -> float:
    """Seconds that a process and this thread have waited for a processor, ready to run."""
    nanoseconds = 0
    for task in (f"{pid}", "thread-self"):
        with open(f"/proc/{task}/schedstat") as file:
            nanoseconds += int(file.read().split()[1])
    return nanoseconds / 1e9


class HealthProbe:
    """The probe as a child process; a context manager.

    :param every: seconds between two requests.
    :ivar delays: seconds from each request to its answer; known at the end.
    """

    def __init__(self, gateway: Server, every: float = 0.05) -> None:
        self.delays: list[float] = []
        program = [sys.executable, "-IS", __file__]
        self._process = subprocess.Popen(
            [*program, f"{gateway.port}", f"{gateway.pid}", f"{every}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "started\n"
        return self

    def __exit__(self, *_: object) -> None:
        output = self._process.communicate(timeout=30)[0]
        assert self._process.returncode == 0
        self.delays += [float(delay) for delay in output.split()]

    def at(self, part: float) -> float:
        """The quantile of the delays at ``part``, which is between 0 and 1."""
        return sorted(self.delays)[int((len(self.delays) - 1) * part)]


def delays(port: int, pid: int, every: float) -> Iterator[float]:
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(30)
        ended: list[object] = []
        while not ended:
            waited, began = stolen_seconds(pid), time.monotonic()
            client.sendall(REQUEST)
            answer = b""
            while not answer.endswith(OK):
                data = client.recv(4096)
                assert data, answer
                answer += data
            took = time.monotonic() - began
            yield max(0.0, took - (stolen_seconds(pid) - waited))
            ended, _, _ = select.select([sys.stdin], [], [], every)


if __name__ == "__main__":
    asked = delays(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
    first = next(asked)
    print("started", flush=True)
    print(first, *asked)
