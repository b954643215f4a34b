"""Counters and histograms of requests, made from exchanges that have ended.

Labels have few values, whatever clients send: ends are fixed, routes too except for the ``paths``
of the settings, backends come from the settings, models from the settings and the backends' lists.
A model that none of these names is ``other``. Series that alerts use begin at zero: ``increase()``
would miss the first event of a series that appears with it.

:meth:`RequestMetrics.count` only adds to a :class:`_Tally`, a few plain numbers for each
combination of labels. :meth:`RequestMetrics.settle` adds the tallies to the metrics. It must be
called before the metrics are shown, at regular intervals for the other workers, and at a stop.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase

import attrs
from prometheus_client import CollectorRegistry, Counter

from gatewayd.exchange import End, Exchange

from .histogram import Histogram, Observations

# Buckets in seconds. Prefill of a long prompt takes minutes, of a cached one milliseconds; tokens
# come every 5 to 500 ms.
_FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_BETWEEN_TOKENS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_DURATION = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)

#: The most models of the backends' own lists that become labels.
MAX_MODELS = 500


@attrs.define(eq=False)
class _Tally:
    """What requests with the same labels have added since the last settlement."""

    requests: int = 0
    #: Requests of them whose last attempt ended in another way than the request.
    last_attempts_apart: int = 0
    duration: Observations = attrs.field(factory=lambda: Observations(_DURATION))
    #: None until a stream has ended.
    streams: _StreamTally | None = None
    #: Streams whose token counts are not known.
    without_usage: int = 0


@attrs.define(eq=False)
class _StreamTally:
    events: int = 0
    first_token: Observations = attrs.field(factory=lambda: Observations(_FIRST_TOKEN))
    between_tokens: Observations = attrs.field(factory=lambda: Observations(_BETWEEN_TOKENS))


class RequestMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, text, buckets, labels, registry)

        # By route, status, end, backend and model.
        self._tallies: dict[tuple[str, int, End | None, str, str], _Tally] = {}
        # By backend, model and caller: tokens of prompts, and of completions.
        self._token_tallies: dict[tuple[str, str, str], tuple[float, float]] = {}
        self._priorities: dict[str, int] = {}  # of backends, by name
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
        self._attempts = counter(
            "gatewayd_attempts",
            "Requests sent to a backend, by how that attempt ended.",
            *("backend", "end"),
        )
        self._by_priority = counter(
            "gatewayd_requests_by_priority",
            "Requests that have ended, by the priority of the backend that was asked last.",
            "priority",
        )
        self._tunnel_bytes = counter(
            "gatewayd_tunnel_bytes",
            "Bytes of WebSockets that have ended: in from clients, out to clients.",
            *("direction", "backend"),
        )
        self.begin_at_zero("")

    def begin_at_zero(self, backend: str) -> None:
        """Show the series that alerts use for this backend; "" is for requests without one."""
        for end in End:
            self._ends.labels(str(end), backend)
        if backend:
            self._failovers.labels(backend)
            for end in End:
                self._attempts.labels(backend, str(end))

    def know_priorities(self, priorities: Mapping[str, int]) -> None:
        """Use these priorities of backends, by name, from now on."""
        for priority in {*priorities.values()} - {*self._priorities.values()}:
            self._by_priority.labels(str(priority))  # begins at zero
        self._priorities |= priorities  # a backend that is gone may still end requests

    def know_models(self, models: Iterable[str], globs: Collection[str]) -> None:
        """Use these models, and the patterns that name further models, as labels from now on."""
        self._models = set(itertools.islice(models, MAX_MODELS))
        self._globs = globs

    def count(self, exchange: Exchange) -> None:
        """Count an exchange that has ended; it is shown after the next :meth:`settle`."""
        backends = exchange.backends
        backend = backends[-1] if backends else ""
        model = exchange.model or ""
        if model and model not in self._models:
            model = self._pattern_for(model)
        route = exchange.route or "other"
        key = (route, exchange.status, exchange.end, backend, model)
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._tallies[key] = _Tally()
        tally.requests += 1
        tally.duration.add(exchange.ended - exchange.started)
        if len(backends) > 1 and route != "/v1/models":  # the list of models asks every backend
            for passed_over in backends[:-1]:
                self._failovers.labels(passed_over).inc()
        tried = exchange.tried
        if tried is not None:
            for attempt in tried:
                self._attempts.labels(attempt.backend, attempt.end).inc()
            if len(tried) == len(backends):
                tally.last_attempts_apart += 1
        if exchange.stream:
            self._count_stream(exchange, tally)
        if exchange.bytes_in is not None:
            self._tunnel_bytes.labels("in", backend).inc(exchange.bytes_in)
            self._tunnel_bytes.labels("out", backend).inc(exchange.bytes_out)
        usage = exchange.usage
        if usage is not None:
            labels = (backend, model, exchange.caller or "")
            prompts, completions = self._token_tallies.get(labels, (0.0, 0.0))
            self._token_tallies[labels] = (
                prompts + max(0, usage.prompt_tokens),
                completions + max(0, usage.completion_tokens),
            )

    def _count_stream(self, exchange: Exchange, tally: _Tally) -> None:
        events, first_event = exchange.events, exchange.first_event
        if first_event is not None:
            streams = tally.streams
            if streams is None:
                streams = tally.streams = _StreamTally()
            streams.events += events
            streams.first_token.add(first_event - exchange.started)
            if events > 1:
                streams.between_tokens.add((exchange.ended - first_event) / (events - 1))
        if events and exchange.usage is None:
            tally.without_usage += 1

    def settle(self) -> None:
        """Add to the metrics what was counted since the last call."""
        tallies, self._tallies = self._tallies, {}
        for (route, status, end, backend, model), tally in tallies.items():
            self._requests.labels(route, str(status), str(end), backend, model).inc(tally.requests)
            self._ends.labels(str(end), backend).inc(tally.requests)
            if backend and route != "/v1/models":
                priority = str(self._priorities.get(backend, 0))
                self._by_priority.labels(priority).inc(tally.requests)
                attempts = tally.requests - tally.last_attempts_apart
                self._attempts.labels(backend, str(end)).inc(attempts)
            self._duration.add((route, backend), tally.duration)
            streams = tally.streams
            if streams is not None:
                self._first_token.add((backend, model), streams.first_token)
                self._events.labels(backend).inc(streams.events)
                if any(streams.between_tokens.counts):
                    self._between_tokens.add((backend, model), streams.between_tokens)
            if tally.without_usage:
                self._without_usage.labels(backend, model).inc(tally.without_usage)
        tokens, self._token_tallies = self._token_tallies, {}
        for labels, (prompts, completions) in tokens.items():
            self._tokens.labels("prompt", *labels).inc(prompts)
            self._tokens.labels("completion", *labels).inc(completions)

    def _pattern_for(self, model: str) -> str:
        """The glob that matches a model whose name is not known, else ``other``."""
        return next((glob for glob in self._globs if fnmatchcase(model, glob)), "other")
