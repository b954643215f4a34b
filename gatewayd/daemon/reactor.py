"""Twisted's epoll reactor, with less between the kernel and a handler.

Twisted makes a logging context for each call of a handler: a name, two dictionaries and six
function calls, up to a third of the cost of relaying an event. gatewayd does not use that context,
so this reactor calls the handler directly. Events other than plain readability (writable, hung up)
are handled by Twisted's code.

:func:`use_monotonic_time` works with every reactor, not only with this one.
"""

from __future__ import annotations

import select
import sys
import time
from typing import Any

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.main import installReactor
from twisted.logger import Logger

_log = Logger()


class Reactor(EPollReactor):
    """Twisted's epoll reactor with another :meth:`doPoll`."""

    def doPoll(self, timeout: float | None) -> None:
        """Wait ``timeout`` seconds (None: for ever) for events, and handle them."""
        selectables: dict[int, Any] = self._selectables
        try:
            ready = self._poller.poll(-1 if timeout is None else timeout, len(selectables))
        except InterruptedError:
            return
        for fd, event in ready:
            selectable = selectables.get(fd)
            if selectable is None:
                continue  # another handler has closed it in this turn
            if event != select.EPOLLIN:
                self._doReadOrWrite(selectable, fd, event)
                continue
            try:
                why = selectable.doRead()
            except BaseException as problem:  # a fault in one connection must not end the daemon
                _log.failure("reading from {selectable} failed", selectable=selectable)
                why = problem
            if why:
                self._disconnectSelectable(selectable, why, True)

    doIteration = doPoll


def install() -> None:
    """Make this the reactor of the process, unless another is installed."""
    if "twisted.internet.reactor" not in sys.modules:
        installReactor(Reactor())


def use_monotonic_time(reactor: Any) -> None:
    """Have this reactor measure time with a clock that cannot be set.

    Twisted's reactors use ``time.time``. If the wall clock is set forward, every timeout is due at
    once; if it is set back, no timeout is due until it has caught up. All reactors, and all code
    that is given a reactor, call ``reactor.seconds``. Code that needs the date calls ``time.time``.
    """
    difference = time.monotonic() - reactor.seconds()
    reactor.seconds = time.monotonic
    for call in reactor.getDelayedCalls():  # made by other plugins; usually there are none
        call.time += difference
        call.seconds = time.monotonic
