"""The gateway's own certificate, which may be renewed while streams run."""

from __future__ import annotations

from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer


@implementer(IOpenSSLServerConnectionCreator)
class Certificate:
    """Opens TLS for new connections.

    :param context: as of :func:`gatewayd.settings.pem.server_context`; another one may take its
        place.
    """

    def __init__(self, context: SSL.Context) -> None:
        self.context = context

    def serverConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        return SSL.Connection(self.context, None)
