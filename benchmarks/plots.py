"""Results to plots, as SVG, without a library."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from benchmarks.report import ROWS, Document, Row, number

OWN, OTHER, BACKGROUND, INK, GRID = "#1f6f8b", "#b8c4ca", "#ffffff", "#22313a", "#e3e8eb"
LINES = (
    *("#1f6f8b", "#c8553d", "#7a9e3f", "#7b5ea7", "#b8892b"),
    *("#4f5d75", "#2a9d8f", "#9a4f7d", "#8d99ae", "#000000"),
)
BARS = {
    "json": "CPU per JSON request, us",
    "events": "CPU per event, 50 x 50/s, us",
    "late": "event later by, 50 x 50/s, p50 ms",
    "ttft": "TTFT, 300 at once, p50 ms",
}


def write(document: Document, folder: Path) -> list[Path]:
    """Write each plot that these results have the figures for."""
    results = document["results"]
    drawn: dict[str, str] = {}
    for name, title in BARS.items():
        row = next(row for row in ROWS if row.title == title)
        figures = {peer: row.figure(rounds) for peer, rounds in results.items()}
        known = {peer: figure for peer, figure in figures.items() if figure}
        if known:
            drawn[name] = bars(title, known)
    for name, title, keys in (
        ("growth-cpu", "CPU per event, us, by the number of streams", ["cpu_us"]),
        ("growth-late", "event later by, p99 ms, by the number of streams", ["late_ms", "p99"]),
    ):
        curves = {peer: _curve(rounds, keys) for peer, rounds in results.items()}
        curves = {peer: points for peer, points in curves.items() if len(points) > 1}
        if curves:
            drawn[name] = lines(title, curves)
    written = []
    for name, svg in drawn.items():
        path = folder / f"{name}.svg"
        path.write_text(svg, encoding="utf-8")
        written.append(path)
    return written


def _curve(rounds: Mapping[str, object], keys: Sequence[str]) -> list[tuple[float, float]]:
    points = []
    for measurement in rounds:
        kind, _, count = measurement.partition("_")
        if kind == "growth":
            figure = Row(8, "", measurement, keys).figure(rounds)  # type: ignore[arg-type]
            if figure:
                points.append((float(count), figure))
    return sorted(points)


def bars(title: str, figures: Mapping[str, float]) -> str:
    """Horizontal bars on a logarithmic scale, the shortest first."""
    ordered = sorted(figures.items(), key=lambda item: item[1])
    low, high = _decades(figures.values())
    left, right, top, step = 130, 560, 44, 26
    height = top + step * len(ordered) + 30
    parts = [_text(12, 24, title, weight="bold")]
    parts += _grid(low, high, lambda share: left + share * (right - left), top, height - 26)
    for place, (name, figure) in enumerate(ordered):
        y = top + place * step
        width = (math.log10(figure) - low) / (high - low) * (right - left)
        color = OWN if name in ("gatewayd", "bare") else OTHER
        parts.append(
            f'<rect x="{left}" y="{y + 4}" width="{width:.1f}" height="{step - 8}" fill="{color}"/>'
        )
        parts.append(_text(left - 8, y + 18, name, anchor="end"))
        parts.append(_text(left + width + 6, y + 18, number(figure)))
    return _svg(640, height, parts)


def lines(
    title: str, curves: Mapping[str, Sequence[tuple[float, float]]], linear: bool = False
) -> str:
    """One curve for each name; both scales are logarithmic, or both are linear."""
    left, right, top, bottom = 60, 480, 44, 300
    scale = _steps if linear else _powers
    ys, down = scale([y for points in curves.values() for _, y in points], bottom, top)
    xs, across = scale([x for points in curves.values() for x, _ in points], left, right)
    parts = [_text(12, 24, title, weight="bold")]
    for value in ys:
        y = down(value)
        parts.append(f'<path d="M{left} {y:.1f}H{right}" stroke="{GRID}"/>')
        parts.append(_text(left - 8, y + 4, f"{value:g}", anchor="end"))
    for value in xs:
        parts.append(_text(across(value), bottom + 20, f"{value:g}", anchor="middle"))
    for place, (name, points) in enumerate(curves.items()):
        color = LINES[place % len(LINES)]
        path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in points)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{color}" '
            f'stroke-width="{3 if name == "gatewayd" else 1.5}"/>'
        )
        parts.append(_text(right + 16, top + 14 + place * 20, name, color=color))
    return _svg(640, bottom + 36, parts)


_Scale = tuple[list[float], Callable[[float], float]]


def _powers(values: Sequence[float], start: float, end: float) -> _Scale:
    """A logarithmic scale between two places: its marks, and the place of a value."""
    low, high = _decades(values)

    def place(value: float) -> float:
        return start + (math.log10(value) - low) / (high - low) * (end - start)

    return [10.0**decade for decade in range(low, high + 1)], place


def _steps(values: Sequence[float], start: float, end: float) -> _Scale:
    """A linear scale from zero: its marks, and the place of a value."""
    step = 10.0 ** math.floor(math.log10(max(values)))
    step = next(s for s in (step / 5, step / 2, step, step * 2) if max(values) <= 6 * s)
    marks = [step * n for n in range(math.ceil(max(values) / step) + 1)]

    def place(value: float) -> float:
        return start + value / marks[-1] * (end - start)

    return marks, place


def _decades(values: object) -> tuple[int, int]:
    """The powers of ten around the values."""
    logs = [math.log10(value) for value in values]  # type: ignore[attr-defined]
    low, high = math.floor(min(logs)), math.ceil(max(logs))
    return low, max(high, low + 1)


def _grid(low: int, high: int, x: object, top: int, bottom: int) -> list[str]:
    parts = []
    for decade in range(low, high + 1):
        at = x((decade - low) / (high - low))  # type: ignore[operator]
        parts.append(f'<path d="M{at:.1f} {top}V{bottom}" stroke="{GRID}"/>')
        parts.append(_text(at, bottom + 18, f"{10.0**decade:g}", anchor="middle"))
    return parts


def _text(
    x: float, y: float, said: str, anchor: str = "start", weight: str = "normal", color: str = INK
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" '
        f'fill="{color}">{escape(said)}</text>'
    )


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    inside = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif" font-size="13">\n'
        f'<rect width="{width}" height="{height}" fill="{BACKGROUND}"/>\n{inside}\n</svg>\n'
    )
