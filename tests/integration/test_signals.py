"""Signals that come at any moment of a stop, again and again, until the process is gone."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from tests.integration.operating import both_serve, chat, ini, workers
from tests.integration.processes import TWIST, TWISTD, Gateway

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
