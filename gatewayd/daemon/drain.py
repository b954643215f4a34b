"""A graceful stop: running requests may end, and those that take too long are ended.

The ports close at once; connections that wait in the kernel by then are still accepted.
Connections without a request are closed a moment later. Running requests get up to ``drain``
seconds. Then each remaining exchange ends with an error that says so, and its request at the
backend is cancelled.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from gatewayd.exchange import End
from gatewayd.wire.errors import Drained

from .ports import Ports
from .serving import Serving

#: Seconds that connections without a request are kept after a stop. A request may be on its way, or
#: here and not read yet; if it were lost, its client could not know that it never began.
GRACE_SECONDS = 0.1

#: Seconds that connections get to close after the last exchange has ended.
FLUSH_SECONDS = 1.0


class Drain:
    def __init__(self, ports: Ports, serving: Serving, reactor: Any) -> None:
        self._ports = ports
        self._state = serving.site.state
        self._api = serving.api
        self._reactor = reactor
        self._timers: list[IDelayedCall] = []
        self._done: Deferred[None] = Deferred()

    def begin(self, seconds: float) -> Deferred[None]:
        """Close the ports and wait for what is in flight.

        :param seconds: that running requests get.
        :return: fires when the last connection is gone. Fired earlier, it would end the process
            before the last bytes of the last answers were sent.
        """
        self._state.draining = True
        self._ports.close()
        self._timers = [
            self._reactor.callLater(min(GRACE_SECONDS, seconds), self._close_idle),
            self._reactor.callLater(seconds, self._cut),
            self._reactor.callLater(seconds + FLUSH_SECONDS, self.abort),
        ]
        # After the waiting connections are accepted: before that, there may be none yet.
        self._reactor.callLater(0, self._state.when_empty, self._empty)
        return self._done

    def abort(self) -> None:
        """Close all connections without waiting any longer."""
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
