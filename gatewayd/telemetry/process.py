"""What a process uses, under the names that Prometheus' own client libraries give it.

prometheus_client's ``ProcessCollector`` says nothing where ``/proc/stat`` is hidden, as it is
under systemd's ``ProcSubset=pid``, and nothing of other workers.
"""

from __future__ import annotations

import os
import resource
import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge

_PAGE = resource.getpagesize()

#: Looks at :meth:`ProcessMetrics.look_sometimes` between two that count: listing ten thousand
#: descriptors takes some milliseconds.
_EVERY = 10


class ProcessMetrics:
    """Sums over the workers, but for descriptors: there the worker that has the most is shown."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, mode: Any) -> Gauge:
            return Gauge(name, text, registry=registry, multiprocess_mode=mode)

        memory, descriptors = "process_resident_memory_bytes", "process_open_fds"
        self._memory = gauge(memory, "Resident memory.", "livesum")
        self._descriptors = gauge(descriptors, "Open file descriptors.", "livemax")
        self._most = gauge("process_max_fds", "File descriptors allowed.", "livemin")
        began = gauge("process_start_time_seconds", "When it started, in Unix time.", "livemin")
        began.set(time.time() - _age())
        self._cpu = Counter("process_cpu_seconds", "Processor time.", registry=registry)
        self._counted = 0.0
        self._looks = 0

    def look_sometimes(self) -> None:
        self._looks += 1
        if self._looks % _EVERY == 0:
            self.look()

    def look(self) -> None:
        used = time.process_time()
        self._cpu.inc(max(0.0, used - self._counted))
        self._counted = used
        self._most.set(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        try:
            self._descriptors.set(len(os.listdir("/proc/self/fd")))
            with open("/proc/self/statm", encoding="ascii") as file:
                self._memory.set(int(file.read().split()[1]) * _PAGE)
        except OSError:  # no /proc here, or no descriptor is left to read it with
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
