"""Opens TCP connections to a backend's host and port, to the first address that accepts one.

It replaces Twisted's ``HostnameEndpoint``, which refuses host names with an underscore, never ends
if a lookup fails with an ``OSError`` (no descriptor left), hides why it failed, looks up the name
for each connection, and gives up after 30 seconds even if ``connect`` is longer.
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

from .failures import lookup_failed, tcp_failed
from .shared import Shared

#: After this time without an answer from one address, the next is tried too (RFC 8305, section 5).
STAGGER_SECONDS = 0.3

Address = IPv4Address | IPv6Address


@implementer(IStreamClientEndpoint)
class Endpoint:
    """
    It has no clock: the caller cancels an attempt that takes too long.

    :param host: a name, or an IP address without brackets.
    """

    def __init__(self, reactor: Any, host: str, port: int) -> None:
        self._reactor = reactor
        self._host = host
        self._port = port
        self._literal = _literal(host, port)
        # A lookup occupies a thread of the reactor's small pool until the system's resolver gives
        # up. It is shared, so that a resolver that hangs occupies one thread for each backend.
        self._lookup = Shared(self._look_up, cancels=False)

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect; fails with a :class:`gatewayd.wire.errors.GatewayError`."""
        return self._resolve().addCallback(self._race, protocolFactory)

    def _race(self, addresses: list[Address], factory: IProtocolFactory) -> Deferred[IProtocol]:
        if not addresses:
            return fail(UnknownHost("The backend's host name has no address."))
        race = _Race(self._reactor, addresses, factory)
        race.try_next()
        return race.winner

    def _resolve(self) -> Deferred[list[Address]]:
        if self._literal is not None:
            return succeed([self._literal])
        return self._lookup.get()

    def _look_up(self) -> Deferred[list[Address]]:
        pool = self._reactor.getThreadPool()
        args = self._host.encode("ascii"), self._port, socket.AF_UNSPEC, socket.SOCK_STREAM
        # It raises if no further thread can be started.
        found: Deferred[Any] = maybeDeferred(
            lambda: deferToThreadPool(self._reactor, pool, socket.getaddrinfo, *args)
        )
        return found.addCallbacks(_addresses, _lookup_failed)


class _Race:
    """Connects to the first of several addresses that accepts a connection.

    The next address is tried as soon as all earlier attempts have failed, or after
    :data:`STAGGER_SECONDS`.
    """

    def __init__(
        self, reactor: Any, addresses: Sequence[Address], factory: IProtocolFactory
    ) -> None:
        self._reactor = reactor
        self._untried = list(addresses)
        self._factory = factory
        self._running: list[Deferred[Any]] = []
        self._problem: GatewayError | None = None
        self._timer: IDelayedCall | None = None
        #: Fires with the protocol of the first connection.
        self.winner: Deferred[IProtocol] = Deferred(lambda _: self._stop())

    def try_next(self) -> None:
        """Try the next address."""
        self._timer = None
        address = self._untried.pop(0)
        if self._untried:
            self._timer = self._reactor.callLater(STAGGER_SECONDS, self.try_next)
        attempt: Deferred[Any] = _tcp(self._reactor, address).connect(self._factory)
        self._running.append(attempt)
        attempt.addCallbacks(self._won, self._lost, (attempt,), {}, (attempt, address), {})

    def _won(self, protocol: IProtocol, attempt: Deferred[Any]) -> None:
        self._running.remove(attempt)
        self._stop()
        self.winner.callback(protocol)

    def _lost(self, reason: Failure, attempt: Deferred[Any], address: Address) -> None:
        if attempt not in self._running:
            return  # it was cancelled
        self._running.remove(attempt)
        # Without resources of its own, the gateway cannot know whether an address would answer.
        if not isinstance(self._problem, Exhausted):
            self._problem = tcp_failed(reason, address)
        if self._untried:
            if self._timer is not None:
                self._timer.cancel()
            self.try_next()
        elif not self._running:
            assert self._problem is not None
            self.winner.errback(self._problem)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._untried.clear()
        running, self._running = self._running, []
        for attempt in running:
            attempt.cancel()


def _literal(host: str, port: int) -> Address | None:
    try:
        version = ip_address(host).version
    except ValueError:
        return None
    return IPv6Address("TCP", host, port) if version == 6 else IPv4Address("TCP", host, port)


def _addresses(found: Sequence[tuple[Any, ...]]) -> list[Address]:
    """The addresses that ``getaddrinfo`` returned, in its order."""
    addresses: list[Address] = []
    for family, _, _, _, where in found:
        if family == socket.AF_INET:
            addresses.append(IPv4Address("TCP", *where))
        elif family == socket.AF_INET6:
            addresses.append(IPv6Address("TCP", *where))
    return addresses


def _lookup_failed(reason: Failure) -> Failure:
    return Failure(lookup_failed(reason))


def _tcp(reactor: Any, address: Address) -> IStreamClientEndpoint:
    kind = TCP6ClientEndpoint if isinstance(address, IPv6Address) else TCP4ClientEndpoint
    no_timeout: Any = None  # the caller has the clock
    endpoint: IStreamClientEndpoint = kind(reactor, address.host, address.port, timeout=no_timeout)
    return endpoint
