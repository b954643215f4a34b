"""Processor time and memory of all processes of a program, from ``/proc``.

A program is started as a session of its own (:func:`benchmarks.peers.start`), so its processes are
all processes of that session.
"""

from __future__ import annotations

import os
import resource
import time


def processes(session: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as f:
                    fields = f.read().rpartition(b")")[2].split()
            except OSError:
                continue  # the process has ended
            if int(fields[3]) == session and fields[0] != b"Z":
                found.append(int(name))
    return found


def cpu(session: int) -> float:
    """Seconds of processor time, user and system, of all threads of all its processes.

    The clock that ``clock_getcpuclockid(3)`` names counts what ``/proc/PID/stat`` does, in
    nanoseconds instead of hundredths of a second.
    """
    total = 0.0
    for pid in processes(session):
        try:
            total += time.clock_gettime((~pid << 3) | 2)
        except OSError:
            total += _ticks(pid)
    return total


def _ticks(pid: int) -> float:
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            fields = f.read().rpartition(b")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss(session: int) -> int:
    """Bytes of resident memory of all its processes; shared pages count once for each process."""
    total = 0
    for pid in processes(session):
        try:
            with open(f"/proc/{pid}/statm", "rb") as f:
                total += int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            continue
    return total


def cpu_of_self() -> float:
    return time.process_time()


def file_limit() -> int:
    """How many open files a process may have at most, up to those that are needed here."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)


def raise_file_limit() -> None:
    """Allow thousands of open sockets in this process and in its children."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    want = file_limit()
    if soft != resource.RLIM_INFINITY and soft < want:
        resource.setrlimit(resource.RLIMIT_NOFILE, (want, hard))
