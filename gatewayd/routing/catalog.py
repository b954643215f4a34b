"""The list of models: those that the settings name, and those that the backends list themselves."""

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

#: Seconds after which a backend's list is fetched again. The old list is used meanwhile.
FRESH_SECONDS = 10.0
#: Seconds that a backend may take to list its models. Only requests that come before the first
#: timeout wait for it; later ones do without its list.
WAIT_SECONDS = 2.0

#: Entries of the models list, by name.
Entries = dict[str, Any]


@attrs.frozen
class _Known:
    """What is known of a backend's list.

    :param when: the time of the latest attempt to fetch it.
    :param timed_out: whether no list has ever come in time.
    """

    when: float
    entries: Entries
    timed_out: bool = False


class Catalog:
    """Merges the backends' lists. The first backend that serves a name describes it.

    :param before: the catalog that is replaced; lists of targets that are kept are taken from it.
    """

    def __init__(self, router: Router, clock: IReactorTime, before: Catalog | None = None) -> None:
        self._router = router
        self._clock = clock
        known = before._known if before is not None else {}
        self._known: dict[Target, _Known] = {t: known[t] for t in router.targets if t in known}
        self._fetching: dict[Target, Shared[Entries]] = {}

    def names(self) -> list[str]:
        """The names that are known without asking a backend."""
        targets = self._router.targets
        named = [name for target in targets for name in target.models.names]
        listed = [
            name
            for target in targets
            if (known := self._known.get(target)) is not None
            for name in known.entries
            if target.models.offer(name)
        ]
        return named + listed

    async def models(self, request_id: str) -> Entries:
        """All models by name, aliases included.

        :raises GatewayError: no backend has listed its models, and the settings name none.
        """
        targets = self._router.targets
        lists = [self._list(target, request_id) for target in targets]
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

    def _list(self, target: Target, request_id: str) -> Deferred[Entries]:
        known = self._known.get(target)
        if known is None:
            return self._fetch(target, request_id)
        now = self._clock.seconds()
        if now - known.when > FRESH_SECONDS:
            self._known[target] = attrs.evolve(known, when=now)  # so that only one request fetches
            self._fetch(target, request_id).addErrback(lambda _: None)  # the old list is used
        return fail(_timed_out()) if known.timed_out else succeed(known.entries)

    def _fetch(self, target: Target, request_id: str) -> Deferred[Entries]:
        """Fetch a backend's list, once for all requests that wait for it at the same time."""
        if target not in self._fetching:
            self._fetching[target] = Shared(partial(self._begin, target, request_id), cancels=True)
        return self._fetching[target].get()

    def _begin(self, target: Target, request_id: str) -> Deferred[Entries]:
        def remember(entries: Entries) -> Entries:
            self._known[target] = _Known(self._clock.seconds(), entries)
            return entries

        def remember_timeout(_: object, __: float) -> None:
            self._known.setdefault(target, _Known(self._clock.seconds(), {}, timed_out=True))
            raise _timed_out()

        def ended(result: Any) -> Any:
            del self._fetching[target]
            return result

        fetching = maybeDeferred(target.backend.models, request_id)
        fetching.addTimeout(WAIT_SECONDS, self._clock, remember_timeout)
        return fetching.addCallbacks(remember, _hide_own_fault).addBoth(ended)


def _timed_out() -> UpstreamTimeout:
    return UpstreamTimeout("The backend took too long to list its models.")


def _hide_own_fault(failure: Failure) -> Failure:
    """Log a fault of the gateway's own code; it costs one backend's list, not the whole list."""
    if failure.check(GatewayError, CancelledError) is None:
        _log.failure("the list of models could not be read", failure)
        return Failure(Internal("The gateway met an internal error."))
    return failure
