"""Signals at any moment of a start or a stop, and repeatedly."""

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
from tests.integration.client import ask, crowd
from tests.integration.expectations import is_whole, reached
from tests.integration.gateways import in_front_of, ini
from tests.integration.processes import START, TWIST, TWISTD, Gateway, refuses, wait_for

TWO = ini(gateway={"workers": 2})
RUNNERS = pytest.mark.parametrize("runner", [TWISTD, TWIST], ids=["twistd", "twist"])


def pester(gateway: Gateway, numbers: Sequence[int], *others: int) -> int:
    """Send these signals in turn, one each millisecond, until it has ended; return the exit status.

    :param others: processes that get the same signals.
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
    """A gateway whose start the test does not wait for."""

    def __enter__(self) -> Self:
        return self


@RUNNERS
@pytest.mark.parametrize("config", ["", TWO], ids=["one", "workers"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_the_port_opens_has_its_usual_effect(
    tmp_path: Path, runner: Sequence[str], config: str, number: int
) -> None:
    with Unready(folder=tmp_path, runner=runner, config=config) as gateway:
        while refuses(gateway.port):
            assert gateway.runs, gateway.output
        gateway.send(number)
        if number == signal.SIGHUP:
            wait_for(lambda: "reloaded:" in gateway.output, START, "the reload")
            assert ask(gateway).status == 200
            assert gateway.stop() == 0
        assert gateway.wait() == 0
        assert "ended" not in gateway.output


def test_a_worker_that_is_starting_can_be_stopped(tmp_path: Path) -> None:
    """Each signal is delivered when it can be handled, not before."""
    with Unready(folder=tmp_path, config=TWO) as gateway:
        started = wait_for(lambda: gateway.workers(), START, "the workers")
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
    """Running requests may end: a terminal and a parent process may both send the signal."""
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
def test_a_stop_ends_with_status_0_whatever_signals_follow(
    tmp_path: Path, runner: Sequence[str], also: int
) -> None:
    with Gateway(folder=tmp_path, runner=runner) as gateway:
        assert ask(gateway).status == 200
        assert pester(gateway, [signal.SIGTERM, also]) == 0


@RUNNERS
def test_a_gateway_with_workers_survives_signals_too(tmp_path: Path, runner: Sequence[str]) -> None:
    """Workers get the signals as often as the supervisor, and end as cleanly."""
    with Gateway(folder=tmp_path, runner=runner, config=TWO) as gateway:
        gateway.wait_for_workers()
        assert pester(gateway, [signal.SIGTERM, signal.SIGHUP], *gateway.workers()) == 0
        assert "ended" not in gateway.output


@RUNNERS
def test_a_second_stop_reaches_the_workers_as_cleanly(
    tmp_path: Path, runner: Sequence[str]
) -> None:
    """The supervisor sends the workers the signal that ends them at once."""
    with Gateway(folder=tmp_path, runner=runner, config=TWO) as gateway:
        gateway.wait_for_workers()
        assert pester(gateway, [signal.SIGTERM, signal.SIGINT]) == 0
        assert "ended" not in gateway.output
