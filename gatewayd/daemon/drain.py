"""A stop: what is in flight may end, and what takes too long is ended.

The ports close at once; who is connected by then is still accepted. Connections without a request
are closed a moment later. What is in flight may take up to ``drain`` seconds; then each exchange
that is left is ended with an error that says so, and its backend is left.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IListeningPort

from gatewayd.api.app import API
from gatewayd.api.state import ServerState
from gatewayd.exchange import End
from gatewayd.wire.errors import Drained

from .listening import accept_pending

#: How long after a stop connections without a request are kept: one may be on its way, or here
#: and not read yet, and its client could not know that it was never begun.
GRACE_SECONDS = 0.1

#: How long connections may take to close after the last exchange has ended.
FLUSH_SECONDS = 1.0


class Drain:
    def __init__(self, state: ServerState, api: API, reactor: Any) -> None:
        self._state = state
        self._api = api
        self._reactor = reactor
        self._timers: list[IDelayedCall] = []
        self._done: Deferred[None] = Deferred()

    def begin(
        self, ports: Iterable[IListeningPort], kept: bool, seconds: float
    ) -> Deferred[None]:
        """The Deferred fires when the last connection is gone: fired earlier, the tail of the last
        answers would be lost with the process.

        :param kept: systemd keeps these ports open: who waits there is left to the next start.
        """
        self._state.draining = True
        for port in ports:
            if not kept:
                self._reactor.callLater(0, accept_pending, port)
            port.stopListening()
        self._timers = [
            self._reactor.callLater(min(GRACE_SECONDS, seconds), self._close_idle),
            self._reactor.callLater(seconds, self._cut),
            self._reactor.callLater(seconds + FLUSH_SECONDS, self.abort),
        ]
        # Not before those who waited are accepted: until then nobody may be connected.
        self._reactor.callLater(0, self._state.when_empty, self._empty)
        return self._done

    def abort(self) -> None:
        """Wait no longer."""
        for connection in list(self._state.connections):
            connection.abort(End.DRAINED, "stopped")

    def _close_idle(self) -> None:
        self._api.draining = True
        for connection in list(self._state.connections):
            connection.close_if_idle()

    def _cut(self) -> None:
        late = Drained("The gateway was shut down before the reply ended.")
        for exchange in list(self._state.active):
            if exchange.stop is not None:
                exchange.stop(late)
        for connection in list(self._state.connections):
            connection.stop_reading(late)

    def _empty(self) -> None:
        for timer in self._timers:
            if timer.active():
                timer.cancel()
        if not self._done.called:
            self._done.callback(None)
