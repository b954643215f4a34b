"""The page of metrics: states, the event loop's lag, and what every metric has."""

from __future__ import annotations

import platform
from typing import Any

import pytest
import twisted
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.task import Clock, LoopingCall

from gatewayd import __version__
from gatewayd.exchange import End
from gatewayd.telemetry.metrics import LAG_SECONDS, BackendState, PrometheusMetrics, Snapshot
from gatewayd.wire.errors import Truncated
from tests.memory import FakeBackend, Gateway, chunk, completion
from tests.observing import ended
from tests.observing import samples as samples_in


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metrics(clock: Clock) -> PrometheusMetrics:
    made = PrometheusMetrics(clock)
    made.watch(snapshot)
    return made


def snapshot(**more: Any) -> Snapshot:
    return Snapshot(**{"in_flight": 0, "connections": 0, "backends": {}, **more})


def samples(metrics: PrometheusMetrics, name: str) -> dict[tuple[str, ...], float]:
    """A metric's values after the page was made."""
    metrics.text()
    return samples_in(metrics.registry, name)


def test_requests_are_counted_with_the_backends_and_models_of_the_snapshot(
    metrics: PrometheusMetrics,
) -> None:
    backends = {"a": BackendState(True, 0)}
    metrics.watch(lambda: snapshot(models=["m"], globs=["llama-*"], backends=backends))
    assert samples(metrics, "gatewayd_failovers_total") == {("a",): 0}
    assert samples(metrics, "gatewayd_ends_total")["a", "complete"] == 0
    for model in ("m", "llama-3", "else"):
        metrics(ended(End.COMPLETE, model=model, backends=["a"]))
    found = samples(metrics, "gatewayd_requests_total")
    assert {labels[2]: count for labels, count in found.items()} == {
        "m": 1,
        "llama-*": 1,
        "other": 1,
    }


def test_lost_lines_are_counted_by_log_from_zero(metrics: PrometheusMetrics) -> None:
    assert samples(metrics, "gatewayd_log_lines_lost_total") == {("access",): 0, ("daemon",): 0}
    metrics.count_access_line_lost()
    assert samples(metrics, "gatewayd_log_lines_lost_total") == {("access",): 1, ("daemon",): 0}


def test_the_page_shows_the_states_of_the_moment(metrics: PrometheusMetrics) -> None:
    states = {"a": BackendState(True, 2), "b": BackendState(False, 0)}
    metrics.watch(lambda: snapshot(in_flight=3, connections=5, backends=states))
    assert samples(metrics, "gatewayd_requests_in_flight") == {(): 3}
    assert samples(metrics, "gatewayd_connections") == {(): 5}
    assert samples(metrics, "gatewayd_backend_usable") == {("a",): 1, ("b",): 0}
    assert samples(metrics, "gatewayd_backend_requests_in_flight") == {("a",): 2, ("b",): 0}
    states["a"] = BackendState(True, 7)
    assert samples(metrics, "gatewayd_backend_requests_in_flight") == {("a",): 7, ("b",): 0}


def test_a_backend_that_was_removed_is_no_longer_shown(metrics: PrometheusMetrics) -> None:
    healthy = BackendState(True, 1)
    states = {"a": healthy, "b": BackendState(False, 1)}
    metrics.watch(lambda: snapshot(backends=states))
    metrics.text()
    del states["b"]
    assert samples(metrics, "gatewayd_backend_usable") == {("a",): 1}
    assert samples(metrics, "gatewayd_backend_requests_in_flight") == {("a",): 1}
    states["b"] = healthy
    assert samples(metrics, "gatewayd_backend_usable") == {("a",): 1, ("b",): 1}


def test_only_backends_that_are_asked_show_whether_they_told(metrics: PrometheusMetrics) -> None:
    states = {"a": BackendState(True, 0), "b": BackendState(True, 0)}
    told = {"a": True, "b": False}
    metrics.watch(lambda: snapshot(backends=states, discovered=told))
    assert samples(metrics, "gatewayd_backend_discovered") == {("a",): 1, ("b",): 0}
    del told["a"]
    assert samples(metrics, "gatewayd_backend_discovered") == {("b",): 0}
    assert samples(metrics, "gatewayd_backend_usable") == {("a",): 1, ("b",): 1}


def test_the_lag_is_how_late_the_loop_runs(metrics: PrometheusMetrics, clock: Clock) -> None:
    loop = LoopingCall(metrics.tick)
    loop.clock = clock
    loop.start(LAG_SECONDS)
    clock.advance(LAG_SECONDS)
    assert samples(metrics, "gatewayd_event_loop_lag_seconds") == {(): 0}
    clock.advance(LAG_SECONDS + 0.25)
    assert samples(metrics, "gatewayd_event_loop_lag_seconds") == {(): 0.25}
    clock.advance(3 * LAG_SECONDS + 0.25)
    assert samples(metrics, "gatewayd_event_loop_lag_seconds") == {(): 2.5}
    clock.advance(0.5)
    assert samples(metrics, "gatewayd_event_loop_lag_seconds") == {(): 0}


def test_every_name_begins_with_gatewayd_or_process_and_has_a_help_text(
    metrics: PrometheusMetrics,
) -> None:
    for family in text_string_to_metric_families(metrics.text().decode()):
        assert family.name.startswith(("gatewayd_", "process_")) and family.documentation


def test_the_versions_are_shown(metrics: PrometheusMetrics) -> None:
    (labels,) = samples(metrics, "gatewayd_build_info")
    assert labels == (platform.python_version(), twisted.__version__, __version__)


def test_counters_add_up_per_backend_model_and_caller(metrics: PrometheusMetrics) -> None:
    metrics.watch(lambda: snapshot(models=["m"]))
    backend = FakeBackend()
    gateway = Gateway(backend)
    for _ in range(3):
        gateway.chat(model="m")
        backend.calls[-1].whole(completion(usage={"prompt_tokens": 7, "completion_tokens": 5}))
    gateway.chat(model="m", stream=True)
    backend.calls[-1].head()
    backend.calls[-1].event(chunk("a"))
    backend.calls[-1].end(Truncated("x"))
    for exchange in gateway.ended:
        exchange.caller = "alice"
        metrics(exchange)
    page = metrics.text().decode()
    labels = 'backend="fake",caller="alice"'
    assert f'gatewayd_tokens_total{{{labels},kind="prompt",model="m"}} 21.0' in page
    assert f'gatewayd_tokens_total{{{labels},kind="completion",model="m"}} 15.0' in page
    assert 'gatewayd_streams_without_usage_total{backend="fake",model="m"} 1.0' in page
