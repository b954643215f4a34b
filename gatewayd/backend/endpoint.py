"""Opens TCP connections to a backend's host and port, whichever of its addresses answers first.

In place of Twisted's ``HostnameEndpoint``. That one refuses host names with an underscore, never
ends when a look-up fails with an ``OSError`` (no descriptor left), hides why it failed, looks a
name up anew for each connection, and gives up after 30 seconds whatever ``connect`` says.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.interfaces import (
    IDelayedCall,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
)
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from zope.interface import implementer

from gatewayd.wire.errors import Exhausted, GatewayError, UnknownHost

from .failures import no_address, not_connected
from .shared import Shared

#: While an address has not answered for this long, the next one is tried too (RFC 8305, section 5).
STAGGER_SECONDS = 0.3

Address = IPv4Address | IPv6Address


@implementer(IStreamClientEndpoint)
class Endpoint:
    """
    It has no clock of its own: who connects cancels when it takes too long.

    :param host: a name, or an IP address without brackets.
    """

    def __init__(self, reactor: Any, host: str, port: int) -> None:
        self._reactor = reactor
        self._host = host
        self._port = port
        self._literal = _literal(host, port)
        # A look-up holds a thread of the reactor's small pool until the system's resolver gives up.
        # Shared by all who wait, one that hangs holds one thread for its backend.
        self._lookup = Shared(self._look_up, cancels=False)

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect; fails with a :class:`gatewayd.wire.errors.GatewayError`."""
        return self._addresses().addCallback(self._race, protocolFactory)

    def _race(self, addresses: list[Address], factory: IProtocolFactory) -> Deferred[IProtocol]:
        if not addresses:
            return fail(UnknownHost("The backend's host name has no address."))
        race = _Race(self._reactor, addresses, factory)
        race.go_on()
        return race.winner

    def _addresses(self) -> Deferred[list[Address]]:
        if self._literal is not None:
            return succeed([self._literal])
        return self._lookup.get()

    def _look_up(self) -> Deferred[list[Address]]:
        pool = self._reactor.getThreadPool()
        args = self._host.encode("ascii"), self._port, socket.AF_UNSPEC, socket.SOCK_STREAM

        def begin() -> Deferred[Any]:  # raises if no further thread can be started
            return deferToThreadPool(self._reactor, pool, socket.getaddrinfo, *args)

        return maybeDeferred(begin).addCallbacks(_known, _unknown)


class _Race:
    """Connects to the first of several addresses that answers.

    The next address is tried when all before it have failed, or are silent for
    :data:`STAGGER_SECONDS`.
    """

    def __init__(
        self, reactor: Any, addresses: Sequence[Address], factory: IProtocolFactory
    ) -> None:
        self._reactor = reactor
        self._left = list(addresses)
        self._factory = factory
        self._running: list[Deferred[Any]] = []
        self._problem: GatewayError | None = None
        self._timer: IDelayedCall | None = None
        self.winner: Deferred[IProtocol] = Deferred(lambda _: self._stop())

    def go_on(self) -> None:
        """Try the next address."""
        self._timer = None
        address = self._left.pop(0)
        if self._left:
            self._timer = self._reactor.callLater(STAGGER_SECONDS, self.go_on)
        attempt: Deferred[Any] = _tcp(self._reactor, address).connect(self._factory)
        self._running.append(attempt)
        attempt.addCallbacks(self._won, self._lost, (attempt,), {}, (attempt, address), {})

    def _won(self, protocol: IProtocol, attempt: Deferred[Any]) -> None:
        self._running.remove(attempt)
        self._stop()
        self.winner.callback(protocol)

    def _lost(self, reason: Failure, attempt: Deferred[Any], address: Address) -> None:
        if attempt not in self._running:
            return  # cancelled
        self._running.remove(attempt)
        if not isinstance(self._problem, Exhausted):  # then it is not known whether it would answer
            self._problem = not_connected(reason, address)
        if self._left:
            if self._timer is not None:
                self._timer.cancel()
            self.go_on()
        elif not self._running:
            assert self._problem is not None
            self.winner.errback(self._problem)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._left.clear()
        running, self._running = self._running, []
        for attempt in running:
            attempt.cancel()


def _literal(host: str, port: int) -> Address | None:
    try:
        version = ip_address(host).version
    except ValueError:
        return None
    return IPv6Address("TCP", host, port) if version == 6 else IPv4Address("TCP", host, port)


def _known(found: Sequence[tuple[Any, ...]]) -> list[Address]:
    """The addresses in what ``getaddrinfo`` returned, in its order."""
    addresses: list[Address] = []
    for family, _, _, _, where in found:
        if family == socket.AF_INET:
            addresses.append(IPv4Address("TCP", *where))
        elif family == socket.AF_INET6:
            addresses.append(IPv6Address("TCP", *where))
    return addresses


def _unknown(reason: Failure) -> Failure:
    return Failure(no_address(reason))


def _tcp(reactor: Any, address: Address) -> IStreamClientEndpoint:
    kind = TCP6ClientEndpoint if isinstance(address, IPv6Address) else TCP4ClientEndpoint
    never: Any = None  # the caller's clock is the only one
    endpoint: IStreamClientEndpoint = kind(reactor, address.host, address.port, timeout=never)
    return endpoint
