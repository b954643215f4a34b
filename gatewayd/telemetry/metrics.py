"""The page of Prometheus metrics.

Requests are counted in :mod:`.requests` as they end, and added to the page every second, whenever
it is made, and at a stop. States are set from a :class:`Snapshot` every
second and whenever the page is made. With several workers the page shows all of them
(:mod:`.multiprocess`).
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Literal

import attrs
import twisted
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from twisted.internet.interfaces import IReactorTime

from gatewayd import __version__
from gatewayd.exchange import Exchange

from .multiprocess import FOLDER_VARIABLE, shared_text
from .process import ProcessMetrics
from .requests import RequestMetrics

#: Seconds between two calls of :meth:`PrometheusMetrics.tick`.
LAG_SECONDS = 1.0


@attrs.frozen
class BackendState:
    """
    :param usable: whether the backend is known to answer.
    """

    usable: bool
    in_flight: int
    priority: int = 0


@attrs.frozen
class Snapshot:
    """The states that the page shows.

    :param models: the names of models that are known now.
    :param globs: the patterns by which the settings name further models.
    :param discovered: of each backend that is asked for its models or slots, whether the latest
        attempt succeeded.
    """

    in_flight: int
    connections: int
    backends: Mapping[str, BackendState]
    models: Iterable[str] = ()
    globs: Collection[str] = ()
    discovered: Mapping[str, bool] = attrs.field(factory=dict)


class PrometheusMetrics:
    """Counts requests at once; shows states from :meth:`watch` on, the lag from :meth:`tick` on."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._take_snapshot: Callable[[], Snapshot] | None = None
        self._backends: set[str] = set()
        self._discoveries: set[str] = set()
        self._due: float | None = None  # when the next tick should come
        self.registry = registry = CollectorRegistry()

        def gauge(
            name: str, text: str, workers: Literal["livesum", "livemin", "livemax"], *labels: str
        ) -> Gauge:
            return Gauge(name, text, labels, registry=registry, multiprocess_mode=workers)

        self._requests = RequestMetrics(registry)
        lost_lines = Counter(
            "gatewayd_log_lines_lost",
            "Lines that could not be written to a log at once, and were dropped.",
            ("log",),
            registry=registry,
        )
        self.count_access_line_lost = lost_lines.labels("access").inc
        self.count_daemon_line_lost = lost_lines.labels("daemon").inc
        self._in_flight = gauge("gatewayd_requests_in_flight", "Requests under way.", "livesum")
        self._connections = gauge("gatewayd_connections", "Connections of clients.", "livesum")
        self._usable = gauge(
            "gatewayd_backend_usable",
            "Whether a backend is known to answer (1) or not (0).",
            "livemin",
            "backend",
        )
        self._backend_in_flight = gauge(
            "gatewayd_backend_requests_in_flight",
            "Requests in flight at a backend.",
            "livesum",
            "backend",
        )
        self._discovered = gauge(
            "gatewayd_backend_discovered",
            "Whether a backend has told its models and slots (1) when last asked, or not (0).",
            "livemin",
            "backend",
        )
        self._lag = gauge(
            "gatewayd_event_loop_lag_seconds",
            "How late the event loop was at the latest measurement.",
            "livemax",
        )
        build = gauge(
            "gatewayd_build_info",
            "Always 1; the labels give the versions.",
            "livemax",
            *("version", "python", "twisted"),
        )
        build.labels(__version__, platform.python_version(), twisted.__version__).set(1)
        self._process = ProcessMetrics(registry)

    def __call__(self, exchange: Exchange) -> None:
        """Count an exchange that has ended."""
        self._requests.count(exchange)

    def settle(self) -> None:
        """Have the metrics of all workers include what this process has counted."""
        self._requests.settle()

    def text(self) -> bytes:
        """The metrics of all workers, in Prometheus' text format.

        :raises MetricsUnavailable: the folder that workers share was removed.
        """
        self.settle()
        self._update_states()
        self._process.update()
        folder = os.environ.get(FOLDER_VARIABLE)
        return generate_latest(self.registry) if folder is None else shared_text(folder)

    # -- states --------------------------------------------------------------------------------

    def watch(self, take_snapshot: Callable[[], Snapshot]) -> None:
        """Show the states that ``take_snapshot`` returns, now and at every update."""
        self._take_snapshot = take_snapshot
        self._update_states()

    def _update_states(self) -> None:
        if self._take_snapshot is None:
            return
        now = self._take_snapshot()
        self._in_flight.set(now.in_flight)
        self._connections.set(now.connections)
        self._requests.know_models(now.models, now.globs)
        for name in self._backends - now.backends.keys():
            _forget(name, self._usable, self._backend_in_flight)
        for name in now.backends.keys() - self._backends:
            self._requests.begin_at_zero(name)
        self._backends = set(now.backends)
        self._requests.know_priorities({n: state.priority for n, state in now.backends.items()})
        for name, state in now.backends.items():
            self._usable.labels(name).set(state.usable)
            self._backend_in_flight.labels(name).set(state.in_flight)
        for name in self._discoveries - now.discovered.keys():
            _forget(name, self._discovered)
        self._discoveries = set(now.discovered)
        for name, current in now.discovered.items():
            self._discovered.labels(name).set(current)

    def tick(self) -> None:
        """Settle, and update the states and the event loop's lag; called every :data:`LAG_SECONDS`.

        The lag is how late a call comes. Calls that the loop missed altogether are left out.
        """
        now = self._clock.seconds()
        late = 0.0 if self._due is None else max(0.0, now - self._due)
        self._due = now + LAG_SECONDS - late % LAG_SECONDS
        self._lag.set(late)
        self.settle()
        self._update_states()
        self._process.update_sometimes()


def _forget(backend: str, *gauges: Gauge) -> None:
    """Stop showing the states of a backend that a reload has removed."""
    for gauge in gauges:
        if FOLDER_VARIABLE in os.environ:
            # The shared file keeps every label; NaN stands for "no such backend".
            gauge.labels(backend).set(math.nan)
        else:
            gauge.remove(backend)
