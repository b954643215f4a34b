"""Ports: bound here, or made from a socket that systemd or a supervisor hands over.

What cannot be bound ends the start with one sentence: a daemon without a listener helps nobody.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from twisted.internet import tcp
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort

#: How many connections wait in the kernel until they are accepted.
BACKLOG = 1024


class CannotListen(SystemExit, Exception):
    """Ends the start with a sentence.

    Python prints a SystemExit without a traceback; and of an Exception, nothing else, the
    background process of twistd tells the one that waits for it at the terminal.
    """

    def __init__(self, host: str, port: int, reason: object) -> None:
        super().__init__(f"gatewayd: cannot listen on {host} port {port}: {reason}")


def listen(reactor: Any, host: str, port: int, factory: Any) -> IListeningPort:
    try:
        bound: IListeningPort = reactor.listenTCP(port, factory, backlog=BACKLOG, interface=host)
    except CannotListenError as e:
        reason = getattr(e.socketError, "strerror", None) or e.socketError
        raise CannotListen(host, port, reason) from None
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
        raise CannotListen(host, port, e.strerror) from None
    return bound


def adopt(reactor: Any, descriptor: int, factory: Any) -> IListeningPort:
    """Listen on a socket that was handed over; several processes may accept from it."""
    os.set_blocking(descriptor, False)
    with socket.socket(fileno=os.dup(descriptor)) as listening:
        family = listening.family
    port: IListeningPort = reactor.adoptStreamPort(descriptor, family, factory)
    os.close(descriptor)
    return port


def accept_pending(port: Any) -> None:
    """Accept who is connected already: the port closes in this turn, and that resets the others."""
    if isinstance(port, tcp.Port):
        port.numberAccepts = 4096
        port.doRead()
