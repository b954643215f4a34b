"""TLS to a backend: always verified, and with the reason where it fails.

In place of Twisted's ``optionsForClientTLS``, which refuses host names with an underscore, loses
why a certificate was refused, and verifies in a callback from C, which a process that must not
make memory executable (systemd's ``MemoryDenyWriteExecute``) cannot have.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any

from OpenSSL import SSL
from OpenSSL.crypto import X509
from service_identity import VerificationError
from service_identity.cryptography import extract_patterns
from service_identity.hazmat import DNS_ID, IPAddress_ID, verify_service_identity
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from .failures import why


@implementer(IOpenSSLClientConnectionCreator)
class ClientTLS:
    """
    :param host: a name, or an IP address without brackets, for which the certificate must be.
    :param trusted: certificates to trust in place of the system's store.
    :raises ValueError: no certificate can be for such a host.
    """

    def __init__(self, host: str, trusted: Iterable[X509] | None) -> None:
        self._host = host
        self._is_address = _is_address(host)
        try:
            self._identity = IPAddress_ID(host) if self._is_address else DNS_ID(host)
        except ValueError:
            raise ValueError(f"no certificate can be for the host {host}") from None
        self._context = context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_options(SSL.OP_NO_COMPRESSION)
        context.set_mode(SSL.MODE_RELEASE_BUFFERS)
        context.set_verify(SSL.VERIFY_PEER)
        if trusted is None:
            context.set_default_verify_paths()
        else:
            store: Any = context.get_cert_store()
            for certificate in trusted:
                store.add_cert(certificate)

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        connection = SSL.Connection(self._context, None)
        if not self._is_address:  # RFC 6066, section 3: no addresses
            connection.set_tlsext_host_name(self._host.encode("ascii"))
        return connection

    def mismatch(self, connection: SSL.Connection) -> str | None:
        """Why the certificate, which is trusted, is not for this host. None: it is.

        To be called when the handshake is complete, before anything is sent.
        """
        certificate: Any = connection.get_peer_certificate(as_cryptography=True)
        try:
            verify_service_identity(extract_patterns(certificate), [self._identity], [])
        except VerificationError:
            return f"certificate verify failed: it is not for {self._host}"
        except Exception as problem:  # what is in a certificate is up to whoever made it
            return f"certificate verify failed: {type(problem).__name__}: {problem}"
        return None


def explain(reason: Failure, connection: SSL.Connection | None) -> str:
    """Why a connection was lost before its handshake was complete.

    :param connection: OpenSSL's, which knows what was wrong with a certificate.
    """
    if not isinstance(reason.value, SSL.Error):
        return why(reason)
    refused = _refusal(connection)
    return _said(reason.value) + (f": {refused}" if refused else "")


def _said(problem: SSL.Error) -> str:
    """``[("SSL routines", "", "wrong version number")]`` -> ``wrong version number``."""
    queue = problem.args[0] if problem.args and isinstance(problem.args[0], list) else []
    reasons = [entry[2] for entry in queue if isinstance(entry, tuple) and len(entry) == 3]
    return ", ".join(filter(None, reasons)) or repr(problem)


def _refusal(connection: Any) -> str:
    """What OpenSSL has against the peer's certificate. pyOpenSSL tells it to callbacks only."""
    try:
        library: Any = SSL
        code = library._lib.SSL_get_verify_result(connection._ssl)
        text: bytes = library._ffi.string(library._lib.X509_verify_cert_error_string(code))
    except AttributeError:  # not public: another version may lack them
        return ""
    return text.decode("ascii", "replace") if code else ""


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
