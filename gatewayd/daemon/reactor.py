"""Twisted's epoll reactor, with less between the kernel and a handler.

Twisted makes a logging context for each call of a handler: a name, two dictionaries and six
functions, up to a third of what it costs to relay an event. Nothing here reads that context, so
this one calls the handler. What is not plainly readable (writable, hung up) goes Twisted's way.

:func:`use_monotonic_time` is for every reactor, not for this one alone.
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
    """Has its own way to wait for events and to hand them on; all else is Twisted's."""

    def doPoll(self, timeout: float | None) -> None:
        """Wait for events, ``timeout`` seconds or for ever, and handle them."""
        selectables: dict[int, Any] = self._selectables
        try:
            ready = self._poller.poll(-1 if timeout is None else timeout, len(selectables))
        except InterruptedError:
            return
        for fd, event in ready:
            selectable = selectables.get(fd)
            if selectable is None:
                continue  # a handler before it has closed it
            if event != select.EPOLLIN:
                self._doReadOrWrite(selectable, fd, event)
                continue
            try:
                why = selectable.doRead()
            except BaseException as problem:  # one connection's fault is not the daemon's end
                _log.failure("reading from {selectable} failed", selectable=selectable)
                why = problem
            if why:
                self._disconnectSelectable(selectable, why, True)

    doIteration = doPoll


def install() -> None:
    """Be the reactor of this process, unless one was chosen."""
    if "twisted.internet.reactor" not in sys.modules:
        installReactor(Reactor())


def use_monotonic_time(reactor: Any) -> None:
    """Have this reactor, whichever it is, measure time with a clock that nobody can set.

    Twisted's reactors use ``time.time``: when the wall clock is set forward, every time-out is due
    at once, and when it is set back, none is due for as long. All of them, and all code that is
    given a reactor, ask ``reactor.seconds``. So the wall clock is read with ``time.time`` where it
    is meant, and nowhere else.
    """
    difference = time.monotonic() - reactor.seconds()
    reactor.seconds = time.monotonic
    for call in reactor.getDelayedCalls():  # those of other plugins: usually there is none
        call.time += difference
        call.seconds = time.monotonic
