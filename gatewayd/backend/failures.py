"""Why no connection to a backend came about, as an error of :mod:`gatewayd.wire.errors`.

What the kernel, the resolver, OpenSSL and Twisted say is put into the error's ``detail``.

What the gateway itself ran out of is told apart: it says nothing about the backend.
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

#: What a system call says when this process or machine has no more to give.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def why(reason: Failure) -> str:
    """A failure in words, for the log."""
    return f"{type(reason.value).__name__}: {reason.getErrorMessage()}"


def not_connected(reason: Failure, address: IAddress) -> GatewayError:
    """Why TCP could not connect to an address."""
    detail = why(reason)
    number = getattr(reason.value, "osError", None)
    if number in _EXHAUSTED or (number == errno.EADDRNOTAVAIL and _has_route(address)):
        return _exhausted(detail)
    if reason.check(error.TimeoutError):
        return ConnectTimeout("The backend could not be connected to in time.", detail=detail)
    return Unreachable("The backend could not be reached.", detail=detail)


def no_address(reason: Failure) -> GatewayError:
    """Why a host name has no address. ``reason`` is what ``getaddrinfo`` raised.

    A ``RuntimeError`` is what Python raises where no thread can be started for it.
    """
    number = getattr(reason.value, "errno", None)
    no_thread = reason.check(RuntimeError) is not None
    if no_thread or number in _EXHAUSTED or _no_descriptor_left():  # resolvers hide why they fail
        return _exhausted(why(reason))
    return UnknownHost("The backend's host name could not be resolved.", detail=why(reason))


def no_tls(detail: str) -> GatewayError:
    """Why TLS did not come about, in the words of ``detail``."""
    if _no_descriptor_left():  # OpenSSL reads the system's trust store when it needs it
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
    """Whether this machine has an address from which that one can be reached.

    ``EADDRNOTAVAIL`` means "no free port" if it has, and "no such network" (``::1`` without IPv6)
    if it has not. Connecting a datagram socket sends nothing.
    """
    host, port = getattr(address, "host", ""), getattr(address, "port", 0)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((host, port))
    except OSError as problem:
        return problem.errno in _EXHAUSTED
    return True
