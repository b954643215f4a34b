"""What the daemon tells systemd, where systemd wants to hear it, and the sockets it may be given.

Source: sd_notify(3), sd_listen_fds(3), systemd.service(5) ``Type=notify-reload`` and
``WatchdogSec``.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

from twisted.logger import Logger

from . import reloading

_log = Logger()

#: How long a message may wait until systemd has read those before it: it takes few at a time.
PATIENCE_SECONDS = 1.0

#: The number of the first descriptor that systemd hands over.
_FIRST = 3


def inherited_sockets(environ: Mapping[str, str] | None = None) -> list[int]:
    """The descriptors of the sockets that systemd has opened for this process.

    Twisted's own reader finds none where the sockets have no names.
    """
    given = _first_environment() if environ is None else environ
    pid, count = given.get("LISTEN_PID", ""), given.get("LISTEN_FDS", "")
    ours = pid == str(os.getpid()) and count.isdigit()
    return list(range(_FIRST, _FIRST + int(count))) if ours else []


def _first_environment() -> Mapping[str, str]:
    """The environment as it was: importing ``twisted.internet.endpoints`` takes these out of it.

    Plugins of others may do that before any code here runs, but the kernel remembers.
    """
    try:
        with open("/proc/self/environ", "rb") as file:
            lines = os.fsdecode(file.read()).split("\0")
    except OSError:
        lines = []
    return {**dict(line.split("=", 1) for line in lines if "=" in line), **os.environ}


class Systemd:
    """
    :param environ: where systemd says how to reach it; without that, nothing is sent.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "").replace("@", "\0", 1)
        own = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._watchdog = int(environ.get("WATCHDOG_USEC", "0")) / 1e6 if own else 0.0

    @property
    def watchdog_seconds(self) -> float:
        """How often to say that the loop turns; 0 if systemd does not ask."""
        return self._watchdog / 2

    def ready(self, status: str) -> None:
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def reloaded(self, status: str, failed: bool) -> None:
        """Ready again, with the new settings or with the old ones.

        :param failed: the new settings had a mistake.
        """
        kept = "the last reload failed, the settings stay as they were; " if failed else ""
        self.ready(kept + status)
        reloading.answer(failed)

    def stopping(self, status: str) -> None:
        self._send("STOPPING=1", f"STATUS={status}")

    def alive(self) -> None:
        """One that is lost is no loss: the next comes soon."""
        self._send("WATCHDOG=1", patience=0)

    def _send(self, *lines: str, patience: float = PATIENCE_SECONDS) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(patience)
                sock.sendto("\n".join(lines).encode(), self._address)
        except OSError as e:
            _log.warn("systemd could not be told {what}: {why}", what=lines[0], why=e.strerror or e)
