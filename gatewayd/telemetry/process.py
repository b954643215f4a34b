"""Memory, processor time and descriptors, under the names of Prometheus' own client libraries.

prometheus_client's ``ProcessCollector`` shows nothing where ``/proc/stat`` is hidden, as under
systemd's ``ProcSubset=pid``, and nothing of other workers.
"""

from __future__ import annotations

import os
import resource
import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge

_PAGE_BYTES = resource.getpagesize()

#: Calls of :meth:`ProcessMetrics.update_sometimes` for one update: listing ten thousand descriptors
#: takes some milliseconds.
_CALLS = 10


class ProcessMetrics:
    """With several workers, memory and processor time are sums, and the number of open descriptors
    is the highest of any worker.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, mode: Any) -> Gauge:
            return Gauge(name, text, registry=registry, multiprocess_mode=mode)

        self._memory = gauge("process_resident_memory_bytes", "Resident memory.", "livesum")
        self._descriptors = gauge("process_open_fds", "Open file descriptors.", "livemax")
        self._most = gauge("process_max_fds", "File descriptors allowed.", "livemin")
        started = gauge("process_start_time_seconds", "When it started, in Unix time.", "livemin")
        started.set(time.time() - _age())
        self._cpu = Counter("process_cpu_seconds", "Processor time.", registry=registry)
        self._cpu_counted = 0.0
        self._calls = 0

    def update_sometimes(self) -> None:
        """Update at every tenth call."""
        self._calls += 1
        if self._calls % _CALLS == 0:
            self.update()

    def update(self) -> None:
        used = time.process_time()
        self._cpu.inc(max(0.0, used - self._cpu_counted))
        self._cpu_counted = used
        self._most.set(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        try:
            self._descriptors.set(len(os.listdir("/proc/self/fd")))
            with open("/proc/self/statm", encoding="ascii") as file:
                self._memory.set(int(file.read().split()[1]) * _PAGE_BYTES)
        except OSError:  # there is no /proc, or no descriptor is left to read it with
            return


def _age() -> float:
    """Seconds since this process was started."""
    try:
        with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
    except OSError:
        return 0.0
    since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
    return since_boot - ticks / os.sysconf("SC_CLK_TCK")
