"""Metrics of several worker processes, added up.

prometheus_client keeps the values of each worker in files that all workers share (its multi-process
mode), so any worker can answer for all. The files carry the worker's number, so a worker that is
started again continues the counts of the one before it.

What a worker counts reaches its files every second, when that worker answers for all, and at its
stop (:meth:`.PrometheusMetrics.settle`). A worker that is killed with SIGKILL loses the counts of
its last second.
"""

from __future__ import annotations

import prometheus_client.values
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from gatewayd.wire.errors import MetricsUnavailable

#: The environment variable that names the folder of the shared files.
FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


def share(number: int) -> None:
    """Keep the values of this process in the shared files of worker ``number``."""
    prometheus_client.values.ValueClass = prometheus_client.values.MultiProcessValue(lambda: number)


def forget_worker(number: int, folder: str) -> None:
    """Leave out the gauges of worker ``number``, which has ended."""
    mark_process_dead(number, folder)


def shared_text(folder: str) -> bytes:
    """The metrics of all workers, in Prometheus' text format.

    :raises MetricsUnavailable: the folder was removed.
    """
    registry = CollectorRegistry()
    try:
        MultiProcessCollector(registry, folder)
    except ValueError:
        raise MetricsUnavailable(
            "The folder that the workers share their metrics in was removed."
        ) from None
    return generate_latest(registry)
