"""Runs one peer in front of the mock backend, puts loads on it, and keeps what they gave."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from benchmarks import load, peers, proc
from benchmarks.peers import PEERS, Peer, Place, Running

#: The load straight on the mock: its delays are part of every peer's delays.
DIRECT = "direct"
#: Seconds until a measurement is given up.
TIMEOUT = 90.0


@attrs.frozen
class Measurement:
    """One run of the load generator.

    :param name: its name in the results.
    :param points: the points of the report that use its figures.
    :param kind: a key of :data:`benchmarks.load.KINDS`.
    :param more: the parameters of that kind.
    :param fresh: start the peer anew before it, because it looks at memory.
    :param once: run it in the first round only.
    """

    name: str
    points: Sequence[int]
    kind: str
    more: dict[str, Any] = attrs.field(factory=dict)
    fresh: bool = False
    once: bool = False
    workers: int = 1


class Bench:
    """The mock backend, and the results so far.

    :param folder: where peers write their files.
    :param installed: where peers are installed.
    :param against: another checkout of gatewayd.
    """

    def __init__(self, folder: Path, installed: Path, against: Path | None) -> None:
        self._folder, self._installed, self._against = folder, installed, against
        self._mock = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.mock"], stdout=subprocess.PIPE, cwd=peers.ROOT
        )
        assert self._mock.stdout is not None
        self.backend = int(self._mock.stdout.readline())
        #: Name of the peer -> name of the measurement -> one result for each round.
        self.results: dict[str, dict[str, list[dict[str, Any]]]] = {}

    def close(self) -> None:
        self._mock.kill()
        self._mock.communicate()

    def place(self, name: str, workers: int = 1) -> Place:
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._folder))
        port = peers.free_port()
        return Place(port, self.backend, folder, self._installed, workers, self._against)

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
                timeout=TIMEOUT,
                cwd=peers.ROOT,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"took longer than {TIMEOUT:g} s"}
        if done.returncode:
            return {"error": done.stderr.strip().rpartition("\n")[2]}
        return json.loads(done.stdout)

    def measure(self, name: str, measurements: Sequence[Measurement]) -> None:
        """Run one peer, anew for each measurement that looks at memory."""
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
                        continue  # more streams would only show the same again
                    self._note(name, m.name, self.load(running, headers, m.kind, **m.more))

    def _overloaded(self, name: str) -> bool:
        """Whether some of its streams did not begin under the loads of point 3."""
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
    """Wait until the peer has finished the load before: until it is idle, or ten seconds."""
    load.ask_mock(mock, "/reset")
    for _ in range(50):
        used = proc.cpu(running.session) if running.session else 0.0
        time.sleep(0.2)
        if not running.session or proc.cpu(running.session) - used < 0.02:
            return
