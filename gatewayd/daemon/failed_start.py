"""A start that fails while systemd holds the sockets: waiting clients get a 503.

systemd repeats the start again and again. Meanwhile clients can connect, because the sockets stay
open, but no process would answer them. So each failed start answers the waiting clients. If the
gateway uses TLS, clients cannot read the answer, but they see that their connection has failed.
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

#: The most connections that one failed start answers.
MOST = 512

#: Seconds that clients get to close their connections. Closing a connection with unread bytes would
#: reset it, and the answer might be lost.
LINGER_SECONDS = 1.0


def refuse_waiting(descriptors: Iterable[int]) -> None:
    """Accept all connections that wait on these sockets, answer them and close them."""
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
    """Read and discard what the clients send until they have closed."""
    still_open = {client.fileno(): client for client in clients}
    poll = select.poll()
    for descriptor in still_open:
        poll.register(descriptor, select.POLLIN)
    deadline = time.monotonic() + LINGER_SECONDS
    while still_open and (remaining := deadline - time.monotonic()) > 0:
        for descriptor, _ in poll.poll(remaining * 1000):
            try:
                ended = not still_open[descriptor].recv(65536)
            except OSError:
                ended = True
            if ended:
                poll.unregister(descriptor)
                still_open.pop(descriptor).close()
    for client in still_open.values():
        client.close()
