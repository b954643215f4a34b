"""Workers that count in the same files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gatewayd.telemetry.multiprocess import FOLDER_VARIABLE, forget_worker, shared_text
from gatewayd.wire.errors import MetricsUnavailable

#: A worker in a process of its own: it counts one exchange and prints the counts of all workers.
WORKER = """
import sys
from twisted.internet.task import Clock
from gatewayd.exchange import End, Exchange
from gatewayd.telemetry.metrics import PrometheusMetrics, Snapshot
from gatewayd.telemetry.multiprocess import share
share(int(sys.argv[1]))
metrics = PrometheusMetrics(Clock())
exchange = Exchange(id="r", started=10.0, client="", on_end=metrics)
exchange.finish(End.COMPLETE, 12.0)
metrics.watch(lambda: Snapshot(1, 1, {}))
sys.stdout.buffer.write(metrics.text())
"""


def test_a_worker_that_is_started_again_continues_the_counts(tmp_path: Path) -> None:
    environment = {**os.environ, FOLDER_VARIABLE: str(tmp_path)}
    counted = []
    for number in (0, 1, 0, 1, 0):
        command = [sys.executable, "-c", WORKER, str(number)]
        page = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout
        values = {
            sample.name: sample.value
            for family in text_string_to_metric_families(page.decode())
            for sample in family.samples
            if sample.labels.get("end", "complete") == "complete"
        }
        counted.append((values["gatewayd_ends_total"], values["gatewayd_requests_in_flight"]))
        forget_worker(number, str(tmp_path))
    assert counted == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1)]
    assert len(list(tmp_path.iterdir())) == 4  # counters and histograms of two


def test_a_removed_shared_folder_gives_an_error_answer(tmp_path: Path) -> None:
    with pytest.raises(MetricsUnavailable) as caught:
        shared_text(str(tmp_path / "gone"))
    assert caught.value.status == 503 and str(tmp_path) not in caught.value.message
