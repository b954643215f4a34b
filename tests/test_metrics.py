"""What is counted of an exchange that has ended, and under which labels."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import twisted
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.task import Clock

from gatewayd import __version__
from gatewayd.exchange import End, Exchange
from gatewayd.telemetry.metrics import (
    LAG_SECONDS,
    SHARED,
    BackendState,
    Metrics,
    Snapshot,
    forget_worker,
    shared_text,
)
from gatewayd.wire.errors import MetricsUnavailable

CHAT = "/v1/chat/completions"


def ended(end: End = End.COMPLETE, **more: Any) -> Exchange:
    exchange = Exchange(id="r", started=10.0, client="", on_end=lambda _: None)
    exchange.route, exchange.status, exchange.backends = CHAT, 200, ["b"]
    for name, value in more.items():
        setattr(exchange, name, value)
    exchange.finish(end, 12.0)
    return exchange


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metrics(clock: Clock) -> Metrics:
    made = Metrics(clock)
    made.watch(lambda: snapshot(models=["m"]))
    return made


def snapshot(**more: Any) -> Snapshot:
    return Snapshot(**{"in_flight": 0, "connections": 0, "backends": {}, **more})


def samples(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    """A metric's values by the values of its labels, in the order of the labels' names."""
    found = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            if sample.name == name:
                found[tuple(v for _, v in sorted(sample.labels.items()))] = sample.value
    return found


def test_a_request_is_counted_by_route_status_end_backend_and_model(metrics: Metrics) -> None:
    metrics(ended(model="m"))
    metrics(ended(model="m"))
    metrics(ended(End.BACKEND_ERROR, model="m", status=502))
    assert samples(metrics, "gatewayd_requests_total") == {
        ("b", "complete", "m", CHAT, "200"): 2,
        ("b", "backend_error", "m", CHAT, "502"): 1,
    }
    assert samples(metrics, "gatewayd_request_duration_seconds_sum") == {("b", CHAT): 6.0}


def test_a_model_that_a_glob_names_is_counted_under_the_glob(metrics: Metrics) -> None:
    metrics.watch(lambda: snapshot(models=["llama-3"], globs=["llama-*", "*-instruct"]))
    for model in ("llama-3", "llama-4", "llama-5", "phi-instruct", "else"):
        metrics(ended(model=model))
    found = samples(metrics, "gatewayd_requests_total")
    assert {labels[2]: count for labels, count in found.items()} == {
        "llama-3": 1,
        "llama-*": 2,
        "*-instruct": 1,
        "other": 1,
    }


def test_every_end_of_every_backend_is_there_before_the_first_request(metrics: Metrics) -> None:
    metrics.watch(lambda: snapshot(backends={"a": BackendState(True, 0)}))
    expected = {(backend, str(end)): 0 for backend in ("", "a") for end in End}
    assert samples(metrics, "gatewayd_ends_total") == expected
    assert samples(metrics, "gatewayd_failovers_total") == {("a",): 0}
    assert samples(metrics, "gatewayd_log_lines_lost_total") == {("access",): 0, ("daemon",): 0}
    metrics(ended(End.INTERNAL, backends=[]))
    metrics(ended(End.BACKEND_TRUNCATED, backends=["a"]))
    found = samples(metrics, "gatewayd_ends_total")
    assert found["", "internal"] == found["a", "backend_truncated"] == sum(found.values()) / 2 == 1


def test_what_clients_make_up_is_other(metrics: Metrics) -> None:
    for n in range(50):
        metrics(ended(End.REFUSED, model=f"made-up-{n}", route="", status=404, backends=[]))
    assert samples(metrics, "gatewayd_requests_total") == {
        ("", "refused", "other", "other", "404"): 50
    }


def test_a_stream_has_a_time_to_its_first_token_and_one_between_tokens(metrics: Metrics) -> None:
    metrics(ended(model="m", stream=True, first_event=10.5, events=4))
    metrics(ended(model="m", stream=True, first_event=10.25, events=1))
    metrics(ended(model="m", stream=True))  # it never began
    assert samples(metrics, "gatewayd_time_to_first_token_seconds_sum") == {("b", "m"): 0.75}
    assert samples(metrics, "gatewayd_time_to_first_token_seconds_count") == {("b", "m"): 2}
    assert samples(metrics, "gatewayd_inter_token_latency_seconds_sum") == {("b", "m"): 0.5}
    assert samples(metrics, "gatewayd_inter_token_latency_seconds_count") == {("b", "m"): 1}
    assert samples(metrics, "gatewayd_events_total") == {("b",): 5}


def test_tokens_are_those_that_the_backend_counted(metrics: Metrics) -> None:
    usage = SimpleNamespace(prompt_tokens=3, completion_tokens=5)
    metrics(ended(model="m", caller="alice", usage=usage))
    metrics(ended(model="m", usage=SimpleNamespace(prompt_tokens=-7, completion_tokens=1)))
    metrics(ended(model="m", stream=True, first_event=11.0, events=9))
    assert samples(metrics, "gatewayd_tokens_total") == {
        ("b", "alice", "prompt", "m"): 3,
        ("b", "alice", "completion", "m"): 5,
        ("b", "", "prompt", "m"): 0,
        ("b", "", "completion", "m"): 1,
    }
    assert samples(metrics, "gatewayd_streams_without_usage_total") == {("b", "m"): 1}


def test_a_further_backend_is_a_failover_and_a_list_of_models_is_none(metrics: Metrics) -> None:
    metrics(ended(backends=["a", "b", "c"]))
    metrics(ended(backends=["b", "c"]))
    metrics(ended(backends=["a", "b"], route="/v1/models"))
    assert samples(metrics, "gatewayd_failovers_total") == {("a",): 1, ("b",): 2}


def test_states_are_looked_at_when_they_are_asked_for(metrics: Metrics) -> None:
    states = {"a": BackendState(True, 2), "b": BackendState(False, 0)}
    metrics.watch(lambda: snapshot(in_flight=3, connections=5, backends=states))
    assert samples(metrics, "gatewayd_requests_in_flight") == {(): 3}
    assert samples(metrics, "gatewayd_connections") == {(): 5}
    assert samples(metrics, "gatewayd_backend_usable") == {("a",): 1, ("b",): 0}
    assert samples(metrics, "gatewayd_backend_requests_in_flight") == {("a",): 2, ("b",): 0}


def test_a_backend_that_is_gone_is_no_longer_shown(metrics: Metrics) -> None:
    well = BackendState(True, 1)
    states = {"a": well, "b": BackendState(False, 1)}
    metrics.watch(lambda: snapshot(backends=states))
    metrics.text()
    del states["b"]
    assert samples(metrics, "gatewayd_backend_usable") == {("a",): 1}
    assert samples(metrics, "gatewayd_backend_requests_in_flight") == {("a",): 1}
    states["b"] = well
    assert samples(metrics, "gatewayd_backend_usable") == {("a",): 1, ("b",): 1}


def test_the_lag_is_how_late_the_loop_runs(metrics: Metrics, clock: Clock) -> None:
    metrics.start()
    clock.advance(LAG_SECONDS)
    assert samples(metrics, "gatewayd_event_loop_lag_seconds") == {(): 0}
    clock.advance(LAG_SECONDS + 0.25)
    assert samples(metrics, "gatewayd_event_loop_lag_seconds") == {(): 0.25}
    metrics.stop()
    assert clock.getDelayedCalls() == []


def test_every_name_begins_with_gatewayd_or_process_and_has_a_help_text(
    metrics: Metrics,
) -> None:
    for family in text_string_to_metric_families(metrics.text().decode()):
        assert family.name.startswith(("gatewayd_", "process_")) and family.documentation


def test_what_runs_and_what_it_uses_is_shown(metrics: Metrics) -> None:
    (labels,) = samples(metrics, "gatewayd_build_info")
    assert labels == (platform.python_version(), twisted.__version__, __version__)
    (memory,) = samples(metrics, "process_resident_memory_bytes").values()
    assert 10_000_000 < memory < 10_000_000_000
    (descriptors,) = samples(metrics, "process_open_fds").values()
    (most,) = samples(metrics, "process_max_fds").values()
    assert 3 <= descriptors <= most == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    (began,) = samples(metrics, "process_start_time_seconds").values()
    assert time.time() - 3600 < began <= time.time()
    (before,) = samples(metrics, "process_cpu_seconds_total").values()
    assert before > 0
    sum(range(3_000_000))
    (after,) = samples(metrics, "process_cpu_seconds_total").values()
    assert before < after <= time.process_time()


#: A worker in a process of its own: counts an exchange and says what all workers have counted.
WORKER = """
import sys
from twisted.internet.task import Clock
from gatewayd.exchange import End, Exchange
from gatewayd.telemetry import metrics
metrics.share(int(sys.argv[1]))
made = metrics.Metrics(Clock())
exchange = Exchange(id="r", started=10.0, client="", on_end=made)
exchange.finish(End.COMPLETE, 12.0)
made.watch(lambda: metrics.Snapshot(1, 1, {}))
sys.stdout.buffer.write(made.text())
"""


def test_a_worker_that_is_started_again_counts_on_in_the_same_files(tmp_path: Path) -> None:
    environment = {**os.environ, SHARED: str(tmp_path)}
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


def test_a_shared_folder_that_is_gone_is_an_answer_and_not_a_fault(tmp_path: Path) -> None:
    with pytest.raises(MetricsUnavailable) as caught:
        shared_text(str(tmp_path / "gone"))
    assert caught.value.status == 503 and str(tmp_path) not in caught.value.message
