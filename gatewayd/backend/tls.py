"""TLS to a backend: the certificate is always verified, and a failure has its reason.

It replaces Twisted's ``optionsForClientTLS``, which refuses host names with an underscore, does not
tell why a certificate was refused, and verifies in a callback from C. Such a callback needs memory
that is writable and executable, which systemd's ``MemoryDenyWriteExecute`` forbids.
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
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IProtocolFactory
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from .failures import describe


@implementer(IOpenSSLClientConnectionCreator)
class ClientTLS:
    """
    :param host: the name, or IP address without brackets, that the certificate must be valid for.
    :param trusted: certificates to trust in place of the system's store.
    :raises ValueError: no certificate can be valid for such a host.
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

    def wrap(self, factory: IProtocolFactory) -> TLSMemoryBIOFactory:
        """A factory whose protocols speak TLS; those of ``factory`` get the decrypted bytes."""
        return TLSMemoryBIOFactory(self, True, factory)

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        connection = SSL.Connection(self._context, None)
        if not self._is_address:  # RFC 6066, section 3: no addresses
            connection.set_tlsext_host_name(self._host.encode("ascii"))
        return connection

    def mismatch(self, connection: SSL.Connection) -> str | None:
        """Why the peer's trusted certificate is not valid for this host; None if it is.

        Call it when the handshake is complete, before anything is sent.
        """
        certificate: Any = connection.get_peer_certificate(as_cryptography=True)
        try:
            verify_service_identity(extract_patterns(certificate), [self._identity], [])
        except VerificationError:
            return f"certificate verify failed: it is not for {self._host}"
        except Exception as problem:  # a certificate can hold anything
            return f"certificate verify failed: {type(problem).__name__}: {problem}"
        return None

    @staticmethod
    def handshake_problem(reason: Failure, connection: SSL.Connection | None) -> str:
        """Why a connection was lost before its handshake was complete.

        :param connection: OpenSSL's connection, which knows why a certificate was refused.
        """
        if not isinstance(reason.value, SSL.Error):
            return describe(reason)
        refused = _verify_error(connection)
        return _reasons(reason.value) + (f": {refused}" if refused else "")


def _reasons(problem: SSL.Error) -> str:
    """``[("SSL routines", "", "wrong version number")]`` -> ``wrong version number``."""
    queue = problem.args[0] if problem.args and isinstance(problem.args[0], list) else []
    reasons = [entry[2] for entry in queue if isinstance(entry, tuple) and len(entry) == 3]
    return ", ".join(filter(None, reasons)) or repr(problem)


def _verify_error(connection: Any) -> str:
    """Why OpenSSL refused the peer's certificate. pyOpenSSL passes that to callbacks only."""
    try:
        library: Any = SSL
        code = library._lib.SSL_get_verify_result(connection._ssl)
        text: bytes = library._ffi.string(library._lib.X509_verify_cert_error_string(code))
    except AttributeError:  # private names, which another version of pyOpenSSL may lack
        return ""
    return text.decode("ascii", "replace") if code else ""


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
