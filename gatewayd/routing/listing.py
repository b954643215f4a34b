"""The list of models of one backend: the latest one, and how it is fetched.

A list is kept until the next one has come, however often a fetch fails in between. All that wait
for a list share one request to the backend.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NoReturn

from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from gatewayd.backend.interface import Backend
from gatewayd.backend.shared import Shared
from gatewayd.wire import models
from gatewayd.wire.errors import GatewayError, Internal, UpstreamTimeout

_log = Logger()

#: Seconds after which a request for the list of models has a backend's list fetched again. The old
#: list is used meanwhile.
FRESH_SECONDS = 10.0
#: Seconds that a request for the list of models waits for a backend's list. Only requests that come
#: before the first timeout wait for it; later ones do without its list.
WAIT_SECONDS = 2.0

#: Entries of the models list, by name.
Entries = dict[str, Any]


class Listing:
    """What one backend lists. It stays with a backend that a reload keeps."""

    def __init__(self) -> None:
        #: The entries of the latest list, by name; empty if none has come.
        self.entries: Entries = {}
        #: The names by which these models can be requested, with the backend's own aliases.
        self.names: frozenset[str] = frozenset()
        #: Whether a list has come.
        self.known = False
        #: Whether a model was requested since that no list has; it may be new.
        self.missed = False
        # When the latest list came, or when a request for the list of models waited in vain.
        self._tried_at: float | None = None
        self._fetching: Shared[Entries] | None = None

    def for_client(
        self, backend: Backend, request_id: str, clock: IReactorTime
    ) -> Deferred[Entries]:
        """The list for a request that lists the models of all backends.

        A list that is known is used, and fetched again in the background if it is old.

        :raises GatewayError: no list has come, in time or at all.
        """
        now, entries, known = clock.seconds(), self.entries, self.known
        if self._tried_at is None:
            return self._fetch_for_client(backend, request_id, clock)
        if now - self._tried_at > FRESH_SECONDS:
            self._tried_at = now  # so that only one request fetches
            renewing = self._fetch_for_client(backend, request_id, clock)
            renewing.addErrback(lambda _: None)  # the old list is used
        return succeed(entries) if known else fail(_timed_out())

    def fetch(
        self, backend: Backend, request_id: str, clock: IReactorTime, seconds: float
    ) -> Deferred[Entries]:
        """Fetch the list.

        Cancelling the Deferred cancels the request to the backend if nobody else waits for it.

        :raises GatewayError: the backend has sent no list within ``seconds``.
        """

        def timed_out(_: object, __: float) -> NoReturn:
            raise _timed_out()

        return self._fetch(backend, request_id, clock).addTimeout(seconds, clock, timed_out)

    def _fetch_for_client(
        self, backend: Backend, request_id: str, clock: IReactorTime
    ) -> Deferred[Entries]:
        def timed_out(_: object, __: float) -> NoReturn:
            if self._tried_at is None:
                self._tried_at = clock.seconds()
            raise _timed_out()

        return self._fetch(backend, request_id, clock).addTimeout(WAIT_SECONDS, clock, timed_out)

    def _fetch(self, backend: Backend, request_id: str, clock: IReactorTime) -> Deferred[Entries]:
        """Fetch the list, with one request for all that wait for it at the same time."""
        if self._fetching is None:
            begin = partial(self._begin, backend, request_id, clock)
            self._fetching = Shared(begin, cancels=True)
        return self._fetching.get()

    def _begin(self, backend: Backend, request_id: str, clock: IReactorTime) -> Deferred[Entries]:
        def remember(entries: Entries) -> Entries:
            self.entries, self.names, self.known = entries, models.names(entries), True
            self._tried_at, self.missed = clock.seconds(), False
            return entries

        def ended(result: Any) -> Any:
            self._fetching = None
            return result

        fetching = maybeDeferred(backend.models, request_id)
        return fetching.addCallbacks(remember, _hide_own_fault).addBoth(ended)


def _timed_out() -> UpstreamTimeout:
    return UpstreamTimeout("The backend took too long to list its models.")


def _hide_own_fault(failure: Failure) -> Failure:
    """Log a fault of the gateway's own code; it costs one backend's list, not the whole list."""
    if failure.check(GatewayError, CancelledError) is None:
        _log.failure("the list of models could not be read", failure)
        return Failure(Internal("The gateway met an internal error."))
    return failure
