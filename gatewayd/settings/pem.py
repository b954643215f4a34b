"""PEM files: certificates, and the key of the gateway's own. From content alone, no file is opened.

What settings are checked with is what the daemon uses, so settings that pass the check can be used.
The libraries raise many kinds of errors for content that is not as it should be, and more with
each version: here all of them are a ValueError.
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


def certificates(path: str) -> File:
    """The value of a setting that names a file of PEM certificates; anything beside them is fine.

    :raises ValueError: it cannot be read, has no certificate, or one that OpenSSL does not take.
    """
    file = read_file(path)
    if not certificates_in(file):
        raise ValueError("has no certificate, expected a file of PEM certificates")
    try:
        all_expired(file)
    except Exception as error:
        raise _unusable(error) from None
    return file


def own_certificate(path: str) -> File:
    """Like :func:`certificates`: the gateway's own, and behind it the chain to its authority."""
    file = certificates(path)
    try:
        _context_with(file)
        out_of_date(file)
    except Exception as error:
        raise _unusable(error) from None
    return file


def server_context(certificate: File, key: File) -> SSL.Context:
    """How to open TLS as a server: Twisted's defaults, with this certificate.

    :raises ValueError: OpenSSL does not take the certificate, or the key is not its key.
    """
    try:
        context = _context_with(certificate)
        private: Any = load_pem_private_key(key.content, None)  # other kinds raise a TypeError
        context.use_privatekey(private)
        context.check_privatekey()
    except Exception:  # the certificate was good when it was read
        raise ValueError(
            "is not the key of tls_certificate, expected its PEM file without a passphrase"
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
    """What is wrong today with the dates of the first certificate in a file."""
    own, now = _own(certificate)[0], datetime.now(UTC)
    if now > own.not_valid_after_utc:
        return f"has expired on {own.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    if now < own.not_valid_before_utc:
        return f"is not valid before {own.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
    return None


def all_expired(trusted: File) -> bool:
    return all(certificate.has_expired() for certificate in certificates_in(trusted))


def _own(file: File) -> list[x509.Certificate]:
    return [certificate.to_cryptography() for certificate in certificates_in(file)]


def certificates_in(file: File) -> list[crypto.X509]:
    """Its certificates, in their order."""
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
        f"cannot be used ({_reason(error)}), expected a certificate that OpenSSL takes"
    )


def _reason(error: Exception) -> str:
    """``[("SSL routines", "", "ee key too small")]`` -> ``ee key too small``."""
    queue = error.args[0] if error.args else None
    if isinstance(queue, list):
        return ", ".join(entry[2] for entry in queue if entry[2]) or "OpenSSL does not say why"
    return str(error)
