"""Our histogram against prometheus_client's own: the same page, also for several workers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, disable_created_metrics, enable_created_metrics

from gatewayd.telemetry.histogram import Histogram, Observations

#: Fills one histogram of each kind with the same observations and prints both pages.
BOTH = """
import os, sys
import prometheus_client
from prometheus_client import CollectorRegistry, generate_latest
from gatewayd.telemetry.histogram import Histogram, Observations
from gatewayd.telemetry.multiprocess import FOLDER_VARIABLE, share, shared_text

def page(name, fill):
    registry = CollectorRegistry()
    if FOLDER_VARIABLE in os.environ:
        folder = os.path.join(sys.argv[1], name)
        os.mkdir(folder)
        os.environ[FOLDER_VARIABLE] = folder
        share(0)
        fill(registry)
        return shared_text(folder)
    fill(registry)
    return generate_latest(registry)

BOUNDS, LABELS = (0.5, 1, 2.5), ("route", "backend")
OBSERVED = {("/v1/a", "x"): (0.0, 0.5, 0.51, 1, 600.0), ("b", ""): (2.5, 2.5), ("c", "x"): (3,)}

def theirs(registry):
    made = prometheus_client.Histogram("h", "A text.", LABELS, buckets=BOUNDS, registry=registry)
    for labels, values in OBSERVED.items():
        for value in values:
            made.labels(*labels).observe(value)

def ours(registry):
    made = Histogram("h", "A text.", BOUNDS, LABELS, registry)
    for labels, values in OBSERVED.items():
        for half in values[::2], values[1::2]:
            observations = Observations(BOUNDS)
            for value in half:
                observations.add(value)
            made.add(labels, observations)

print(page("theirs", theirs).decode(), page("ours", ours).decode(), sep="===")
"""


@pytest.mark.parametrize("shared", [False, True], ids=["one process", "workers"])
def test_the_page_is_that_of_their_histogram(tmp_path: Path, shared: bool) -> None:
    environment = os.environ | ({"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)} if shared else {})
    command = [sys.executable, "-c", BOTH, str(tmp_path)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    pages = re.sub(r"(_created\S*) \S+", r"\1 then", done.stdout.decode().rstrip())
    theirs, ours = (page.strip() for page in pages.split("==="))
    assert ours == theirs and 'h_bucket{backend="x",le="1.0",route="/v1/a"} 4.0' in ours


def test_when_a_series_was_created_is_shown_unless_that_is_switched_off() -> None:
    registry = CollectorRegistry()
    made = Histogram("h", "A text.", (1,), (), registry)
    made.add((), Observations(made.bounds))

    def names() -> list[str]:
        return [sample.name for family in registry.collect() for sample in family.samples]

    assert "h_created" in names()
    disable_created_metrics()
    try:
        assert "h_created" not in names()
    finally:
        enable_created_metrics()


def test_two_metrics_of_one_name_are_refused() -> None:
    registry = CollectorRegistry()
    Histogram("h", "A text.", (1,), (), registry)
    with pytest.raises(ValueError, match="Duplicated"):
        Histogram("h", "Another.", (1,), (), registry)
