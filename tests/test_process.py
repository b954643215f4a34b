"""Memory, processor time and descriptors on the page of metrics."""

from __future__ import annotations

import resource
import time

from prometheus_client import CollectorRegistry

from gatewayd.telemetry.process import ProcessMetrics
from tests.observing import samples


def test_memory_processor_time_and_descriptors_are_shown() -> None:
    registry = CollectorRegistry()
    process = ProcessMetrics(registry)

    def value(name: str) -> float:
        process.update()
        return samples(registry, name)[()]

    assert 10_000_000 < value("process_resident_memory_bytes") < 10_000_000_000
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert 3 <= value("process_open_fds") <= value("process_max_fds") == most
    assert time.time() - 3600 < value("process_start_time_seconds") <= time.time()
    before = value("process_cpu_seconds_total")
    assert before > 0
    sum(range(3_000_000))
    assert before < value("process_cpu_seconds_total") <= time.process_time()


def test_one_of_ten_calls_updates() -> None:
    registry = CollectorRegistry()
    process = ProcessMetrics(registry)
    for _ in range(9):
        process.update_sometimes()
    assert samples(registry, "process_max_fds") == {(): 0}
    process.update_sometimes()
    assert samples(registry, "process_max_fds")[()] > 0
