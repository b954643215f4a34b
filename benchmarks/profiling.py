"""Where gatewayd's time goes under a load: ``python -m benchmarks.run --profile json``.

py-spy samples the process from outside, 500 times a second, and does not distort the shares of
functions. cProfile counts calls, and makes small functions look more expensive than they are.
"""

from __future__ import annotations

import collections
import os
import pstats
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.bench import Bench

PROFILERS = ("py-spy", "cprofile")
LOADS: dict[str, dict[str, Any]] = {
    "json": {"kind": "json", "warm": 0},
    "events": {"kind": "events", "streams": 50, "rate": 50, "warm": 0},
}
TOP = 45


def profile(bench: Bench, load: str, profiler: str | None, seconds: float) -> str:
    """The functions that cost most.

    :param load: a key of :data:`LOADS`.
    :param profiler: one of :data:`PROFILERS`; None takes the first that is installed.
    """
    spy = shutil.which("py-spy", path=f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}")
    if profiler == "py-spy" and spy is None:
        raise SystemExit("py-spy is not installed: python -m pip install py-spy")
    if profiler == "cprofile" or spy is None:
        return _with_cprofile(bench, load, seconds)
    return _with_py_spy(bench, spy, load, seconds)


def _with_cprofile(bench: Bench, load: str, seconds: float) -> str:
    peer, place = peers.PEERS["gatewayd"], bench.place("gatewayd")
    saved = place.folder / "profile"
    options = ["--profiler=cprofile", f"--profile={saved}", "--savestats"]
    command = peers.gatewayd_command(place, options=options)
    running = peers.start(peer, place, command)
    try:
        more = LOADS[load] | {"seconds": seconds}
        result = bench.load(running, peer.request_headers(bench.backend), **more)
    finally:
        running.stop()  # cProfile saves its figures when the process ends
    if "error" in result:
        raise SystemExit(result["error"])
    count = result["count"]
    stats: dict[Any, tuple[int, int, float, float, Any]] = pstats.Stats(str(saved)).stats  # type: ignore[attr-defined]
    what = "requests" if load == "json" else "events"
    lines = [
        f"{count} {what}; microseconds for each, under cProfile",
        f"{'own':>9} {'with callees':>13} {'calls':>8}  function",
    ]
    by_own = sorted(stats.items(), key=lambda item: -item[1][2])
    by_all = sorted(stats.items(), key=lambda item: -item[1][3])
    for title, chosen in (("by own time", by_own), ("by time with callees", by_all)):
        lines.append(f"\n{title}")
        for (file, line, name), (_, calls, own, everything, _) in chosen[:TOP]:
            if "poll" in name:
                continue  # idle time
            where = f"{_short(file)}:{line} {name}" if line else name
            per = 1e6 / count
            lines.append(f"{own * per:9.2f} {everything * per:13.2f} {calls / count:8.2f}  {where}")
    return "\n".join(lines)


def _with_py_spy(bench: Bench, spy: str, load: str, seconds: float) -> str:
    peer, place = peers.PEERS["gatewayd"], bench.place("gatewayd")
    saved = place.folder / "stacks"
    running = peers.start(peer, place)
    try:
        recorder = subprocess.Popen(
            [
                *(spy, "record", "--pid", str(running.process.pid), "--format", "raw"),
                *("--rate", "500", "--duration", str(round(seconds)), "--output", str(saved)),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(0.5)
        more = LOADS[load] | {"seconds": seconds}
        result = bench.load(running, peer.request_headers(bench.backend), **more)
        recorder.wait(60)
    finally:
        running.stop()
    if "error" in result:
        raise SystemExit(result["error"])
    own: collections.Counter[str] = collections.Counter()
    everything: collections.Counter[str] = collections.Counter()
    for line in saved.read_text(encoding="utf-8").splitlines():
        stack, _, times = line.rpartition(" ")
        functions = [frame.rpartition(":")[0] + ")" for frame in stack.split(";")]
        own[functions[-1]] += int(times)
        for function in set(functions):
            everything[function] += int(times)
    total = own.total()
    lines = [
        f"{result['cpu_us']} us for each of {result['count']} "
        f"{'requests' if load == 'json' else 'events'}; shares of {total} samples"
    ]
    for title, counter in (("own time", own), ("time with callees", everything)):
        lines.append(f"\nby {title}")
        for function, times_ in counter.most_common(TOP):
            share = times_ / total
            lines.append(f"{share:7.1%} {share * result['cpu_us']:8.1f} us  {function}")
    return "\n".join(lines)


def _short(file: str) -> str:
    for marker in ("site-packages/", "/lib/"):
        if marker in file:
            return file.rpartition(marker)[2]
    return os.path.relpath(file, peers.ROOT) if os.path.isabs(file) else file
