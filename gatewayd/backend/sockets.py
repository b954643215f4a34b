"""What the kernel holds for a connection: bytes that its peer has not taken, bytes not yet read.

A connection with either must not be used for another request.
"""

from __future__ import annotations

import fcntl
import select
import socket
import sys
import termios
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from twisted.internet.tcp import Connection

#: A request up to this size fits into the peer's buffers: once the peer has replied, it has it.
_SMALL_BYTES = 16 * 1024


def has_unsent(transport: Any, size: int) -> bool:
    """Whether the peer has not taken all that was written.

    :param size: of the request, in bytes. Only for a large one is the kernel asked, because that
        costs a system call.
    """
    tcp = transport
    if not isinstance(tcp, Connection):  # TLS, which wraps the TCP transport
        if getattr(transport, "_appSendBuffer", None):
            return True
        tcp = getattr(transport, "transport", None)
    if not isinstance(tcp, Connection):
        return False
    if tcp.dataBuffer or tcp._tempDataLen:
        return True
    if size <= _SMALL_BYTES:
        return False
    try:
        queued = fcntl.ioctl(tcp.fileno(), termios.TIOCOUTQ, bytes(4))
    except OSError:
        return True
    return int.from_bytes(queued, sys.byteorder) > 0


def arrivals(transport: Any) -> Callable[[], Sequence[Any]]:
    """A function that tells whether bytes, or the end of the connection, wait to be read.

    It costs one system call. What it returns is empty if nothing waits. With TLS, bytes may wait
    that the kernel holds no longer: the records of one segment are handed out one by one.
    """
    tcp = transport if isinstance(transport, Connection) else getattr(transport, "transport", None)
    if not isinstance(tcp, Connection):
        return tuple
    poll = select.poll()
    poll.register(tcp.fileno(), select.POLLIN | select.POLLRDHUP)
    in_kernel = partial(poll.poll, 0)
    if tcp is transport:
        return in_kernel
    undelivered = _records(transport.getHandle())
    return lambda: in_kernel() or undelivered()


def _records(tls: Any) -> Callable[[], Sequence[Any]]:
    """As :func:`arrivals`, for what an OpenSSL connection was given and has not handed out."""
    from OpenSSL.SSL import Error, WantReadError  # only with TLS: it takes 12 MiB

    def peek() -> Sequence[Any]:
        try:
            return (tls.recv(1, socket.MSG_PEEK),)
        except WantReadError:
            return ()
        except Error as problem:  # the end is one, too
            return (problem,)

    return peek
