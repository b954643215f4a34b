"""A histogram whose observations are added in bulk.

prometheus_client's own ``Histogram`` takes one observation at a time and a lock for each, which
costs more than the rest of counting a request. Here observations are collected as plain numbers
(:class:`Observations`) and added to the histogram later. The values are kept by prometheus_client,
so they are shared with other workers like all others (:mod:`.multiprocess`).
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any

import prometheus_client.values
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.utils import floatToGoString


class Observations:
    """Observations that are not added to their histogram yet.

    :param bounds: the largest value of each bucket, ascending; one more bucket has no limit.
    """

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class Histogram:
    """A family of histograms, one for each combination of labels; registers itself.

    :param bounds: as in :class:`Observations`.
    :param labels: the names of the labels.
    """

    def __init__(
        self,
        name: str,
        text: str,
        bounds: Sequence[float],
        labels: Sequence[str],
        registry: CollectorRegistry,
    ) -> None:
        self.bounds = bounds
        self._name = name
        self._text = text
        self._labels = tuple(labels)
        self._bucket_names = [floatToGoString(bound) for bound in (*bounds, float("inf"))]
        # By labels: the counts of the buckets, then the sum.
        self._values: dict[tuple[str, ...], list[Any]] = {}
        self._created: dict[tuple[str, ...], float] = {}
        registry.register(self)

    def add(self, labels: tuple[str, ...], observations: Observations) -> None:
        """Add these observations to the histogram with these labels."""
        values = self._values.get(labels)
        if values is None:
            values = self._values[labels] = self._make(labels)
            self._created[labels] = time.time()
        for value, count in zip(values, observations.counts, strict=False):
            if count:
                value.inc(count)
        values[-1].inc(observations.total)

    def _make(self, labels: tuple[str, ...]) -> list[Any]:
        def value(suffix: str, names: tuple[str, ...], labels: tuple[str, ...]) -> Any:
            kind: Any = prometheus_client.values.ValueClass
            return kind("histogram", self._name, self._name + suffix, names, labels, self._text)

        total = value("_sum", self._labels, labels)
        names = (*self._labels, "le")
        return [*(value("_bucket", names, (*labels, le)) for le in self._bucket_names), total]

    def describe(self) -> list[HistogramMetricFamily]:
        """The names, for the registry."""
        return [HistogramMetricFamily(self._name, self._text, labels=self._labels)]

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """The values of all combinations of labels, in prometheus_client's form."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        with_created = _shows_created()
        for labels, (*counts, total) in self._values.items():
            buckets, below = [], 0.0
            for name, count in zip(self._bucket_names, counts, strict=True):
                below += count.get()
                buckets.append((name, below))
            family.add_metric(labels, buckets, total.get())
            if with_created:
                named = dict(zip(self._labels, labels, strict=True))
                family.add_sample(f"{self._name}_created", named, self._created[labels])
        yield family


def _shows_created() -> bool:
    """Whether prometheus_client shows when each series was created; an environment variable and a
    function of the library switch it off.
    """
    (counter,) = Counter("example", "An example.", registry=None).collect()
    return any(sample.name.endswith("_created") for sample in counter.samples)
