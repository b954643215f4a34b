"""systemd's protocols: notifications of the daemon's state, and sockets that systemd hands over.

Source: sd_notify(3), sd_listen_fds(3), systemd.service(5) ``Type=notify-reload`` and
``WatchdogSec``.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

from twisted.logger import Logger

from . import reload_command

_log = Logger()

#: Seconds that a message may wait until systemd has read those before it: its queue is short.
SEND_TIMEOUT = 1.0

#: The first descriptor that systemd hands over.
_FIRST = 3


def inherited_sockets(environ: Mapping[str, str] | None = None) -> list[int]:
    """The descriptors of the sockets that systemd has opened for this process.

    Twisted's ``ListenFDs`` finds none if the sockets have no names.

    :param environ: by default, the environment with which this process was started.
    """
    variables = _initial_environment() if environ is None else environ
    pid, count = variables.get("LISTEN_PID", ""), variables.get("LISTEN_FDS", "")
    ours = pid == str(os.getpid()) and count.isdigit()
    return list(range(_FIRST, _FIRST + int(count))) if ours else []


def _initial_environment() -> Mapping[str, str]:
    """The environment as it was at the start of the process, which the kernel keeps.

    Importing ``twisted.internet.endpoints`` removes systemd's variables, and another plugin may
    import it before any code here runs.
    """
    try:
        with open("/proc/self/environ", "rb") as file:
            lines = os.fsdecode(file.read()).split("\0")
    except OSError:
        lines = []
    return {**dict(line.split("=", 1) for line in lines if "=" in line), **os.environ}


class Systemd:
    """Sends notifications to systemd; does nothing if systemd does not want any.

    :param environ: has systemd's variables.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "").replace("@", "\0", 1)
        own = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._watchdog = int(environ.get("WATCHDOG_USEC", "0")) / 1e6 if own else 0.0

    @property
    def watchdog_seconds(self) -> float:
        """Seconds between two calls of :meth:`alive`; 0 if systemd expects none."""
        return self._watchdog / 2

    def ready(self, status: str) -> None:
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def reloaded(self, status: str, failed: bool) -> None:
        """Ready again. ``gatewayd reload`` is told too, if it waits.

        :param failed: whether the old settings stay, because the new ones cannot be used.
        """
        kept = "the last reload failed, the settings stay as they were; " if failed else ""
        self.ready(kept + status)
        reload_command.answer(failed)

    def stopping(self, status: str) -> None:
        self._send("STOPPING=1", f"STATUS={status}")

    def alive(self) -> None:
        """Say that the event loop runs. A lost message does no harm: the next comes soon."""
        self._send("WATCHDOG=1", timeout=0)

    def _send(self, *lines: str, timeout: float = SEND_TIMEOUT) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(timeout)
                sock.sendto("\n".join(lines).encode(), self._address)
        except OSError as e:
            _log.warn("systemd could not be told {what}: {why}", what=lines[0], why=e.strerror or e)
