"""Signals that come at any moment of a start or a stop, and again and again."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import pytest

from tests.faultbackend import FaultBackend
from tests.integration.faults import wait_for
from tests.integration.operating import (
    both_serve,
    chat,
    crowd,
    in_front_of,
    ini,
    is_whole,
    reached,
    refuses,
    workers,
)
from tests.integration.processes import START, TWIST, TWISTD, Gateway

TWO = ini(gateway={"workers": 2})
RUNNERS = pytest.mark.parametrize("runner", [TWISTD, TWIST], ids=["twistd", "twist"])


def pester(gateway: Gateway, numbers: Sequence[int], *others: int) -> int:
    """Send these by turns, every millisecond, until it has ended; return the exit status.

    :param others: processes that hear the same.
    """
    for number in itertools.cycle(numbers):
        gateway.send(number)
        for pid in others:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        time.sleep(0.001)
        if not gateway.runs:
            break
    return gateway.wait()


class Unready(Gateway):
    """One whose start the test does not wait for."""

    def __enter__(self) -> Self:
        return self


@RUNNERS
@pytest.mark.parametrize("config", ["", TWO], ids=["one", "workers"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_in_the_moment_the_port_opens_does_what_it_always_does(
    tmp_path: Path, runner: Sequence[str], config: str, number: int
) -> None:
    with Unready(folder=tmp_path, runner=runner, config=config) as gateway:
        while refuses(gateway.port):
            assert gateway.runs, gateway.output
        gateway.send(number)
        if number == signal.SIGHUP:
            wait_for(lambda: "reloaded:" in gateway.output, START, "the reload")
            assert chat(gateway).status == 200
            assert gateway.stop() == 0
        assert gateway.wait() == 0
        assert "ended" not in gateway.output


def test_a_worker_that_starts_is_told_to_stop_and_does(tmp_path: Path) -> None:
    """It hears every signal when it can handle it, not before."""
    with Unready(folder=tmp_path, config=TWO) as gateway:
        started = wait_for(lambda: workers(gateway), START, "the workers")
        gateway.send(signal.SIGTERM)
        while gateway.runs:
            for number, pid in itertools.product((signal.SIGHUP, signal.SIGTERM), started):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            time.sleep(0.001)
        assert gateway.wait() == 0
        assert "ended" not in gateway.output


@pytest.mark.parametrize("config", [{}, {"workers": 2}], ids=["one", "workers"])
@pytest.mark.parametrize("pause", [0, 0.005])
@pytest.mark.parametrize(
    "numbers", [(signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)]
)
def test_two_different_signals_together_are_one_stop(
    tmp_path: Path,
    sim: FaultBackend,
    numbers: tuple[int, int],
    pause: float,
    config: dict[str, int],
) -> None:
    """What runs may end: a terminal and a parent tell the same thing."""
    text = in_front_of(sim, tmp_path / "access.log", **config)
    with Gateway(folder=tmp_path, config=text) as gateway, crowd(gateway) as clients:
        name = f"together-{gateway.pid}"
        clients.begin(2, name, "tokens:20:0.02", True)
        sim.wait_for(lambda: reached(sim, clients.ids))
        gateway.send(numbers[0])
        time.sleep(pause)
        gateway.send(numbers[1])
        assert all(is_whole(answer, sim) for answer in clients.answers())
        assert gateway.wait() == 0


@RUNNERS
@pytest.mark.parametrize("also", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_ends_with_0_whatever_comes_until_it_is_gone(
    tmp_path: Path, runner: Sequence[str], also: int
) -> None:
    with Gateway(folder=tmp_path, runner=runner) as gateway:
        assert chat(gateway).status == 200
        assert pester(gateway, [signal.SIGTERM, also]) == 0


@RUNNERS
def test_so_does_one_with_workers(tmp_path: Path, runner: Sequence[str]) -> None:
    """They hear it as often as the supervisor does, and end as cleanly."""
    with Gateway(folder=tmp_path, runner=runner, config=TWO) as gateway:
        both_serve(gateway)
        assert pester(gateway, [signal.SIGTERM, signal.SIGHUP], *workers(gateway)) == 0
        assert "ended" not in gateway.output


@RUNNERS
def test_a_second_stop_reaches_the_workers_as_cleanly(
    tmp_path: Path, runner: Sequence[str]
) -> None:
    """The supervisor hands it on as the signal that ends them at once."""
    with Gateway(folder=tmp_path, runner=runner, config=TWO) as gateway:
        both_serve(gateway)
        assert pester(gateway, [signal.SIGTERM, signal.SIGINT]) == 0
        assert "ended" not in gateway.output
