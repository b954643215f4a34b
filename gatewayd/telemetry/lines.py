"""Writes whole lines to a file, a pipe or standard output without ever blocking.

A full disk, a pipe that nobody reads or a stopped terminal must not stop the daemon. Pipes and
terminals are therefore opened with ``O_NONBLOCK``, and sockets (systemd's journal) are sent to with
``MSG_DONTWAIT``. A line that cannot be written at once is dropped and counted.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import stat
import sys
import time
from collections.abc import Callable

from twisted.logger import Logger

_log = Logger()

#: The path that stands for standard output.
STDOUT = "-"

#: Bytes that a pipe holds until its reader reads; the kernel's default is 64 KiB.
PIPE_BYTES = 1024 * 1024

#: Seconds after a recovery in which no new failure is reported. A pipe that is read too slowly
#: fails and recovers many times in a second.
QUIET_SECONDS = 10.0

_CREATE = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_REASONS = {
    errno.EAGAIN: "it is full, because its reader does not read",
    errno.ENXIO: "no program reads it",
    errno.EPIPE: "its reader has closed it",
}


class LineWriter:
    """Writes lines to one destination.

    The first failure is reported. So is the recovery, with the number of lines that were lost.

    :param path: a file or FIFO, :data:`STDOUT`, or empty for nowhere.
    :param name: names the destination in messages, such as ``access log /var/log/access.log``.
    :param count_lost: called for each line that is dropped.
    """

    def __init__(self, path: str, name: str, count_lost: Callable[[], None]) -> None:
        self._path = path
        self._name = name
        self._count_lost = count_lost
        self._lost = 0  # since the last message
        self._failing = False
        self._quiet_until = 0.0
        self._torn = False  # the last line was written in part
        self._fd: int | None = None
        self._write_some: Callable[[int, bytes], int] = os.write
        self.reopen()

    def reopen(self) -> None:
        """Open the file again, after it was renamed."""
        self.close()
        self._torn = False
        try:
            self._open()
        except OSError as e:
            self._report_failure(e)

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def write(self, line: bytes) -> None:
        """Write one line, which ends with a newline, or drop it."""
        if not self._path:
            return
        if self._fd is None:
            self.reopen()
        if self._fd is None:
            self._drop()
            return
        if self._torn:
            line = b"\n" + line
        try:
            written = self._write_some(self._fd, line)
        except OSError as e:
            self._drop()
            self._report_failure(e)
            return
        if written != len(line):
            self._torn = True
            self._drop()
            self._report_failure(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
            return
        self._torn = False
        if self._failing:
            self._report_recovery()

    # -- opening -------------------------------------------------------------------------------

    def _open(self) -> None:
        if self._path == STDOUT:
            # twistd replaces sys.stdout with a logger, so write to the descriptor itself.
            if sys.__stdout__ is not None:
                self._open_stdout(sys.__stdout__.fileno())
        elif self._path:
            self._fd = os.open(self._path, _CREATE, 0o640)
            self._write_some = os.write
            _enlarge(self._fd)

    def _open_stdout(self, stdout: int) -> None:
        """Open the file behind standard output again, where that is possible.

        Other programs may share its open file description, so O_NONBLOCK must not be set on it.
        """
        mode = os.fstat(stdout).st_mode
        self._write_some = os.write
        if stat.S_ISREG(mode):  # must share its offset with the other programs
            self._fd = os.dup(stdout)
        elif stat.S_ISSOCK(mode):
            self._fd, self._write_some = os.dup(stdout), _send
        else:
            try:
                self._fd = os.open(f"/proc/self/fd/{stdout}", _CREATE & ~os.O_CREAT)
            except OSError:  # another user's pipe, or no /proc
                self._fd, self._write_some = os.dup(stdout), _write_if_writable
            _enlarge(self._fd)

    # -- failures ------------------------------------------------------------------------------

    def _drop(self) -> None:
        self._lost += 1
        self._count_lost()

    def _report_failure(self, e: OSError) -> None:
        if self._failing or time.monotonic() < self._quiet_until:
            return
        self._failing = True
        _log.error(
            "{name}: {reason}; lines are dropped until it can be written again",
            name=self._name,
            reason=_REASONS.get(e.errno or 0, e.strerror),
        )

    def _report_recovery(self) -> None:
        lost, self._lost, self._failing = self._lost, 0, False
        self._quiet_until = time.monotonic() + QUIET_SECONDS
        _log.info(
            "{name}: can be written again; {lost} lines were lost", name=self._name, lost=lost
        )


def _enlarge(fd: int) -> None:
    """Let a pipe hold more, so that no line is lost when its reader pauses for a moment."""
    try:
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:  # the user's limit for pipes is reached; the smaller pipe works
        return


def _send(fd: int, data: bytes) -> int:
    with socket.socket(fileno=os.dup(fd)) as sock:
        return sock.send(data, socket.MSG_DONTWAIT)


def _write_if_writable(fd: int, data: bytes) -> int:
    """Write to a pipe in blocking mode. When poll calls it writable, PIPE_BUF bytes fit."""
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    written = 0
    while written < len(data) and poller.poll(0):
        written += os.write(fd, data[written : written + select.PIPE_BUF])
    if not written:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return written
