"""What the daemon tells systemd, where systemd wants to hear it.

Source: sd_notify(3), systemd.service(5) ``Type=notify-reload`` and ``WatchdogSec``.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

from twisted.logger import Logger

_log = Logger()


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
        self._send("READY=1", f"PID={os.getpid()}", f"STATUS={status}")

    def reloading(self) -> None:
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        self._send("STOPPING=1", f"STATUS={status}")

    def alive(self) -> None:
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
                sock.sendto("\n".join(lines).encode(), self._address)
        except OSError as e:
            _log.warn("systemd could not be told {what}: {why}", what=lines[0], why=e.strerror)
