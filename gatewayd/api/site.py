"""Accepts connections: makes a channel for each, and passes its requests to the application.

It is Twisted Web's ``Site`` with another channel (:mod:`.channel`), without Twisted's access log
(:mod:`gatewayd.telemetry` writes one) and without its clock for the date (:mod:`.state` has one).
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.web import server
from twisted.web.resource import IResource

from gatewayd.exchange import Exchange
from gatewayd.settings.model import Settings

from .channel import Channel
from .request import Request
from .state import ServerState


class Site(server.Site):
    """
    :param resource: its ``render`` answers the request by itself (``NOT_DONE_YET``).
    :param admit: called with each request whose head is valid, before its body is read; raises a
        :class:`gatewayd.wire.errors.GatewayError` to refuse it.
    :param on_end: called with each exchange that has ended.
    :param max_connections: connections that are served; further ones are refused.
    """

    def __init__(
        self,
        resource: IResource,
        settings: Settings,
        reactor: IReactorTime,
        admit: Callable[[Request], None],
        on_end: Callable[[Exchange], None],
        max_connections: int,
    ) -> None:
        super().__init__(resource, reactor=reactor, parsePOSTFormSubmission=False)
        self.state = ServerState(settings, reactor, on_end, max_connections)
        self._admit = admit

    def replace(self, resource: IResource, admit: Callable[[Request], None]) -> None:
        """Use these for new requests."""
        self.resource, self._admit = resource, admit
        self.state.known_heads.forget()

    # -- Twisted's hooks -----------------------------------------------------------------------

    def buildProtocol(self, addr: IAddress | None) -> Channel:  # type: ignore[override]
        return Channel(self.state, self._admit_request, self._handle_request)

    def acceptableProtocols(self) -> list[bytes]:
        """What TLS may agree on (ALPN). A client that offers none of them is refused."""
        return [b"http/1.1", b"http/1.0"]

    def startFactory(self) -> None:
        """Open no log file, and start no clock."""

    def stopFactory(self) -> None:
        """Nothing was started."""

    def log(self, request: object) -> None:
        """The end of an exchange is logged instead: see :mod:`gatewayd.telemetry.access`."""

    # -- what channels call: the latest ``admit`` and ``resource`` ------------------------------

    def _admit_request(self, request: Request) -> None:
        self._admit(request)

    def _handle_request(self, request: Request) -> None:
        self.resource.render(request)
