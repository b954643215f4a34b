"""Writing to a transport at once, rather than when the reactor comes round to it.

Twisted's transports keep what is written, register with epoll for a writable socket, and write in
the next turn: for a token of 200 bytes that is two system calls and a turn too many. Sockets are
nearly always writable, so here the kernel is asked first, and only what it does not take goes the
usual way. Measured in a bare relay: 20-25 us instead of 30-39 us of CPU for each event.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any

from twisted.internet.tcp import Connection

#: How much the kernel may hold that it has not sent yet. It would take megabytes for a client that
#: does not read, and the client's slowness would reach the backend that much later.
UNSENT_BYTES = 128 * 1024

_TCP_NOTSENT_LOWAT = 25  # Linux; Python does not name it before 3.12


def tcp_of(transport: Any) -> Any:
    """The transport below TLS, or this one where there is no TLS."""
    return getattr(transport, "transport", None) or transport


def tune(transport: Any) -> None:
    """Have a socket send at once, and take no more than :data:`UNSENT_BYTES` ahead of its peer."""
    with suppress(AttributeError, OSError):  # tests have transports without a socket
        tcp = tcp_of(transport).socket
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tcp.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, UNSENT_BYTES)


def send(transport: Any, data: bytes) -> None:
    """Write ``data``, now if the kernel takes it and nothing is waiting before it."""
    if (
        isinstance(transport, Connection)  # not TLS, which wraps one and must see the bytes
        and not transport.TLS
        and transport.connected
        and not transport.disconnecting
        and not transport._writeDisconnecting
        and not transport._tempDataLen
        and not transport.dataBuffer
    ):
        try:
            sent = transport.socket.send(data)
        except OSError:  # full, or broken: the reactor will find out which
            sent = 0
        if sent == len(data):
            return
        data = data[sent:]
    transport.write(data)
