"""Measures gatewayd and its peers side by side: ``python -m benchmarks.run``, or ``make bench``.

One round starts every peer in turn in front of the same mock backend, puts the same load on it and
stops it again. Rounds follow each other, so that what disturbs the machine for a while disturbs one
round of all instead of all rounds of one; the report takes medians. README.rst says what each point
measures and how.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from benchmarks import load, peers, plots, proc, profiling, report
from benchmarks.peers import PEERS, Peer, Place, Running

#: The load straight on the mock: what is in the others' delays, too.
DIRECT = "direct"
#: Of README.rst.
POINTS = range(1, 10)
QUICK = (1, 2, 3, 4, 5)
#: Seconds until a measurement is given up.
PATIENCE = 90.0


@attrs.frozen
class Measurement:
    """
    :param name: in the results.
    :param points: of the report that need it.
    :param kind: a key of :data:`benchmarks.load.KINDS`.
    :param more: its parameters.
    :param fresh: the peer is started anew for it, because it looks at memory.
    :param once: in the first round only.
    """

    name: str
    points: Sequence[int]
    kind: str
    more: dict[str, Any] = attrs.field(factory=dict)
    fresh: bool = False
    once: bool = False
    workers: int = 1


def plan(seconds: float, most_streams: int) -> list[Measurement]:
    """All measurements, in order.

    :param seconds: of each window.
    :param most_streams: with which growth ends.
    """
    window = {"seconds": seconds}
    streams = [n for n in (10, 100, 1000, 3000) if n <= most_streams]
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
    ]


class Bench:
    """The mock, and the results so far.

    :param folder: for what the peers write.
    """

    def __init__(self, folder: Path, installed: Path) -> None:
        self._folder, self._installed = folder, installed
        self._mock = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.mock"], stdout=subprocess.PIPE, cwd=peers.ROOT
        )
        assert self._mock.stdout is not None
        self.backend = int(self._mock.stdout.readline())
        #: name of the peer -> name of the measurement -> what each round gave
        self.results: dict[str, dict[str, list[dict[str, Any]]]] = {}

    def close(self) -> None:
        self._mock.kill()
        self._mock.communicate()

    def place(self, name: str, workers: int = 1) -> Place:
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._folder))
        return Place(peers.free_port(), self.backend, folder, self._installed, workers)

    @contextmanager
    def running(self, peer: Peer, workers: int = 1) -> Iterator[Running]:
        running = peers.start(peer, self.place(peer.name, workers))
        try:
            yield running
        finally:
            running.stop()

    def load(self, running: Running, headers: Sequence[str], kind: str, **more: Any) -> Any:
        """One run of the load generator. A failure is a result: ``{"error": ...}``."""
        argument = {
            "kind": kind,
            "port": running.port,
            "session": running.session,
            "mock": self.backend,
            "headers": headers,
        }
        if self._mock.poll() is not None:
            raise SystemExit(f"the mock backend ended with status {self._mock.returncode}")
        _settle(running, self.backend)
        try:
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.load", json.dumps(argument | more)],
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                cwd=peers.ROOT,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"took longer than {PATIENCE:g} s"}
        if done.returncode:
            return {"error": done.stderr.strip().rpartition("\n")[2]}
        return json.loads(done.stdout)

    def measure(self, name: str, measurements: Sequence[Measurement]) -> None:
        """Let one peer run, or several times where its memory is looked at."""
        groups: dict[tuple[int, int], list[Measurement]] = {}
        number = 0
        for m in measurements:
            number += m.fresh
            groups.setdefault((m.workers, number), []).append(m)
        for (workers, _), group in groups.items():
            with self.running(PEERS[name], workers) as running:
                time.sleep(0.3)
                self._note(name, "rss", {"rss": proc.rss(running.session)})
                headers = PEERS[name].request_headers(self.backend)
                for m in group:
                    if 8 in m.points and self._overloaded(name):
                        continue  # with more it would show nothing but that again
                    self._note(name, m.name, self.load(running, headers, m.kind, **m.more))

    def _overloaded(self, name: str) -> bool:
        """Whether streams of it did not begin under the loads of point 3."""
        results = self.results.get(name, {})
        return any(
            result.get("silent")
            for measurement in ("events_50", "events_300")
            for result in results.get(measurement, ())
        )

    def measure_direct(self, measurements: Sequence[Measurement]) -> None:
        straight = Running(self.backend, 0, self._mock)
        for m in measurements:
            if m.points[0] <= 5:
                self._note(DIRECT, m.name, self.load(straight, (), m.kind, **m.more))

    def _note(self, name: str, measurement: str, result: dict[str, Any]) -> None:
        self.results.setdefault(name, {}).setdefault(measurement, []).append(result)
        problem = result.get("error")
        if isinstance(result.get("silent"), int) and result["silent"]:
            problem = f"{result['silent']} streams did not begin"
        if problem:
            print(f"  {name}, {measurement}: {problem}", file=sys.stderr, flush=True)


def _settle(running: Running, mock: int) -> None:
    """Wait until the peer is done with what was before: at rest, or ten seconds."""
    load.ask_mock(mock, "/reset")
    for _ in range(50):
        used = proc.cpu(running.session) if running.session else 0.0
        time.sleep(0.2)
        if not running.session or proc.cpu(running.session) - used < 0.02:
            return


def available(names: Sequence[str], installed: Path) -> list[str]:
    """Those of the names that are installed; says which are not."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            if name == DIRECT:
                found.append(name)
                continue
            try:
                PEERS[name].command(Place(1, 1, Path(folder), installed))
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


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    add = parser.add_argument
    add("--only", metavar="NAME,...", help=f"some of: {', '.join((DIRECT, *PEERS))}")
    add("--points", metavar="N,...", help="some points of README.rst, 1 to 9")
    add("--rounds", type=int, help="how often each is measured (3, quick 2)")
    add("--quick", action="store_true", help="points 1 to 5 only, for a shorter time")
    add("--seconds", type=float, help="the length of a window (2.5, quick 1.5)")
    add("--streams", type=int, default=1000, help="the most streams of point 8 (%(default)s)")
    add("--minutes", type=float, default=20, help="begin no peer after these (%(default)g)")
    add("--out", type=Path, default=peers.ROOT / "build" / "bench", help="folder of the report")
    add("--peers", type=Path, default=peers.INSTALLED, help="where peers are installed")
    add("--profile", choices=["json", "events"], help="only profile gatewayd under that load")
    add("--profiler", choices=profiling.PROFILERS, help="what profiles (py-spy if installed)")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    options = arguments(given)
    proc.raise_file_limit()
    with tempfile.TemporaryDirectory(prefix="gatewayd-bench-") as folder:
        bench = Bench(Path(folder), options.peers.absolute())
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
    names = options.only.split(",") if options.only else [DIRECT, *PEERS]
    unknown = set(names) - {DIRECT, *PEERS}
    if unknown:
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}")
    names = available(names, options.peers.absolute())
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
            mine = [m for m in measurements if 9 not in m.points or name == "gatewayd"]
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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # stop what was started
    sys.exit(main())
