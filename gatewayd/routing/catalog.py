"""Which models there are: what the settings name, and what the backends themselves list."""

from __future__ import annotations

from functools import partial
from typing import Any

import attrs
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    DeferredList,
    fail,
    maybeDeferred,
    succeed,
)
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from gatewayd.backend.shared import Shared
from gatewayd.wire import models
from gatewayd.wire.errors import GatewayError, Internal, UpstreamTimeout

from .router import Router
from .target import Target

_log = Logger()

#: A list older than this is still given, and asked for anew behind the answer.
FRESH_SECONDS = 10.0
#: How long a list is waited for, by those who come before it was given up once.
WAIT_SECONDS = 2.0

Entries = dict[str, Any]


@attrs.frozen
class _Known:
    """A backend's list, or that it has none in time."""

    when: float
    entries: Entries
    late: bool = False


class Catalog:
    """Merges the backends' lists; the first that serves a name describes it.

    :param before: one that knows the lists of targets that are still there.
    """

    def __init__(self, router: Router, clock: IReactorTime, before: Catalog | None = None) -> None:
        self._router = router
        self._clock = clock
        known = before._known if before is not None else {}
        self._known: dict[Target, _Known] = {t: known[t] for t in router.targets if t in known}
        self._asking: dict[Target, Shared[Entries]] = {}

    def names(self) -> list[str]:
        """The names that are known without asking."""
        named = [name for target in self._router.targets for name in target.models.names]
        known = [(target, self._known.get(target)) for target in self._router.targets]
        return named + [n for target, k in known if k for n in k.entries if target.models.offer(n)]

    async def models(self, request_id: str) -> Entries:
        """All models by name, aliases included.

        :raises GatewayError: no backend could say, and the settings name none.
        """
        targets = self._router.targets
        lists = [self._list(target, request_id) for target in targets]
        results: Any = await DeferredList(lists, consumeErrors=True)
        found: Entries = {}
        problems = []
        for target, (good, entries) in zip(targets, results, strict=True):
            if not good:
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

    def _list(self, target: Target, request_id: str) -> Deferred[Entries]:
        known = self._known.get(target)
        if known is None:
            return self._ask(target, request_id)
        now = self._clock.seconds()
        if now - known.when > FRESH_SECONDS:
            self._known[target] = attrs.evolve(known, when=now)  # one of those who come now asks
            self._ask(target, request_id).addErrback(lambda _: None)  # the old list will do
        return fail(_too_late()) if known.late else succeed(known.entries)

    def _ask(self, target: Target, request_id: str) -> Deferred[Entries]:
        """Ask a backend, or wait with those who have asked it already."""
        if target not in self._asking:
            self._asking[target] = Shared(partial(self._begin, target, request_id), cancels=True)
        return self._asking[target].get()

    def _begin(self, target: Target, request_id: str) -> Deferred[Entries]:
        def told(entries: Entries) -> Entries:
            self._known[target] = _Known(self._clock.seconds(), entries)
            return entries

        def too_late(_: object, __: float) -> None:
            self._known.setdefault(target, _Known(self._clock.seconds(), {}, late=True))
            raise _too_late()

        def over(result: Any) -> Any:
            del self._asking[target]
            return result

        asked = maybeDeferred(target.backend.models, request_id)
        asked.addTimeout(WAIT_SECONDS, self._clock, too_late)
        return asked.addCallbacks(told, _told_apart).addBoth(over)


def _too_late() -> UpstreamTimeout:
    return UpstreamTimeout("The backend took too long to list its models.")


def _told_apart(failure: Failure) -> Failure:
    """A fault of our own code costs one backend's list, not everybody's, and is logged."""
    if failure.check(GatewayError, CancelledError) is None:
        _log.failure("the list of models could not be read", failure)
        return Failure(Internal("The gateway met an internal error."))
    return failure
