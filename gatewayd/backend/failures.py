"""Errors for connections to a backend that could not be opened.

What the kernel, the resolver, OpenSSL and Twisted report goes into the error's ``detail``. Where
the gateway itself has run out of a resource, the error is :class:`~gatewayd.wire.errors.Exhausted`,
because that says nothing about the backend.
"""

from __future__ import annotations

import errno
import os
import socket

from twisted.internet import error
from twisted.internet.interfaces import IAddress
from twisted.python.failure import Failure

from gatewayd.wire.errors import (
    ConnectTimeout,
    Exhausted,
    GatewayError,
    TLSFailed,
    UnknownHost,
    Unreachable,
)

#: Error numbers that mean: this process or this machine has no more of a resource.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def describe(reason: Failure) -> str:
    """A failure as a text for the log."""
    return f"{type(reason.value).__name__}: {reason.getErrorMessage()}"


def tcp_failed(reason: Failure, address: IAddress) -> GatewayError:
    """The error for a TCP connection to ``address`` that failed."""
    detail = describe(reason)
    number = getattr(reason.value, "osError", None)
    if number in _EXHAUSTED or (number == errno.EADDRNOTAVAIL and _has_route(address)):
        return _exhausted(detail)
    if reason.check(error.TimeoutError):
        return ConnectTimeout("The backend could not be connected to in time.", detail=detail)
    return Unreachable("The backend could not be reached.", detail=detail)


def lookup_failed(reason: Failure) -> GatewayError:
    """The error for a name lookup that failed.

    :param reason: what ``getaddrinfo`` raised. A ``RuntimeError`` means that Python could not start
        a thread for it.
    """
    number = getattr(reason.value, "errno", None)
    no_thread = reason.check(RuntimeError) is not None
    if no_thread or number in _EXHAUSTED or _no_descriptor_left():  # resolvers do not say why
        return _exhausted(describe(reason))
    detail = describe(reason)
    return UnknownHost("The backend's host name could not be resolved.", detail=detail)


def tls_failed(detail: str) -> GatewayError:
    """The error for a TLS handshake that failed."""
    if _no_descriptor_left():  # OpenSSL opens the system's trust store during the handshake
        return _exhausted(detail)
    return TLSFailed("No TLS connection to the backend could be made.", detail=detail)


def _exhausted(detail: str) -> Exhausted:
    return Exhausted("The gateway has no connection left for a backend.", detail=detail)


def _no_descriptor_left() -> bool:
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as problem:
        return problem.errno in _EXHAUSTED
    return False


def _has_route(address: IAddress) -> bool:
    """Whether this machine has an address from which ``address`` can be reached.

    If it has, ``EADDRNOTAVAIL`` means that no port is free; if not, that there is no such network
    (``::1`` without IPv6). Connecting a datagram socket sends nothing.
    """
    host, port = getattr(address, "host", ""), getattr(address, "port", 0)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((host, port))
    except OSError as problem:
        return problem.errno in _EXHAUSTED
    return True
