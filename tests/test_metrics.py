"""What is counted of an exchange that has ended, and under which labels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.task import Clock

from gatewayd.exchange import End, Exchange
from gatewayd.telemetry.metrics import LAG_SECONDS, Metrics

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
    made.models = {"m"}
    return made


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
        ("b", "complete", "m", CHAT, "2xx"): 2,
        ("b", "backend_error", "m", CHAT, "5xx"): 1,
    }
    assert samples(metrics, "gatewayd_request_duration_seconds_sum") == {(CHAT,): 6.0}


def test_what_clients_make_up_is_other(metrics: Metrics) -> None:
    for n in range(50):
        metrics(ended(End.REFUSED, model=f"made-up-{n}", route="", status=404, backends=[]))
    assert samples(metrics, "gatewayd_requests_total") == {
        ("", "refused", "other", "other", "4xx"): 50
    }


def test_a_stream_has_a_time_to_its_first_token_and_one_between_tokens(metrics: Metrics) -> None:
    metrics(ended(model="m", stream=True, first_event=10.5, events=4))
    metrics(ended(model="m", stream=True, first_event=10.25, events=1))
    metrics(ended(model="m", stream=True))  # it never began
    assert samples(metrics, "gatewayd_time_to_first_token_seconds_sum") == {("m",): 0.75}
    assert samples(metrics, "gatewayd_time_to_first_token_seconds_count") == {("m",): 2}
    assert samples(metrics, "gatewayd_inter_token_latency_seconds_sum") == {("m",): 0.5}
    assert samples(metrics, "gatewayd_inter_token_latency_seconds_count") == {("m",): 1}
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
    metrics(ended(backends=["a", "b"]))
    metrics(ended(backends=["a", "b"], route="/v1/models"))
    assert samples(metrics, "gatewayd_failovers_total") == {(): 1}


def test_states_are_looked_at_when_they_are_asked_for(metrics: Metrics) -> None:
    states = {"a": True, "b": False}
    metrics.watch(lambda: (3, 5, states))
    assert samples(metrics, "gatewayd_requests_in_flight") == {(): 3}
    assert samples(metrics, "gatewayd_connections") == {(): 5}
    assert samples(metrics, "gatewayd_backend_usable") == {("a",): 1, ("b",): 0}


def test_a_backend_that_is_gone_is_no_longer_shown(metrics: Metrics) -> None:
    states = {"a": True, "b": False}
    metrics.watch(lambda: (0, 0, states))
    metrics.text()
    del states["b"]
    assert samples(metrics, "gatewayd_backend_usable") == {("a",): 1}
    states["b"] = True
    assert samples(metrics, "gatewayd_backend_usable") == {("a",): 1, ("b",): 1}


def test_the_lag_is_how_late_the_loop_runs(metrics: Metrics, clock: Clock) -> None:
    metrics.start()
    clock.advance(LAG_SECONDS)
    assert samples(metrics, "gatewayd_event_loop_lag_seconds") == {(): 0}
    clock.advance(LAG_SECONDS + 0.25)
    assert samples(metrics, "gatewayd_event_loop_lag_seconds") == {(): 0.25}
    metrics.stop()
    assert clock.getDelayedCalls() == []


def test_every_name_begins_with_gatewayd_and_has_a_help_text(metrics: Metrics) -> None:
    for family in text_string_to_metric_families(metrics.text().decode()):
        assert family.name.startswith("gatewayd_") and family.documentation
