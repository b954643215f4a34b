"""The client's side of an open tunnel: passes on what the client sends, while that is wanted.

While the backend is too slow, the client's socket is not read, so that the client slows down, too.
The transport cannot notice a disconnect then. A :class:`Passage` asks the kernel instead, several
times a second, because a client that disconnects must not keep a backend busy.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from gatewayd.sending import tcp_of

#: Seconds between two looks at a connection that is not read.
CHECK_SECONDS = 0.05

#: The state of an open TCP connection, in the first byte of Linux's ``struct tcp_info``.
_ESTABLISHED = 1


class Passage:
    """
    :param receive: is given the client's bytes.
    :param left: called when the client has disconnected while it was not read.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        transport: Any,
        receive: Callable[[bytes], None],
        left: Callable[[], None],
    ) -> None:
        self.receive = receive
        #: Whether the client is not to be read.
        self.holding = False
        self._reactor = reactor
        self._transport = transport
        self._left = left
        self._timer: IDelayedCall | None = None

    def hold(self, wanted: bool) -> None:
        """Have the client not read, or read again."""
        self.stop()
        self.holding = wanted
        if wanted:
            self._timer = self._reactor.callLater(CHECK_SECONDS, self._check)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self) -> None:
        self._timer = None
        if has_disconnected(self._transport):
            self._left()
        else:
            self._timer = self._reactor.callLater(CHECK_SECONDS, self._check)


def has_disconnected(transport: Any) -> bool:
    """Whether the peer has closed or reset its side; bytes before that may be unread."""
    try:
        tcp: socket.socket = tcp_of(transport).socket
        return tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _ESTABLISHED
    except (AttributeError, OSError):  # not a socket, or closed meanwhile
        return False
