"""Ports: bound here, or made from sockets that systemd or a supervisor hands over.

What cannot be bound ends the start with one sentence: a daemon without a listener helps nobody.
"""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet import tcp
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort

#: How many connections wait in the kernel until they are accepted.
BACKLOG = 1024

#: How many connections are accepted in one turn of the loop. Twisted begins with 100 and takes more
#: and more; those that are too many would use up the file descriptors before any can be refused.
ACCEPTED_AT_ONCE = 16


class CannotStart(SystemExit, Exception):
    """Ends the start with a sentence.

    Python prints a SystemExit without a traceback; and of an Exception, nothing else, the
    background process of twistd tells the one that waits for it at the terminal.
    """

    def __init__(self, why: str) -> None:
        super().__init__(f"gatewayd: {why}")


def _cannot_listen(host: str, port: int, reason: object) -> CannotStart:
    return CannotStart(f"cannot listen on {host} port {port}: {reason}")


def listen(reactor: Any, host: str, port: int, factory: Any) -> IListeningPort:
    try:
        bound: IListeningPort = reactor.listenTCP(port, factory, backlog=BACKLOG, interface=host)
    except CannotListenError as e:
        reason = getattr(e.socketError, "strerror", None) or e.socketError
        raise _cannot_listen(host, port, reason) from None
    _accept_few(bound)
    return bound


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens, for others to accept from."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(BACKLOG)
    except OSError as e:
        raise _cannot_listen(host, port, e.strerror) from None
    return bound


def take(descriptor: int) -> socket.socket:
    """The listening socket that was handed over with this descriptor.

    :raises CannotStart: it is something else.
    """
    try:
        given = socket.socket(fileno=descriptor)
        listens = given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError:
        listens = 0
    if not listens or given.type != socket.SOCK_STREAM:
        said = "was handed over and is no listening stream socket (ListenStream=)"
        raise CannotStart(f"descriptor {descriptor} {said}")
    return given


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
    """Accept who is connected already: the port closes in this turn, and that resets the others."""
    if isinstance(port, tcp.Port):
        port.numberAccepts = 4096
        tcp.Port.doRead(port)
