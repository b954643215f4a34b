"""Prometheus metrics, made from finished exchanges.

Names follow Prometheus' conventions. Labels have few values whatever clients send: routes and ends
are fixed, backends and their models come from the settings, and a model that no setting names is
``other``.

With several workers prometheus_client keeps the values in files that all of them share (its
multi-process mode), so any worker's answer is that of all.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from gatewayd.exchange import Exchange

#: The variable that names the folder of the files that workers share.
SHARED = "PROMETHEUS_MULTIPROC_DIR"

# Prefill of a long prompt takes minutes, a cached one milliseconds; tokens come every 5 to 500 ms.
_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_GAP = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_WHOLE = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)

#: Seconds between two looks at how late the event loop is.
LAG_SECONDS = 1.0


class Metrics:
    """Counts. What is shown as a state is looked at from :meth:`watch` on."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._look_at: Callable[[], tuple[int, int, Mapping[str, bool]]] | None = None
        self._lag_timer: IDelayedCall | None = None
        self._due = 0.0
        self._known: dict[tuple[Any, ...], Any] = {}
        self._backends: set[str] = set()
        self.registry = registry = CollectorRegistry()
        one: Any = {"registry": registry}
        every: Any = {"registry": registry, "multiprocess_mode": "livesum"}

        self.requests = Counter(
            "gatewayd_requests",
            "Requests that have ended.",
            ("route", "status", "end", "backend", "model"),
            **one,
        )
        self.duration = Histogram(
            "gatewayd_request_duration_seconds",
            "From a request's head to the end of its reply.",
            ("route",),
            buckets=_WHOLE,
            **one,
        )
        self.first = Histogram(
            "gatewayd_time_to_first_token_seconds",
            "From a request's head to the first event of its stream.",
            ("model",),
            buckets=_FIRST,
            **one,
        )
        self.gap = Histogram(
            "gatewayd_inter_token_latency_seconds",
            "The mean time between two events of a stream.",
            ("model",),
            buckets=_GAP,
            **one,
        )
        self.tokens = Counter(
            "gatewayd_tokens",
            "Tokens as backends counted them.",
            ("kind", "backend", "model", "caller"),
            **one,
        )
        self.unknown = Counter(
            "gatewayd_streams_without_usage",
            "Streams of which no token count is known.",
            ("backend", "model"),
            **one,
        )
        self.events = Counter("gatewayd_events", "Events relayed.", ("backend",), **one)
        self.tries = Counter(
            "gatewayd_failovers", "Requests that a further backend was asked for.", **one
        )
        self.in_flight = Gauge("gatewayd_requests_in_flight", "Requests under way.", **every)
        self.connections = Gauge("gatewayd_connections", "Connections of clients.", **every)
        self.state = Gauge(
            "gatewayd_backend_usable",
            "Whether a backend is worth asking (1) or not (0).",
            ("backend",),
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.lag = Gauge(
            "gatewayd_event_loop_lag_seconds",
            "How late the event loop ran its last look at this.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.models: Collection[str] = ()

    def __call__(self, exchange: Exchange) -> None:
        """Count an exchange that has ended."""
        backend = exchange.backends[-1] if exchange.backends else ""
        model = exchange.model or ""
        if model and model not in self.models:
            model = "other"
        route = exchange.route or "other"
        status = f"{exchange.status // 100}xx"
        self._child(self.requests, route, status, str(exchange.end), backend, model).inc()
        self._child(self.duration, route).observe(exchange.ended - exchange.started)
        if len(exchange.backends) > 1 and route != "/v1/models":
            self.tries.inc()
        if exchange.stream and exchange.first_event is not None:
            self._child(self.first, model).observe(exchange.first_event - exchange.started)
            self._child(self.events, backend).inc(exchange.events)
            if exchange.events > 1:
                took = exchange.ended - exchange.first_event
                self._child(self.gap, model).observe(took / (exchange.events - 1))
        usage = exchange.usage
        if usage is not None:
            caller = exchange.caller or ""
            prompt = self._child(self.tokens, "prompt", backend, model, caller)
            prompt.inc(max(0, usage.prompt_tokens))
            made = self._child(self.tokens, "completion", backend, model, caller)
            made.inc(max(0, usage.completion_tokens))
        elif exchange.stream and exchange.events:
            self._child(self.unknown, backend, model).inc()

    def _child(self, metric: Any, *labels: str) -> Any:
        """A metric with its labels; looking one up anew takes longer than counting with it."""
        key = (metric, *labels)
        child = self._known.get(key)
        if child is None:
            child = self._known[key] = metric.labels(*labels)
        return child

    def watch(self, look: Callable[[], tuple[int, int, Mapping[str, bool]]]) -> None:
        """:param look: the requests in flight, the connections, the backends' usability."""
        self._look_at = look

    def text(self) -> bytes:
        """All metrics of all workers, in Prometheus' text format."""
        self._states()
        registry = self.registry
        if SHARED in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        return generate_latest(registry)

    def _states(self) -> None:
        if self._look_at is not None:
            in_flight, connections, usable = self._look_at()
            self.in_flight.set(in_flight)
            self.connections.set(connections)
            for name in self._backends - usable.keys():
                self._forget(name)
            self._backends = set(usable)
            for name, well in usable.items():
                self._child(self.state, name).set(well)

    def _forget(self, backend: str) -> None:
        """A reload took a backend out: its last state would stay for ever."""
        if SHARED in os.environ:
            # The file that is shared keeps every label; this is the value for "no such thing".
            self._child(self.state, backend).set(math.nan)
        else:
            del self._known[self.state, backend]
            self.state.remove(backend)

    # -- the event loop's lag ------------------------------------------------------------------

    def start(self) -> None:
        self._due = self._clock.seconds() + LAG_SECONDS
        self._lag_timer = self._clock.callLater(LAG_SECONDS, self._look)

    def _look(self) -> None:
        self.lag.set(max(0.0, self._clock.seconds() - self._due))
        self._states()
        self.start()

    def stop(self) -> None:
        if self._lag_timer is not None:
            self._lag_timer.cancel()
            self._lag_timer = None
