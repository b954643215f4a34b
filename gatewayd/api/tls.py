"""TLS with clients: the gateway's own certificate, which a reload may replace while streams run."""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator, IProtocolFactory
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from zope.interface import implementer


@implementer(IOpenSSLServerConnectionCreator)
class Certificate:
    """Makes the TLS side of new connections.

    :param context: from :func:`gatewayd.settings.pem.server_context`. Replacing it affects new
        connections only.
    """

    def __init__(self, context: SSL.Context) -> None:
        self.context = context

    def wrap(self, factory: IProtocolFactory, clock: Any) -> TLSMemoryBIOFactory:
        """A factory for TLS; what it receives goes to the protocols of ``factory``."""
        return TLSMemoryBIOFactory(self, False, factory, clock)

    def serverConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        return SSL.Connection(self.context, None)
