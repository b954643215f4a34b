"""A connection to a backend on which one request asks for a WebSocket.

Until the reply's head it is an ordinary connection (:mod:`.connection`), and so it is if the
backend refuses. If the backend accepts, all further bytes are the body of the reply with status
101, and bytes can be sent back until either side closes. Such a connection is never used again.
"""

from __future__ import annotations

from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from gatewayd.http1.handshake import asks_for_websocket
from gatewayd.http1.head import Fields
from gatewayd.http1.replies import ReplyParser
from gatewayd.sending import send, tcp_of, tune
from gatewayd.wire.errors import BadReply

from .connection import Connection
from .sockets import has_unsent

#: Seconds after which a connection is reset if the last bytes have not been taken.
CLOSING_SECONDS = 2.0


class UpgradeParser(ReplyParser):
    """Parses the reply to a request for a WebSocket. After status 101 all bytes are the body."""

    _switched = False

    def feed(self, data: bytes) -> bytes:
        return data if self._switched else super().feed(data)

    def switched(self, rest: bytes) -> None:
        self._switched = True
        if rest:
            self._body.append(rest)

    def on_headers_complete(self) -> None:
        if self._parser.get_status_code() != 101:
            super().on_headers_complete()
            return
        self._head_ended = True
        self._sort_lines()
        fields = Fields((*self.fields.items(), *self.repeated))
        # llhttp says whether there is ``Connection: Upgrade``; without it, it parses no further.
        if not (asks_for_websocket(fields) and self._parser.should_upgrade()):
            raise BadReply("The backend switched to another protocol.")
        self.code = 101

    def _read_about_connection(self, name: bytes, value: bytes) -> None:
        if self._parser.get_status_code() != 101:  # which has no framing
            super()._read_about_connection(name, value)

    def on_message_complete(self) -> None:
        if self.code != 101:  # whose body has no end
            super().on_message_complete()


class UpgradeConnection(Connection):
    """The connection of one request for a WebSocket.

    :param max_head: the largest head of the reply, in bytes.
    """

    parser = UpgradeParser

    _registered = False
    _closing: IDelayedCall | None = None

    def __init__(self, reactor: IReactorTime, max_head: int) -> None:
        super().__init__(reactor, max_head, Connection.abort, lambda _: None)

    def write(self, data: bytes) -> None:
        """Send bytes to a backend that has accepted. No-op once the connection is closed."""
        if self.transport is not None:
            send(self.transport, data)

    def register(self, producer: IPushProducer) -> None:
        """Have ``producer`` paused while the backend does not take what was written."""
        if self.transport is not None:
            self._registered = True
            tune(self.transport)
            self.transport.registerProducer(producer, True)

    def close(self, last: bytes) -> None:
        """Send what is pending and these bytes, then close. The receiver is not called again."""
        transport, self.transport = self.transport, None  # so that abort() only changes the state
        self.abort()
        if transport is None:
            return
        self._closing = self._reactor.callLater(CLOSING_SECONDS, transport.abortConnection)
        if last:
            send(transport, last)
        if self._registered:
            transport.unregisterProducer()
        transport.loseConnection()
        tcp_of(transport).loseConnection()  # does not wait for the backend's close_notify

    def close_at_once(self, last: bytes) -> None:
        """As :meth:`close`, but reset the connection if the backend has not taken earlier bytes."""
        if self.transport is None or has_unsent(self.transport, 0):
            self.abort()
        else:
            self.close(last)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._closing is not None:
            if self._closing.active():
                self._closing.cancel()
            self._closing = None
        super().connectionLost(reason)
