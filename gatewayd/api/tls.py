"""The gateway's own certificate, which may be renewed while streams run."""

from __future__ import annotations

from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.ssl import CertificateOptions
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer


@implementer(IOpenSSLServerConnectionCreator)
class Certificate:
    """Opens TLS with the certificate that was loaded last; Twisted's defaults for the rest.

    :param certificate: a PEM file with the certificate and its chain.
    :param key: a PEM file with its key.
    """

    def __init__(self, certificate: str, key: str) -> None:
        self.load(certificate, key)

    def load(self, certificate: str, key: str) -> None:
        """Use these files for new connections from now on."""
        context = CertificateOptions().getContext()
        context.use_certificate_chain_file(certificate)
        context.use_privatekey_file(key)
        context.check_privatekey()
        self._context = context

    def serverConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        return SSL.Connection(self._context, None)
