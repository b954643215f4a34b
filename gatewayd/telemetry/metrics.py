"""Prometheus metrics, made from finished exchanges.

Names follow Prometheus' conventions. Labels have few values whatever clients send: routes and ends
are fixed, backends come from the settings, models from the settings and the backends' own lists,
and a model that none of these name is ``other``. What an alert looks at begins at zero: a series
that appears with its first event would hide that event from ``increase()``.

With several workers prometheus_client keeps the values in files that all of them share (its
multi-process mode), so any worker's answer is that of all. The files are named by the worker's
number, so a worker that is started again goes on counting where the one before it ended.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import attrs
import prometheus_client.values
import twisted
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from gatewayd import __version__
from gatewayd.exchange import End, Exchange
from gatewayd.wire.errors import MetricsUnavailable

from .process import ProcessMetrics

#: The variable that names the folder of the files that workers share.
SHARED = "PROMETHEUS_MULTIPROC_DIR"

# Prefill of a long prompt takes minutes, a cached one milliseconds; tokens come every 5 to 500 ms.
_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_GAP = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_WHOLE = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)

#: Seconds between two looks at how late the event loop is.
LAG_SECONDS = 1.0

#: The most model names of the backends' own lists that become labels.
MAX_MODELS = 500


@attrs.frozen
class BackendState:
    """What is shown of a backend: whether requests are sent to it, and how many it has now."""

    usable: bool
    in_flight: int


@attrs.frozen
class Snapshot:
    """What is shown as a state rather than counted.

    :param models: the names of models that are known now.
    :param globs: the patterns by which the settings name further models.
    """

    in_flight: int
    connections: int
    backends: Mapping[str, BackendState]
    models: Iterable[str] = ()
    globs: Collection[str] = ()


def share(number: int) -> None:
    """Keep the values of this process in the shared files of worker ``number``."""
    made = prometheus_client.values.MultiProcessValue(lambda: number)
    prometheus_client.values.ValueClass = made


def forget_worker(number: int, folder: str) -> None:
    """Worker ``number`` has ended: its gauges no longer count."""
    mark_process_dead(number, folder)


def shared_text(folder: str) -> bytes:
    """All metrics of all workers, in Prometheus' text format.

    :raises MetricsUnavailable: its files were removed.
    """
    registry = CollectorRegistry()
    try:
        MultiProcessCollector(registry, folder)
    except ValueError:
        said = "The folder that the workers share their metrics in was removed."
        raise MetricsUnavailable(said) from None
    return generate_latest(registry)


class Metrics:
    """Counts. What is shown as a state is looked at from :meth:`watch` on."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._look_at: Callable[[], Snapshot] | None = None
        self._lag_timer: IDelayedCall | None = None
        self._due = 0.0
        self._known: dict[tuple[Any, ...], Any] = {}
        self._backends: set[str] = set()
        self._models: set[str] = set()
        self._globs: Collection[str] = ()
        self.registry = registry = CollectorRegistry()
        one: Any = {"registry": registry}
        every: Any = {"registry": registry, "multiprocess_mode": "livesum"}

        self.requests = Counter(
            "gatewayd_requests",
            "Requests that have ended.",
            ("route", "status", "end", "backend", "model"),
            **one,
        )
        self.ends = Counter(
            "gatewayd_ends",
            "Requests that have ended, by how; every end is there from the start.",
            ("end", "backend"),
            **one,
        )
        self.duration = Histogram(
            "gatewayd_request_duration_seconds",
            "From a request's head to the end of its reply.",
            ("route", "backend"),
            buckets=_WHOLE,
            **one,
        )
        self.first = Histogram(
            "gatewayd_time_to_first_token_seconds",
            "From a request's head to the first event of its stream.",
            ("backend", "model"),
            buckets=_FIRST,
            **one,
        )
        self.gap = Histogram(
            "gatewayd_inter_token_latency_seconds",
            "The mean time between two events of a stream.",
            ("backend", "model"),
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
        self.failovers = Counter(
            "gatewayd_failovers",
            "Requests that this backend did not take, and for which the next one was asked.",
            ("backend",),
            **one,
        )
        self.lost_lines = Counter(
            "gatewayd_log_lines_lost",
            "Lines that could not be written to a log at once, and were dropped.",
            ("log",),
            **one,
        )
        self.in_flight = Gauge("gatewayd_requests_in_flight", "Requests under way.", **every)
        self.connections = Gauge("gatewayd_connections", "Connections of clients.", **every)
        self.usable = Gauge(
            "gatewayd_backend_usable",
            "Whether a backend is known to be well (1) or not (0).",
            ("backend",),
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.asked = Gauge(
            "gatewayd_backend_requests_in_flight",
            "Requests that a backend has now.",
            ("backend",),
            **every,
        )
        self.lag = Gauge(
            "gatewayd_event_loop_lag_seconds",
            "How late the event loop ran its last look at this.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        build = Gauge(
            "gatewayd_build_info",
            "Always 1; the labels say what runs.",
            ("version", "python", "twisted"),
            registry=registry,
            multiprocess_mode="livemax",
        )
        build.labels(__version__, platform.python_version(), twisted.__version__).set(1)
        self._process = ProcessMetrics(registry)
        self.count_access_line_lost = self.lost_lines.labels("access").inc
        self.count_daemon_line_lost = self.lost_lines.labels("daemon").inc
        for end in End:
            self._child(self.ends, str(end), "")

    def __call__(self, exchange: Exchange) -> None:
        """Count an exchange that has ended."""
        backend = exchange.backends[-1] if exchange.backends else ""
        model = self._label(exchange.model)
        route, end = exchange.route or "other", str(exchange.end)
        self._child(self.requests, route, str(exchange.status), end, backend, model).inc()
        self._child(self.ends, end, backend).inc()
        self._child(self.duration, route, backend).observe(exchange.ended - exchange.started)
        if route != "/v1/models":  # that asks every backend
            for left in exchange.backends[:-1]:
                self._child(self.failovers, left).inc()
        if exchange.stream and exchange.first_event is not None:
            waited = exchange.first_event - exchange.started
            self._child(self.first, backend, model).observe(waited)
            self._child(self.events, backend).inc(exchange.events)
            if exchange.events > 1:
                took = exchange.ended - exchange.first_event
                self._child(self.gap, backend, model).observe(took / (exchange.events - 1))
        usage = exchange.usage
        if usage is not None:
            caller = exchange.caller or ""
            prompt = self._child(self.tokens, "prompt", backend, model, caller)
            prompt.inc(max(0, usage.prompt_tokens))
            made = self._child(self.tokens, "completion", backend, model, caller)
            made.inc(max(0, usage.completion_tokens))
        elif exchange.stream and exchange.events:
            self._child(self.unknown, backend, model).inc()

    def _label(self, model: str | None) -> str:
        """A model's name, or the glob that names it, or ``other``."""
        if not model or model in self._models:
            return model or ""
        return next((glob for glob in self._globs if fnmatchcase(model, glob)), "other")

    def _child(self, metric: Any, *labels: str) -> Any:
        """A metric with its labels; looking one up anew takes longer than counting with it."""
        key = (metric, *labels)
        child = self._known.get(key)
        if child is None:
            child = self._known[key] = metric.labels(*labels)
        return child

    def watch(self, look: Callable[[], Snapshot]) -> None:
        """Show what ``look`` returns whenever it is called from now on."""
        self._look_at = look
        self._states()

    def text(self) -> bytes:
        """All metrics of all workers, in Prometheus' text format.

        :raises MetricsUnavailable: the files that workers share were removed.
        """
        self._states()
        self._process.look()
        folder = os.environ.get(SHARED)
        return generate_latest(self.registry) if folder is None else shared_text(folder)

    def _states(self) -> None:
        if self._look_at is None:
            return
        now = self._look_at()
        self.in_flight.set(now.in_flight)
        self.connections.set(now.connections)
        self._globs = now.globs
        self._models = set(list(now.models)[:MAX_MODELS])
        for name in self._backends - now.backends.keys():
            self._forget(name)
        for name in now.backends.keys() - self._backends:
            for end in End:
                self._child(self.ends, str(end), name)
            self._child(self.failovers, name)
        self._backends = set(now.backends)
        for name, state in now.backends.items():
            self._child(self.usable, name).set(state.usable)
            self._child(self.asked, name).set(state.in_flight)

    def _forget(self, backend: str) -> None:
        """A reload took a backend out: its last state would stay for ever."""
        for gauge in (self.usable, self.asked):
            if SHARED in os.environ:
                # The file that is shared keeps every label; this is the value for "no such thing".
                self._child(gauge, backend).set(math.nan)
            else:
                del self._known[gauge, backend]
                gauge.remove(backend)

    # -- the event loop's lag ------------------------------------------------------------------

    def start(self) -> None:
        self._due = self._clock.seconds() + LAG_SECONDS
        self._lag_timer = self._clock.callLater(LAG_SECONDS, self._look)

    def _look(self) -> None:
        self.lag.set(max(0.0, self._clock.seconds() - self._due))
        self._states()
        self._process.look_sometimes()
        self.start()

    def stop(self) -> None:
        if self._lag_timer is not None:
            self._lag_timer.cancel()
            self._lag_timer = None
