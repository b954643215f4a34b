"""The wall clock of a running gateway is set an hour forward or back; no time limit may change.

``time.time`` in the process of the gateway is replaced before any import, so that its wall clock
differs from that of the test.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from email.utils import parsedate_to_datetime
from hashlib import sha256
from pathlib import Path

import pytest

from tests.faultbackend import FaultBackend
from tests.integration.client import ask, crowd, get
from tests.integration.expectations import is_whole, reached
from tests.integration.gateways import ini
from tests.integration.processes import TWIST, TWISTD, Gateway
from tests.integration.systemd import notices

HOUR = 3600.0

#: The modification time of a file is the difference of the wall clock; a stat is atomic.
_EPOCH = 1_000_000.0
_SITECUSTOMIZE = f"""
import os, time
_true, _file = time.time, os.environ["WALL_CLOCK_FILE"]
time.time = lambda: _true() + os.stat(_file).st_mtime - {_EPOCH}
"""

RUNNERS = {
    "twistd": TWISTD,
    "twistd with poll": (*TWISTD, "--reactor", "poll"),
    "twistd with asyncio": (*TWISTD, "--reactor", "asyncio"),
    "twist": TWIST,
}


class WallClock:
    """The wall clock of gateways that run with its environment."""

    def __init__(self, folder: Path) -> None:
        (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE)
        self._file = folder / "difference"
        self._file.touch()
        self.set(0.0)
        path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
        self.environment = {"PYTHONPATH": path, "WALL_CLOCK_FILE": str(self._file)}

    def set(self, difference: float) -> None:
        """From now on, differ from the true time by so many seconds."""
        os.utime(self._file, (0, _EPOCH + difference))


@pytest.fixture
def wall_clock(tmp_path: Path) -> WallClock:
    (tmp_path / "clock").mkdir()
    return WallClock(tmp_path / "clock")


@pytest.fixture(params=list(RUNNERS.values()), ids=list(RUNNERS))
def gateway(
    request: pytest.FixtureRequest, tmp_path: Path, sim: FaultBackend, wall_clock: WallClock
) -> Iterator[Gateway]:
    runner: Sequence[str] = request.param
    config = ini(
        backend__b={"url": sim.url, "first_byte": 1, "idle": 30},
        token__alice={"sha256": sha256(b"good").hexdigest(), "requests_per_minute": 60},
    )
    with Gateway(
        folder=tmp_path, runner=runner, config=config, environment=wall_clock.environment
    ) as gateway:
        yield gateway


def date(gateway: Gateway) -> float:
    """The time in its Date header."""
    (date,) = get(gateway, "/healthz").header("date")
    return parsedate_to_datetime(date).timestamp()


@pytest.mark.parametrize("difference", [HOUR, -HOUR], ids=["forward", "back"])
def test_a_jump_affects_no_stream_and_no_clock(
    gateway: Gateway, sim: FaultBackend, wall_clock: WallClock, difference: float
) -> None:
    with crowd(gateway) as clients:
        clients.begin(3, f"jump-{gateway.pid}", "tokens:20:0.05", True, token="good")
        sim.wait_for(lambda: reached(sim, clients.ids))
        before = date(gateway)
        wall_clock.set(difference)
        assert date(gateway) - before == pytest.approx(difference, abs=5)
        late = ask(gateway, "hang", id=f"late-{gateway.pid}", token="good")
        assert (late.status, late.seconds < 5) == (504, True)
        assert all(is_whole(answer, sim) for answer in clients.answers())
    # Fewer than 60 requests in a minute: the token bucket is neither emptied nor overfilled.
    (remaining,) = ask(gateway, id=f"rate-{gateway.pid}", token="good").header(
        "x-ratelimit-remaining-requests"
    )
    assert 50 < int(remaining) < 60


@pytest.mark.parametrize("workers", [1, 2])
def test_the_watchdog_is_fed_whatever_the_wall_clock_does(
    tmp_path: Path, wall_clock: WallClock, workers: int
) -> None:
    with notices() as received:
        environment = {"NOTIFY_SOCKET": received.path, "WATCHDOG_USEC": "200000"}
        with Gateway(
            folder=tmp_path,
            config=ini(gateway={"workers": workers}),
            environment=environment | wall_clock.environment,
        ) as gateway:
            assert received.next()["READY"] == "1"
            wall_clock.set(-HOUR)
            # More than can have been sent before the jump.
            for _ in range(15):
                assert received.next(ignored="READY") == {"WATCHDOG": "1"}
            gateway.send(signal.SIGTERM)
            assert gateway.wait() == 0
