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
from collections.abc import Callable
from typing import Any

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.main import installReactor
from twisted.logger import Logger

_log = Logger()

_READABLE = select.EPOLLIN


class Reactor(EPollReactor):
    """Twisted's epoll reactor with another :meth:`doPoll`.

    Twisted looks for due timers and for calls of other threads after each wait. This reactor goes
    back to waiting at once unless there is something to look for: that was a fifth of an
    event's instructions.
    """

    _interrupted = False  # there may be something to do before the next wait

    def doPoll(self, timeout: float | None) -> None:
        """Handle events for ``timeout`` seconds (None: for ever), or until there is other work."""
        selectables: dict[int, Any] = self._selectables
        poll, seconds, calls = self._poller.poll, self.seconds, self.threadCallQueue
        ends = None if timeout is None else seconds() + timeout
        self._interrupted = False
        while True:
            try:
                ready = poll(timeout, len(selectables))
            except InterruptedError:
                return
            for fd, event in ready:
                selectable = selectables.get(fd)
                if selectable is None:
                    continue  # another handler has closed it in this turn
                if event != _READABLE:
                    self._doReadOrWrite(selectable, fd, event)
                    continue
                try:
                    why = selectable.doRead()
                except BaseException as problem:  # one connection's fault must not end the daemon
                    _log.failure("reading from {selectable} failed", selectable=selectable)
                    why = problem
                if why:
                    self._disconnectSelectable(selectable, why, True)
            if self._interrupted or calls:
                return
            if ends is not None:
                timeout = ends - seconds()
                if timeout <= 0:
                    return

    doIteration = doPoll

    # -- what may be due before the present wait ends ------------------------------------------

    def callLater(self, delay: float, callable: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        self._interrupted = True
        return super().callLater(delay, callable, *args, **kw)

    def _moveCallLaterSooner(self, delayedCall: Any) -> None:
        self._interrupted = True
        super()._moveCallLaterSooner(delayedCall)

    def stop(self) -> None:
        self._interrupted = True
        super().stop()

    def crash(self) -> None:
        self._interrupted = True
        super().crash()


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
