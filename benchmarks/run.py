"""Measures gatewayd and its peers side by side: ``python -m benchmarks.run``, or ``make bench``.

A round starts every peer in turn in front of the same mock backend, puts the same load on it and
stops it. A disturbance of the machine then affects one round of every peer, not every round of one
peer; the report takes medians. README.rst says what each point measures and how.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import peers, plots, proc, profiling, report
from benchmarks.bench import DIRECT, Bench, Measurement
from benchmarks.peers import PEERS, Place

#: The points of README.rst.
POINTS = range(1, 11)
QUICK = (1, 2, 3, 4, 5)


def plan(seconds: float, most_streams: int) -> list[Measurement]:
    """All measurements, in order.

    :param seconds: length of each window.
    :param most_streams: the largest number of streams of point 8.
    """
    window = {"seconds": seconds}
    streams = [n for n in (10, 100, 1000, 3000) if n <= most_streams]
    # A gateway needs two descriptors for each stream, and some for itself.
    many = min(10_000, (proc.file_limit() - 400) // 2)
    return [
        Measurement("json", [1], "json", window),
        Measurement("latency", [2], "json", {"connections": 1, "seconds": min(seconds, 1.5)}),
        Measurement("events_50", [3, 4], "events", {"streams": 50, "rate": 50} | window),
        Measurement("events_300", [3, 4], "events", {"streams": 300, "rate": 10} | window),
        Measurement("ttft", [5], "ttft"),
        Measurement("cancel", [7], "cancel"),
        Measurement("idle", [6], "idle", fresh=True, once=True),
        Measurement(
            "active",
            [6],
            "events",
            {"streams": 300, "rate": 10, "seconds": 1},
            fresh=True,
            once=True,
        ),
        Measurement("stalled", [6], "stalled", fresh=True, once=True),
        *(
            Measurement(
                f"growth_{n}",
                [8],
                "events",
                {"streams": n, "rate": 4} | window,
                fresh=n == streams[0],
                once=True,
            )
            for n in streams
        ),
        *(
            Measurement(f"{kind}_workers_{n}", [9], kind, window, kind == "flood", True, n)
            for n in (1, 2)
            for kind in ("flood", "json")
        ),
        Measurement(
            "many",
            [10],
            "events",
            {"streams": many, "rate": 1, "seconds": 5, "warm": 2, "apart": 0.001, "lost": True},
            fresh=True,
            once=True,
        ),
    ]


def _concerns(measurement: Measurement, name: str) -> bool:
    """Whether it is made of this peer."""
    if 9 in measurement.points:
        return name == "gatewayd"
    return 10 not in measurement.points or name in ("gatewayd", "before")


def available(names: Sequence[str], installed: Path, against: Path | None) -> list[str]:
    """The peers of these names that are installed; the others are named on standard error."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            if name == DIRECT:
                found.append(name)
                continue
            try:
                PEERS[name].command(Place(1, 1, Path(folder), installed, against=against))
            except FileNotFoundError as e:
                print(f"left out: {name} ({e}; see python -m benchmarks.peers)", file=sys.stderr)
            else:
                found.append(name)
    return found


def machine() -> dict[str, Any]:
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "system": platform.system() + " " + platform.release(),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    }


def _absolute(folder: str) -> Path:
    return Path(folder).absolute()


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    add = parser.add_argument
    add("--only", metavar="NAME,...", help=f"some of: {', '.join((DIRECT, *PEERS))}")
    add("--points", metavar="N,...", help="some points of README.rst, 1 to 10")
    add("--rounds", type=int, help="how often each is measured (3, quick 2)")
    add("--quick", action="store_true", help="points 1 to 5 only, for a shorter time")
    add("--seconds", type=float, help="the length of a window (2.5, quick 1.5)")
    add("--streams", type=int, default=1000, help="the most streams of point 8 (%(default)s)")
    add("--minutes", type=float, default=20, help="begin no peer after these (%(default)g)")
    add("--against", type=_absolute, metavar="FOLDER", help="the checkout of the peer 'before'")
    add("--out", type=Path, default=peers.ROOT / "build" / "bench", help="folder of the report")
    add("--peers", type=_absolute, default=peers.INSTALLED, help="where peers are installed")
    add("--profile", choices=["json", "events"], help="only profile gatewayd under that load")
    add("--profiler", choices=profiling.PROFILERS, help="what profiles (py-spy if installed)")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    options = arguments(given)
    proc.raise_file_limit()
    with tempfile.TemporaryDirectory(prefix="gatewayd-bench-") as folder:
        bench = Bench(Path(folder), options.peers, options.against)
        try:
            if options.profile:
                seconds = options.seconds or 8.0
                print(profiling.profile(bench, options.profile, options.profiler, seconds))
                return 0
            return _compare(bench, options)
        finally:
            bench.close()


def _compare(bench: Bench, options: argparse.Namespace) -> int:
    points = [int(n) for n in options.points.split(",")] if options.points else None
    points = points or list(QUICK if options.quick else POINTS)
    seconds = options.seconds or (1.5 if options.quick else 2.5)
    wanted = [m for m in plan(seconds, options.streams) if set(m.points) & set(points)]
    everyone = [DIRECT, *(name for name in PEERS if name != "before" or options.against)]
    names = options.only.split(",") if options.only else everyone
    unknown = set(names) - {DIRECT, *PEERS}
    if unknown:
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}")
    names = available(names, options.peers, options.against)
    before, began = machine(), time.monotonic()
    rounds = options.rounds or (2 if options.quick else 3)
    for number in range(rounds):
        measurements = [m for m in wanted if number == 0 or not m.once]
        for name in names:
            if time.monotonic() - began > options.minutes * 60:
                print(f"left out: {name} in round {number + 1}, time is up", file=sys.stderr)
                continue
            print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
            if name == DIRECT:
                bench.measure_direct(measurements)
                continue
            mine = [m for m in measurements if _concerns(m, name)]
            try:
                bench.measure(name, mine)
            except RuntimeError as e:
                print(f"left out: {e}", file=sys.stderr)
    document = {
        "date": datetime.date.today().isoformat(),
        "machine": before,
        "rounds": rounds,
        "window_seconds": seconds,
        "took_seconds": round(time.monotonic() - began),
        "results": bench.results,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    text = report.text(document)
    (options.out / "results.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    (options.out / "table.txt").write_text(text, encoding="utf-8")
    plots.write(document, options.out)
    print(text)
    print(f"written to {options.out}: table.txt, results.json, plots", file=sys.stderr)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that peers and the mock are stopped
    sys.exit(main())
