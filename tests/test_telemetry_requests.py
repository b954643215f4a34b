"""What is counted of an exchange that has ended, and under which labels."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from gatewayd.exchange import End, Tried
from gatewayd.telemetry.requests import MAX_MODELS, RequestMetrics
from tests.observing import ended
from tests.observing import samples as samples_in

CHAT = "/v1/chat/completions"


def samples(
    metrics: RequestMetrics, registry: CollectorRegistry, name: str
) -> dict[tuple[str, ...], float]:
    """A metric's values after what was counted is settled."""
    metrics.settle()
    return samples_in(registry, name)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> RequestMetrics:
    made = RequestMetrics(registry)
    made.know_models(["m"], ())
    return made


def test_a_request_is_counted_by_route_status_end_backend_and_model(
    metrics: RequestMetrics, registry: CollectorRegistry
) -> None:
    metrics.count(ended(model="m"))
    metrics.count(ended(model="m"))
    metrics.count(ended(End.BACKEND_ERROR, model="m", status=502))
    assert samples(metrics, registry, "gatewayd_requests_total") == {
        ("b", "complete", "m", CHAT, "200"): 2,
        ("b", "backend_error", "m", CHAT, "502"): 1,
    }
    assert samples(metrics, registry, "gatewayd_request_duration_seconds_sum") == {("b", CHAT): 6.0}


def test_the_bytes_of_tunnels_are_counted_for_each_direction(
    metrics: RequestMetrics, registry: CollectorRegistry
) -> None:
    metrics.count(ended(bytes_in=10, bytes_out=200))
    metrics.count(ended(bytes_in=0, bytes_out=5))
    metrics.count(ended(bytes_out=1000))
    found = samples(metrics, registry, "gatewayd_tunnel_bytes_total")
    assert found == {("b", "in"): 10, ("b", "out"): 205}


def test_a_model_that_a_glob_matches_is_counted_under_the_glob(
    metrics: RequestMetrics, registry: CollectorRegistry
) -> None:
    metrics.know_models(["llama-3"], ["llama-*", "*-instruct"])
    for model in ("llama-3", "llama-4", "llama-5", "phi-instruct", "else"):
        metrics.count(ended(model=model))
    found = samples(metrics, registry, "gatewayd_requests_total")
    assert {labels[2]: count for labels, count in found.items()} == {
        "llama-3": 1,
        "llama-*": 2,
        "*-instruct": 1,
        "other": 1,
    }


def test_of_many_models_only_the_first_become_labels(
    metrics: RequestMetrics, registry: CollectorRegistry
) -> None:
    names = [f"model-{n}" for n in range(MAX_MODELS + 2)]
    metrics.know_models(names, ())
    for name in names:
        metrics.count(ended(model=name))
    found = samples(metrics, registry, "gatewayd_requests_total")
    counts = {labels[2]: count for labels, count in found.items()}
    assert len(counts) == MAX_MODELS + 1 and counts["other"] == 2


def test_every_end_of_every_backend_is_there_before_the_first_request(
    metrics: RequestMetrics, registry: CollectorRegistry
) -> None:
    metrics.begin_at_zero("a")
    expected = {(backend, str(end)): 0 for backend in ("", "a") for end in End}
    assert samples(metrics, registry, "gatewayd_ends_total") == expected
    assert samples(metrics, registry, "gatewayd_failovers_total") == {("a",): 0}
    metrics.count(ended(End.INTERNAL, backends=[]))
    metrics.count(ended(End.BACKEND_TRUNCATED, backends=["a"]))
    found = samples(metrics, registry, "gatewayd_ends_total")
    assert found["", "internal"] == found["a", "backend_truncated"] == sum(found.values()) / 2 == 1


def test_models_that_only_clients_name_are_counted_as_other(
    metrics: RequestMetrics, registry: CollectorRegistry
) -> None:
    for n in range(50):
        made_up = f"made-up-{n}"
        metrics.count(ended(End.REFUSED, model=made_up, route="", status=404, backends=[]))
    assert samples(metrics, registry, "gatewayd_requests_total") == {
        ("", "refused", "other", "other", "404"): 50
    }


