"""What the kernel holds of a connection: bytes its peer has not taken, bytes nobody has read.

A connection with either is not one to send the next request on.
"""

from __future__ import annotations

import fcntl
import socket
import sys
import termios
from typing import Any

from twisted.internet.tcp import Connection

#: A request up to this size is in the peer's hands, read or not, when the peer has answered.
_SMALL_BYTES = 16 * 1024


def has_unsent(transport: Any, size: int) -> bool:
    """Whether the peer has not taken all that was written.

    :param size: bytes of the request. The kernel is asked for large ones only: a system call.
    """
    tcp = transport
    if not isinstance(tcp, Connection):  # TLS, which wraps it
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


def has_unread(transport: Any) -> bool:
    """Whether something has come that was not read yet: bytes, or the connection's end."""
    tcp = transport if isinstance(transport, Connection) else getattr(transport, "transport", None)
    if not isinstance(tcp, Connection):
        return False
    try:
        tcp.socket.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
