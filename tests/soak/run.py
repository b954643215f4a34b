"""Runs one seed and reports what the oracle found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
from twisted.logger import ILogObserver, LogLevel, formatEvent, globalLogPublisher
from zope.interface import provider

from .oracle import judge
from .world import Certificates, World


@attrs.frozen
class Found:
    exchanges: int
    problems: list[str]


class Runner:
    """
    :param folder: an empty folder for certificates and logs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._certificates = Certificates.make(folder)

    def world(self, seed: int) -> World:
        """Run the world of a seed to its end."""
        world = World(seed, self._folder, self._certificates)
        world.run(connections=world.random.choice([1, 5, 20]))
        return world

    def run(self, seed: int) -> Found:
        failures: list[str] = []

        @provider(ILogObserver)
        def observe(event: dict[str, Any]) -> None:
            if event["log_level"] is LogLevel.critical:
                failure = event.get("log_failure")
                trace = failure.getTraceback(detail="brief") if failure else ""
                failures.append(f"logged: {formatEvent(event)} {trace}")

        globalLogPublisher.addObserver(observe)
        try:
            world = self.world(seed)
            problems = judge(world)
        finally:
            globalLogPublisher.removeObserver(observe)
        exchanges = len(world.log_lines())
        world.close()
        return Found(exchanges, failures + problems)
