"""``gatewayd reload PID``: tell a running daemon to reload, and wait for the result.

SIGHUP alone has no answer, so a mistake in the settings would be seen in the log only. The command
therefore binds a datagram socket whose name contains the daemon's process ID, sends SIGHUP and
waits (:func:`reload`). After each reload the daemon sends one word to the socket of that name, if
there is one (:func:`answer`). The kernel reports which process has sent a datagram, so no other
process can answer in the daemon's place.

Source: unix(7), abstract sockets and ``SO_PASSCRED``; Linux only.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from contextlib import suppress

#: Seconds that a daemon gets: it reads files, and its workers must start to use the settings.
TIMEOUT_SECONDS = 60.0

_RELOADED, _FAILED = b"reloaded", b"failed"
_CREDENTIALS = struct.Struct("3i")


class ReloadError(Exception):
    """The daemon did not reload, for this reason."""


def answer(failed: bool) -> None:
    """Called by the daemon after each reload. Does nothing if no command waits.

    It also does nothing if no file descriptor is left: the reload is over, and systemd knows.
    """
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.sendto(_FAILED if failed else _RELOADED, _name(os.getpid()))


def reload(pid: int, timeout: float = TIMEOUT_SECONDS) -> None:
    """Have a daemon reload, and wait until it has.

    :param pid: the daemon's main process.
    :param timeout: seconds to wait for its answer.
    :raises ReloadError: it did not reload, or did not answer in time.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        try:
            receiver.bind(_name(pid))
            os.kill(pid, signal.SIGHUP)
        except OSError as error:
            raise ReloadError(f"process {pid} cannot be told: {error.strerror}") from None
        if _wait(receiver, pid, time.monotonic() + timeout) == _FAILED:
            raise ReloadError("the settings stay as they were; the daemon's log says why")


def _wait(receiver: socket.socket, pid: int, deadline: float) -> bytes:
    """The word that this process sends."""
    while True:
        receiver.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            word, ancillary, _, _ = receiver.recvmsg(16, socket.CMSG_SPACE(_CREDENTIALS.size))
        except TimeoutError:
            raise ReloadError(f"process {pid} has not answered; look at its log") from None
        for _, kind, data in ancillary:
            if kind == socket.SCM_CREDENTIALS and _CREDENTIALS.unpack(data)[0] == pid:
                return word


def _name(pid: int) -> str:
    return f"\0gatewayd-reload-{pid}"
