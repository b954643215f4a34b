"""Counters and histograms of requests, made from exchanges that have ended.

Labels have few values, whatever clients send: routes and ends are fixed, backends come from the
settings, models from the settings and the backends' own lists. A model that none of these names is
``other``. Series that alerts use begin at zero: ``increase()`` would miss the first event of a
series that appears with it.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram

from gatewayd.exchange import End, Exchange

# Buckets in seconds. Prefill of a long prompt takes minutes, of a cached one milliseconds; tokens
# come every 5 to 500 ms.
_FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_BETWEEN_TOKENS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_DURATION = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)

#: The most models of the backends' own lists that become labels.
MAX_MODELS = 500


class RequestMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, registry=registry)

        self._children: dict[tuple[Any, ...], Any] = {}
        self._models: set[str] = set()
        self._globs: Collection[str] = ()
        self._requests = counter(
            "gatewayd_requests",
            "Requests that have ended.",
            *("route", "status", "end", "backend", "model"),
        )
        self._ends = counter(
            "gatewayd_ends",
            "Requests that have ended, by how they ended; every end is present from the start.",
            *("end", "backend"),
        )
        self._duration = histogram(
            "gatewayd_request_duration_seconds",
            "From a request's head to the end of its reply.",
            _DURATION,
            *("route", "backend"),
        )
        self._first_token = histogram(
            "gatewayd_time_to_first_token_seconds",
            "From a request's head to the first event of its stream.",
            _FIRST_TOKEN,
            *("backend", "model"),
        )
        self._between_tokens = histogram(
            "gatewayd_inter_token_latency_seconds",
            "The mean time between two events of a stream.",
            _BETWEEN_TOKENS,
            *("backend", "model"),
        )
        self._tokens = counter(
            "gatewayd_tokens",
            "Tokens as backends counted them.",
            *("kind", "backend", "model", "caller"),
        )
        self._without_usage = counter(
            "gatewayd_streams_without_usage",
            "Streams whose token counts are not known.",
            *("backend", "model"),
        )
        self._events = counter("gatewayd_events", "Events relayed.", "backend")
        self._failovers = counter(
            "gatewayd_failovers",
            "Requests that this backend did not take, so that the next one was asked.",
            "backend",
        )
        self.begin_at_zero("")

    def begin_at_zero(self, backend: str) -> None:
        """Show the series that alerts use for this backend; "" is for requests without one."""
        for end in End:
            self._child(self._ends, str(end), backend)
        if backend:
            self._child(self._failovers, backend)

    def know_models(self, models: Iterable[str], globs: Collection[str]) -> None:
        """Use these models, and the patterns that name further models, as labels from now on."""
        self._models = set(itertools.islice(models, MAX_MODELS))
        self._globs = globs

    def count(self, exchange: Exchange) -> None:
        """Count an exchange that has ended."""
        backend = exchange.backends[-1] if exchange.backends else ""
        model = self._label(exchange.model)
        route, end = exchange.route or "other", str(exchange.end)
        self._child(self._requests, route, str(exchange.status), end, backend, model).inc()
        self._child(self._ends, end, backend).inc()
        self._child(self._duration, route, backend).observe(exchange.ended - exchange.started)
        if route != "/v1/models":  # a request for the list of models asks every backend
            for passed_over in exchange.backends[:-1]:
                self._child(self._failovers, passed_over).inc()
        if exchange.stream and exchange.first_event is not None:
            waited = exchange.first_event - exchange.started
            self._child(self._first_token, backend, model).observe(waited)
            self._child(self._events, backend).inc(exchange.events)
            if exchange.events > 1:
                mean = (exchange.ended - exchange.first_event) / (exchange.events - 1)
                self._child(self._between_tokens, backend, model).observe(mean)
        usage = exchange.usage
        if usage is not None:
            caller = exchange.caller or ""
            prompt = self._child(self._tokens, "prompt", backend, model, caller)
            prompt.inc(max(0, usage.prompt_tokens))
            completion = self._child(self._tokens, "completion", backend, model, caller)
            completion.inc(max(0, usage.completion_tokens))
        elif exchange.stream and exchange.events:
            self._child(self._without_usage, backend, model).inc()

    def _label(self, model: str | None) -> str:
        """A model's name, else the glob that matches it, else ``other``."""
        if not model or model in self._models:
            return model or ""
        return next((glob for glob in self._globs if fnmatchcase(model, glob)), "other")

    def _child(self, metric: Any, *labels: str) -> Any:
        """A metric with its labels, cached: the lookup takes longer than the counting."""
        key = (metric, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child
