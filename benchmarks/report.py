"""Results to text: ratios first, then figures. A figure is the median of its rounds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

Document = Mapping[str, Any]
Rounds = Mapping[str, Sequence[Mapping[str, Any]]]

KIB, MIB = 1024, 1024 * 1024


@attrs.frozen
class Row:
    """
    :param measurement: its name, then the keys to the figure.
    :param scale: the figure is divided by it.
    """

    point: int
    title: str
    measurement: str
    keys: Sequence[str]
    scale: float = 1.0

    def figure(self, rounds: Rounds) -> float | None:
        """The median of the rounds that did not fail."""
        found = []
        for value in rounds.get(self.measurement, ()):
            inner: Any = value
            for key in self.keys:
                inner = inner.get(key) if isinstance(inner, Mapping) else None
            if inner is not None:
                found.append(inner / self.scale)
        return statistics.median(found) if found else None


CPU = ("cpu_us",)
ROWS = (
    Row(1, "CPU per JSON request, us", "json", CPU),
    Row(1, "JSON requests per second", "json", ["per_second"]),
    Row(2, "latency, 1 connection, p50 ms", "latency", ["latency_ms", "p50"]),
    Row(2, "                       p99 ms", "latency", ["latency_ms", "p99"]),
    Row(3, "CPU per event, 50 x 50/s, us", "events_50", CPU),
    Row(3, "CPU per event, 300 x 10/s, us", "events_300", CPU),
    Row(4, "event later by, 50 x 50/s, p50 ms", "events_50", ["late_ms", "p50"]),
    Row(4, "                           p99 ms", "events_50", ["late_ms", "p99"]),
    Row(4, "event later by, 300 x 10/s, p50 ms", "events_300", ["late_ms", "p50"]),
    Row(4, "                            p99 ms", "events_300", ["late_ms", "p99"]),
    Row(5, "TTFT, 300 at once, p50 ms", "ttft", ["ttft_ms", "p50"]),
    Row(5, "                   p99 ms", "ttft", ["ttft_ms", "p99"]),
    Row(6, "memory, idle, MiB", "rss", ["rss"], MIB),
    Row(6, "memory, idle connection, KiB", "idle", ["rss_each"], KIB),
    Row(6, "memory, active stream, KiB", "active", ["rss_each"], KIB),
    Row(6, "memory, stalled reader, KiB", "stalled", ["rss_each"], KIB),
    Row(7, "cancel while silent, p50 ms", "cancel", ["silent", "ms", "p50"]),
    Row(7, "                     p99 ms", "cancel", ["silent", "ms", "p99"]),
    Row(7, "                     never, of 50", "cancel", ["silent", "never"]),
    Row(7, "cancel amid a stream, p50 ms", "cancel", ["streaming", "ms", "p50"]),
    Row(7, "                      p99 ms", "cancel", ["streaming", "ms", "p99"]),
    Row(7, "                      never, of 50", "cancel", ["streaming", "never"]),
    Row(10, "very many streams, 1/s each", "many", ["streams"]),
    Row(10, "  events lost", "many", ["lost"]),
    Row(10, "  CPU per event, us", "many", CPU),
    Row(10, "  event later by, p50 ms", "many", ["late_ms", "p50"]),
    Row(10, "                  p99 ms", "many", ["late_ms", "p99"]),
    Row(10, "  memory, each stream, KiB", "many", ["rss_each"], KIB),
)
#: Rows for which the ratio of gatewayd to a peer is shown.
RATIOS = ("json", "latency", "events_50", "events_300", "ttft", "rss")
WORKERS = (("events per second", "flood"), ("JSON requests per second", "json"))
WIDTH = 36


def text(document: Document) -> str:
    results = document["results"]
    names = list(results)
    parts = [_heading(document)]
    others = [name for name in names if name not in ("gatewayd", "direct")]
    if "gatewayd" in names and others:
        parts.append("gatewayd's figure divided by that of (below 1: gatewayd has less)\n")
        parts.append(_table(others, _ratios(results, others)))
    parts.append("the figures\n")
    parts.append(_table(names, [(r.title, [r.figure(results[n]) for n in names]) for r in ROWS]))
    parts += _growth(results)
    parts += _workers(results.get("gatewayd", {}))
    return "\n".join(parts)


def _heading(document: Document) -> str:
    machine = document["machine"]
    return (
        f"{document['date']}, {machine['processor']}, {machine['cores']} cores, "
        f"{machine['system']}, Python {machine['python']}\n"
        f"{document['rounds']} rounds, windows of {document['window_seconds']:g} s, "
        f"{document['took_seconds']} s in all, load average before: {machine['load_before']:.2f}\n"
    )


def _ratios(results: Mapping[str, Rounds], others: Sequence[str]) -> list[tuple[str, list[Any]]]:
    lines = []
    for row in ROWS:
        if row.measurement in RATIOS and "p99" not in row.keys and "per_second" not in row.keys:
            own = row.figure(results["gatewayd"])
            theirs = [row.figure(results[name]) for name in others]
            title = row.title.rpartition(",")[0]
            lines.append((title, [own / t if own and t else None for t in theirs]))
    return lines


def _growth(results: Mapping[str, Rounds]) -> list[str]:
    counts = sorted(
        {int(m.partition("_")[2]) for r in results.values() for m in r if m.startswith("growth_")}
    )
    if not counts:
        return []
    figures: Sequence[tuple[str, Sequence[str], float]] = (
        ("CPU per event, us", CPU, 1),
        ("event later by, p50 ms", ["late_ms", "p50"], 1),
        ("event later by, p99 ms", ["late_ms", "p99"], 1),
    )
    names = [name for name in results if any(m.startswith("growth_") for m in results[name])]
    lines = [
        (
            f"{n} streams: {title}",
            [Row(8, "", f"growth_{n}", keys, by).figure(results[name]) for name in names],
        )
        for title, keys, by in figures
        for n in counts
    ]
    return ["growth, 4 events a second in each stream\n", _table(names, lines)]


def _workers(rounds: Rounds) -> list[str]:
    lines: list[tuple[str, list[float | None]]] = []
    for title, kind in WORKERS:
        for what, keys in ((title, ["per_second"]), ("  cores used", ["cores"])):
            one, two = (Row(9, "", f"{kind}_workers_{n}", keys).figure(rounds) for n in (1, 2))
            lines.append((what, [one, two, two / one if one and two else None]))
        # What the workers could do if each had a core, and load and mock other ones.
        one, two = (Row(9, "", f"{kind}_workers_{n}", CPU).figure(rounds) for n in (1, 2))
        if one and two:
            lines.append(("  with a core each", [1e6 / one, 2e6 / two, 2 * one / two]))
    if not any(figures[0] for _, figures in lines):
        return []
    return ["gatewayd's workers\n", _table(["1 worker", "2 workers", "ratio"], lines)]


def _table(names: Sequence[str], lines: Sequence[tuple[str, Sequence[float | None]]]) -> str:
    """A table without the rows that have no figure."""
    widths = [max(9, len(name)) for name in names]
    rows = [" " * WIDTH + "".join(f"  {n:>{w}}" for n, w in zip(names, widths, strict=True))]
    for title, figures in lines:
        if any(figure is not None for figure in figures):
            cells = zip(figures, widths, strict=True)
            rows.append(f"{title:{WIDTH}}" + "".join(f"  {number(f):>{w}}" for f, w in cells))
    return "\n".join(rows) + "\n"


def number(figure: float | None) -> str:
    """Format with three significant digits."""
    if figure is None:
        return "-"
    if figure == 0 or abs(figure) >= 100:
        return f"{figure:.0f}"
    return f"{figure:.1f}" if abs(figure) >= 10 else f"{figure:.2f}"
