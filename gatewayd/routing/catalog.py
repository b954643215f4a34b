"""The list of models: those that the settings name, and those that the backends list themselves."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import DeferredList
from twisted.internet.interfaces import IReactorTime

from gatewayd.wire import models

from .listing import Entries
from .router import Router


class Catalog:
    """Merges the backends' lists. The first backend that serves a name describes it."""

    def __init__(self, router: Router, clock: IReactorTime) -> None:
        self._router = router
        self._clock = clock

    def names(self) -> list[str]:
        """The names that are known without asking a backend."""
        targets = self._router.targets
        named = [name for target in targets for name in target.models.names]
        listed = [
            name
            for target in targets
            for name in target.listing.entries
            if target.models.offer(name)
        ]
        return named + listed

    async def models(self, request_id: str) -> Entries:
        """All models by name, aliases included.

        :raises GatewayError: no backend has listed its models, and the settings name none.
        """
        targets = self._router.targets
        lists = [t.listing.for_client(t.backend, request_id, self._clock) for t in targets]
        results: Any = await DeferredList(lists, consumeErrors=True)
        found: Entries = {}
        problems = []
        for target, (succeeded, entries) in zip(targets, results, strict=True):
            if not succeeded:
                problems.append(entries.value)
                entries = {}
            for name, entry in entries.items():
                if target.models.offer(name):
                    found.setdefault(name, entry)
            for name in target.models.names:
                found.setdefault(name, models.entry(name, 0, target.backend.name))
        if problems and not found:
            raise problems[0]
        return found
