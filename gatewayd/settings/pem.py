"""PEM files: certificates, and the private key of the gateway's own certificate.

The checks of settings use the same functions as the daemon, so settings that pass the checks work.
For wrong content the libraries raise many types of errors, which differ between their versions; all
of them become a `ValueError` here.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL, crypto
from twisted.internet.ssl import CertificateOptions

from .files import File, read_file

_BEGIN = b"-----BEGIN CERTIFICATE-----"


def read_certificates(path: str) -> File:
    """Read a file of PEM certificates; text between the certificates is allowed.

    :raises ValueError: the file cannot be read, or OpenSSL rejects a certificate, or it has none.
    """
    file = read_file(path)
    if not certificates_in(file):
        raise ValueError("has no certificate, expected a file of PEM certificates")
    try:
        all_expired(file)
    except Exception as error:
        raise _unusable(error) from None
    return file


def read_own_certificate(path: str) -> File:
    """Like :func:`read_certificates`: the gateway's certificate first, then its chain."""
    file = read_certificates(path)
    try:
        _context_with(file)
        out_of_date(file)
    except Exception as error:
        raise _unusable(error) from None
    return file


def server_context(certificate: File, key: File) -> SSL.Context:
    """The TLS context of a server: Twisted's defaults with this certificate.

    :raises ValueError: the key does not match the certificate or cannot be used.
    """
    try:
        context = _context_with(certificate)
        # Any, because a key of an unsuitable type makes use_privatekey raise a TypeError.
        private: Any = load_pem_private_key(key.content, None)
        context.use_privatekey(private)
        context.check_privatekey()
    except Exception:  # the certificate itself was checked when it was read
        raise ValueError(
            "does not match tls_certificate, expected its private key in PEM without a passphrase"
        ) from None
    return context


def _context_with(certificate: File) -> SSL.Context:
    context = CertificateOptions().getContext()
    own, *chain = _own(certificate)
    context.use_certificate(own)
    for issuer in chain:
        context.add_extra_chain_cert(issuer)
    return context


def out_of_date(certificate: File) -> str | None:
    """The problem if the first certificate is expired or not yet valid today, else None."""
    own, now = _own(certificate)[0], datetime.now(UTC)
    if now > own.not_valid_after_utc:
        return f"expired on {own.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    if now < own.not_valid_before_utc:
        return f"is not valid before {own.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
    return None


def all_expired(trusted: File) -> bool:
    return all(certificate.has_expired() for certificate in certificates_in(trusted))


def _own(file: File) -> list[x509.Certificate]:
    return [certificate.to_cryptography() for certificate in certificates_in(file)]


def certificates_in(file: File) -> list[crypto.X509]:
    """:raises ValueError: a certificate cannot be parsed."""
    found = []
    for block in file.content.split(_BEGIN)[1:]:
        try:
            found.append(crypto.load_certificate(crypto.FILETYPE_PEM, _BEGIN + block))
        except crypto.Error as error:
            raise ValueError(
                f"certificate {len(found) + 1} cannot be read ({_reason(error)}), "
                "expected a file of PEM certificates"
            ) from None
    return found


def _unusable(error: Exception) -> ValueError:
    return ValueError(
        f"cannot be used ({_reason(error)}), expected a certificate that OpenSSL accepts"
    )


def _reason(error: Exception) -> str:
    """``[("SSL routines", "", "ee key too small")]`` -> ``ee key too small``."""
    queue = error.args[0] if error.args else None
    if isinstance(queue, list):
        return ", ".join(entry[2] for entry in queue if entry[2]) or "OpenSSL does not say why"
    return str(error)