def test_a_stream_has_a_time_to_its_first_token_and_one_between_tokens(
    metrics: RequestMetrics, registry: CollectorRegistry
) -> None:
    metrics.count(ended(model="m", stream=True, first_event=10.5, events=4))
    metrics.count(ended(model="m", stream=True, first_event=10.25, events=1))
    metrics.count(ended(model="m", stream=True))  # it never began
    first, between = "gatewayd_time_to_first_token_seconds", "gatewayd_inter_token_latency_seconds"
    assert samples(metrics, registry, f"{first}_sum") == {("b", "m"): 0.75}
    assert samples(metrics, registry, f"{first}_count") == {("b", "m"): 2}
    assert samples(metrics, registry, f"{between}_sum") == {("b", "m"): 0.5}
    assert samples(metrics, registry, f"{between}_count") == {("b", "m"): 1}
    assert samples(metrics, registry, "gatewayd_events_total") == {("b",): 5}


def test_tokens_are_those_that_the_backend_counted(
    metrics: RequestMetrics, registry: CollectorRegistry
) -> None:
    usage = SimpleNamespace(prompt_tokens=3, completion_tokens=5)
    metrics.count(ended(model="m", caller="alice", usage=usage))
    odd = SimpleNamespace(prompt_tokens=-7, completion_tokens=1)
    metrics.count(ended(model="m", usage=odd))
    metrics.count(ended(model="m", stream=True, first_event=11.0, events=9))
    assert samples(metrics, registry, "gatewayd_tokens_total") == {
        ("b", "alice", "prompt", "m"): 3,
        ("b", "alice", "completion", "m"): 5,
        ("b", "", "prompt", "m"): 0,
        ("b", "", "completion", "m"): 1,
    }
    assert samples(metrics, registry, "gatewayd_streams_without_usage_total") == {("b", "m"): 1}


def test_a_further_backend_is_a_failover_and_a_list_of_models_is_none(
    metrics: RequestMetrics, registry: CollectorRegistry
) -> None:
    metrics.count(ended(backends=["a", "b", "c"]))
    metrics.count(ended(backends=["b", "c"]))
    metrics.count(ended(backends=["a", "b"], route="/v1/models"))
    assert samples(metrics, registry, "gatewayd_failovers_total") == {("a",): 1, ("b",): 2}


def test_each_attempt_is_counted_by_its_backend_and_its_own_end(
    metrics: RequestMetrics, registry: CollectorRegistry
) -> None:
    failed = Tried("a", "backend_timeout", "patience", 1.0, 2.0)
    gone = Tried("b", "backend_unreachable", "upstream_dns", 2.0, 3.0)
    metrics.count(ended(backends=["a", "b"], tried=[failed]))
    metrics.count(ended(End.BACKEND_ERROR, backends=["a", "b"], tried=[failed, gone]))
    metrics.count(ended(backends=["b"]))
    metrics.count(ended(backends=["a", "b"], route="/v1/models"))  # asks each for its list
    metrics.count(ended(End.REFUSED, backends=[]))
    found = samples(metrics, registry, "gatewayd_attempts_total")
    assert {labels: count for labels, count in found.items() if count} == {
        ("a", "backend_timeout"): 2,
        ("b", "complete"): 2,
        ("b", "backend_unreachable"): 1,
    }


def test_attempts_of_a_backend_begin_at_zero(
    metrics: RequestMetrics, registry: CollectorRegistry
) -> None:
    metrics.begin_at_zero("a")
    expected = {("a", str(end)): 0 for end in End}
    assert samples(metrics, registry, "gatewayd_attempts_total") == expected


def test_requests_are_counted_by_the_priority_of_the_backend_that_was_asked_last(
    metrics: RequestMetrics, registry: CollectorRegistry
) -> None:
    name = "gatewayd_requests_by_priority_total"
    metrics.know_priorities({"a": 0, "b": 1})
    assert samples(metrics, registry, name) == {("0",): 0, ("1",): 0}
    metrics.count(ended(backends=["a"]))
    metrics.count(ended(backends=["a", "b"]))
    metrics.count(ended(backends=["b"]))
    metrics.count(ended(End.REFUSED, backends=[]))
    assert samples(metrics, registry, name) == {("0",): 1, ("1",): 2}
    metrics.know_priorities({"a": 2})  # b is gone and may still end requests
    metrics.count(ended(backends=["a"]))
    metrics.count(ended(backends=["b"]))
    assert samples(metrics, registry, name) == {("0",): 1, ("1",): 3, ("2",): 1}
