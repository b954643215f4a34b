"""A reply's head, and the way from its body to the body's receiver."""

from __future__ import annotations

from typing import Protocol

from twisted.internet.interfaces import IProtocol
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IResponse
from zope.interface import implementer

from gatewayd.http1.replies import ReplyParser

from .headers import crossing


class BodyReceiver(Protocol):
    """Takes a body: its bytes, then the reason of its end."""

    def dataReceived(self, data: bytes) -> None: ...
    def connectionLost(self, reason: Failure) -> None: ...


class Source(Protocol):
    """The connection that a body comes from: :class:`gatewayd.backend.connection.Connection`."""

    response: Response | None
    connect_seconds: float
    replies: int

    def deliver_to(self, receiver: BodyReceiver) -> None: ...
    def discard_rest(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def abort(self) -> None: ...


@implementer(IResponse)
class Response:
    """A reply's head. Its body is held until :meth:`deliverBody`.

    It is treq's response and a :class:`gatewayd.backend.interface.Reply`: no object is made of
    another. It is also the transport of the body's receiver
    (:class:`gatewayd.backend.interface.Body`). Once the body has ended or the receiver has left,
    these methods are no-ops: the connection may serve another request by then.

    :param held: the part of the body that arrived with the head.
    :param key: the API key that the request had.
    """

    version = (b"HTTP", 1, 1)
    phrase = b""
    request = None
    previousResponse = None

    def __init__(self, connection: Source, reply: ReplyParser, held: bytes, key: str = "") -> None:
        self.code = self.status = reply.code
        self.media_type, self.parameters, self.crossing = crossing(reply.fields)
        self.key = key
        self._fields = reply.fields
        self._repeated = reply.repeated
        self.length = UNKNOWN_LENGTH if reply.length is None else reply.length
        self.connect_seconds = connection.connect_seconds if connection.replies == 0 else 0.0
        self._connection = connection
        self._held = held
        self._end: Failure | None = None  # why the body ended, if it did while it was held
        self._left = False  # by the receiver

    @property
    def body(self) -> Response:
        return self

    @property
    def headers(self) -> Headers:
        headers = Headers()
        for name, value in self.all_fields():
            headers.addRawHeader(name, value.strip(b" \t"))
        return headers

    def all_fields(self) -> list[tuple[bytes, bytes]]:
        """All header fields, with names in lower case."""
        return [*self._fields.items(), *self._repeated]

    def setPreviousResponse(self, response: IResponse) -> None:
        """No-op: redirects are not followed."""

    # -- the body's receiver until deliverBody ---------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        self._held += data

    def connectionLost(self, reason: Failure) -> None:
        self._end = reason

    def deliverBody(self, protocol: IProtocol) -> None:
        connection = self._connection
        if connection.response is self:
            connection.deliver_to(protocol)
        protocol.makeConnection(self)  # type: ignore[arg-type]  # has what a body's receiver calls
        held, self._held = self._held, b""
        if held and not self._left:
            protocol.dataReceived(held)
        if self._end is not None and not self._left:
            protocol.connectionLost(self._end)

    # -- the receiver's transport ----------------------------------------------------------------

    def pauseProducing(self) -> None:
        if self._connection.response is self:
            self._connection.pause()

    def resumeProducing(self) -> None:
        if self._connection.response is self:
            self._connection.resume()

    def abortConnection(self) -> None:
        """Close the connection. The receiver is not called again."""
        self._left = True
        if self._connection.response is self:
            self._connection.abort()

    stopProducing = abortConnection

    def loseConnection(self) -> None:
        """Drop the rest of the body, and keep the connection if that rest is short."""
        self._left = True
        if self._connection.response is self:
            self._connection.discard_rest()
