"""Listening sockets: bound here, or handed over by systemd or a supervisor.

If a port cannot be bound, the start ends with a message of one line.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any

from twisted.internet import tcp
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort

#: How many connections may wait in the kernel until they are accepted.
BACKLOG = 1024

#: How many connections are accepted in one turn of the loop. Twisted accepts 100 and then more and
#: more, which could use up the file descriptors before any surplus connection is refused.
ACCEPTED_AT_ONCE = 16


class CannotStart(SystemExit, Exception):
    """Ends the start with a message of one line.

    Python prints a SystemExit without a traceback. It is an Exception too, because the background
    process of twistd reports only these to the process that waits at the terminal.
    """

    def __init__(self, why: str) -> None:
        super().__init__(f"gatewayd: {why}")


def _cannot_listen(host: str, port: int, reason: object) -> CannotStart:
    return CannotStart(f"cannot listen on {host} port {port}: {reason}")


def listen(reactor: Any, host: str, port: int, factory: Any) -> IListeningPort:
    """Listen on a port of this machine.

    :raises CannotStart: it cannot be bound.
    """
    try:
        bound: IListeningPort = reactor.listenTCP(port, factory, backlog=BACKLOG, interface=host)
    except CannotListenError as e:
        reason = getattr(e.socketError, "strerror", None) or e.socketError
        raise _cannot_listen(host, port, reason) from None
    _accept_few(bound)
    return bound


def bind(host: str, port: int) -> socket.socket:
    """A listening socket from which other processes accept."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(BACKLOG)
    except OSError as e:
        bound.close()
        raise _cannot_listen(host, port, e.strerror) from None
    return bound


def take(descriptor: int) -> socket.socket:
    """The listening socket with this descriptor, which was handed over.

    :raises CannotStart: the descriptor is no listening socket.
    """
    with suppress(OSError):
        given = socket.socket(fileno=descriptor)
        listens = given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if listens and given.type == socket.SOCK_STREAM:
            return given
        given.close()
    reason = "was handed over and is no listening stream socket (ListenStream=)"
    raise CannotStart(f"descriptor {descriptor} {reason}")


def adopt(reactor: Any, descriptor: int, factory: Any) -> IListeningPort:
    """Listen on a socket that was handed over; several processes may accept from it."""
    with take(descriptor) as given:
        given.setblocking(False)
        port: IListeningPort = reactor.adoptStreamPort(descriptor, given.family, factory)
    _accept_few(port)
    return port


def _accept_few(port: Any) -> None:
    """Have a port accept at most :data:`ACCEPTED_AT_ONCE` connections in one turn."""
    if not isinstance(port, tcp.Port):
        return

    def do_read() -> None:
        port.numberAccepts = ACCEPTED_AT_ONCE
        tcp.Port.doRead(port)

    port.doRead = do_read  # type: ignore[method-assign]  # Twisted has no setting for it


def accept_pending(port: Any) -> None:
    """Accept the connections that wait; closing the port in this turn would reset them."""
    if isinstance(port, tcp.Port):
        port.numberAccepts = 4096
        tcp.Port.doRead(port)
