"""The side of systemd: the notify protocol, and sockets that are handed over."""

from __future__ import annotations

import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.integration.processes import START, Gateway


class Notices:
    """The receiver of the notify protocol: messages in their order, each a mapping."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path)
        self._socket.settimeout(START)

    def next(self, ignored: str = "WATCHDOG") -> dict[str, str]:
        while ignored in (message := self._receive()):
            pass
        return message

    def _receive(self) -> dict[str, str]:
        lines = self._socket.recv(4096).decode().split("\n")
        return dict(line.split("=", 1) for line in lines)

    def close(self) -> None:
        self._socket.close()


@contextmanager
def notices() -> Iterator[Notices]:
    with tempfile.TemporaryDirectory() as folder:  # a short path: a socket address has 108 bytes
        received = Notices(f"{folder}/notify")
        try:
            yield received
        finally:
            received.close()


#: A program that runs the command in its arguments and passes it descriptors as systemd does.
ACTIVATE = """
import fcntl, os, sys
given = [fcntl.fcntl(int(n), fcntl.F_DUPFD_CLOEXEC, 100) for n in sys.argv[1].split(",")]
for number, descriptor in enumerate(given, 3):
    os.dup2(descriptor, number, inheritable=True)
names = ":".join(["gatewayd"] * len(given))
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(given)), LISTEN_FDNAMES=names)
os.execv(sys.argv[2], sys.argv[2:])
"""


def activated(
    listening: socket.socket,
    folder: Path,
    *options: str,
    environment: Mapping[str, str] | None = None,
    more: Sequence[socket.socket] = (),
) -> Gateway:
    """A gateway that inherits this socket and more."""
    folder.mkdir()
    descriptors = [each.fileno() for each in (listening, *more)]
    return Gateway(
        *options,
        folder=folder,
        port=listening.getsockname()[1],
        environment=environment,
        before=[sys.executable, "-c", ACTIVATE, ",".join(map(str, descriptors))],
        descriptors=descriptors,
    )
