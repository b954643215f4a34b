"""A start that fails although systemd holds the sockets: clients that wait there are told.

systemd tries the start again and again. Meanwhile clients can connect, because the sockets stay
open, but nobody would answer them. So each try answers those that wait with a 503. Where the
gateway speaks TLS they cannot read it; they learn at least that nothing comes.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterable
from contextlib import suppress

from gatewayd.http1.writing import response_head
from gatewayd.wire.errors import NotStarted

from .listening import CannotStart, take

#: The most connections that one try answers.
MOST = 512

#: How long clients may take to close. With unread bytes a close here would be a reset, and the
#: answer might be lost.
LINGER_SECONDS = 1.0


def refuse_waiting(descriptors: Iterable[int]) -> None:
    """Answer all connections that wait to be accepted on these sockets, and close them."""
    clients: list[socket.socket] = []
    for descriptor in descriptors:
        with suppress(CannotStart, OSError), take(descriptor) as listening:
            listening.setblocking(False)
            while len(clients) < MOST:
                clients.append(listening.accept()[0])
    answer = _answer()
    for client in clients:
        client.setblocking(False)
        with suppress(OSError):
            client.send(answer)
            client.shutdown(socket.SHUT_WR)
    _linger(clients)


def _answer() -> bytes:
    error = NotStarted("The gateway cannot start: its settings have a mistake.")
    body = error.body()
    head = response_head(
        error.status,
        (
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            *error.headers,
            (b"connection", b"close"),
        ),
    )
    return head + body


def _linger(clients: list[socket.socket]) -> None:
    """Read and drop what the clients send, until they have closed."""
    open_ones = {client.fileno(): client for client in clients}
    poll = select.poll()
    for descriptor in open_ones:
        poll.register(descriptor, select.POLLIN)
    until = time.monotonic() + LINGER_SECONDS
    while open_ones and (left := until - time.monotonic()) > 0:
        for descriptor, _ in poll.poll(left * 1000):
            try:
                ended = not open_ones[descriptor].recv(65536)
            except OSError:
                ended = True
            if ended:
                poll.unregister(descriptor)
                open_ones.pop(descriptor).close()
    for client in open_ones.values():
        client.close()
