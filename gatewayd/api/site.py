"""Accepts connections: makes a channel for each, and passes its requests to the application.

Twisted Web's own ``Site`` is not used. It makes Twisted's channel, which :mod:`.channel` replaces,
writes an access log, as :mod:`gatewayd.telemetry` does here, and has a clock for the date, which
:mod:`.state` has here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.interfaces import IAddress, IProtocolNegotiationFactory, IReactorTime
from twisted.internet.protocol import Factory
from zope.interface import implementer

from gatewayd.exchange import Exchange
from gatewayd.settings.model import Settings

from .channel import Channel
from .handling import handle
from .request import Request
from .state import ServerState


class Resource(Protocol):
    """Answers requests, as :class:`gatewayd.api.routes.Routes` does."""

    def render(self, request: Request) -> Any:
        """Return what a handler may return: see :mod:`.handling`."""


@implementer(IProtocolNegotiationFactory)
class Site(Factory):
    """
    :param resource: answers the requests.
    :param admit: called with each request whose head is valid, before its body is read; raises a
        :class:`gatewayd.wire.errors.GatewayError` to refuse it.
    :param on_end: called with each exchange that has ended.
    :param max_connections: connections that are served; further ones are refused.
    """

    def __init__(
        self,
        resource: Resource,
        settings: Settings,
        reactor: IReactorTime,
        admit: Callable[[Request], None],
        on_end: Callable[[Exchange], None],
        max_connections: int,
    ) -> None:
        self.state = ServerState(settings, reactor, on_end, max_connections)
        self._resource = resource
        self._admit = admit

    def replace(self, resource: Resource, admit: Callable[[Request], None]) -> None:
        """Use these for new requests."""
        self._resource, self._admit = resource, admit

    # -- Twisted's hooks -----------------------------------------------------------------------

    def buildProtocol(self, addr: IAddress | None) -> Channel:
        return Channel(self.state, self._admit_request, self._handle_request)

    def acceptableProtocols(self) -> list[bytes]:
        """What TLS may agree on (ALPN). A client that offers none of them is refused."""
        return [b"http/1.1", b"http/1.0"]

    # -- what channels call: the latest ``admit`` and ``resource`` ------------------------------

    def _admit_request(self, request: Request) -> None:
        self._admit(request)

    def _handle_request(self, request: Request) -> None:
        handle(request, self._resource.render)
