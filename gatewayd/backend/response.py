"""A reply's head, and what its body's receiver may do to the connection while the body lasts."""

from __future__ import annotations

from typing import Protocol

from twisted.internet.interfaces import IProtocol
from twisted.web.iweb import UNKNOWN_LENGTH, IResponse
from zope.interface import implementer

from gatewayd.http1.replies import ReplyParser

from .headers import ReadyHeaders


class Source(Protocol):
    """Where a body comes from: :class:`gatewayd.backend.connection.Connection`."""

    response: Response | None
    connect_seconds: float
    replies: int

    def deliver(self, response: Response, receiver: IProtocol) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def leave(self) -> None: ...
    def drain(self) -> None: ...


@implementer(IResponse)
class Response:
    """A reply's head; its body waits until :meth:`deliverBody`.

    It is also the transport of the body's receiver, see
    :class:`gatewayd.backend.interface.Body`, for as long as that body is the connection's: once it
    has ended or was left, the receiver can no longer touch the connection, which may be at
    another request.
    """

    version = (b"HTTP", 1, 1)
    phrase = b""
    request = None
    previousResponse = None

    def __init__(self, connection: Source, reply: ReplyParser) -> None:
        self.code = reply.code
        self.headers = ReadyHeaders(reply.fields)
        self.length = UNKNOWN_LENGTH if reply.length is None else reply.length
        self.connect_seconds = connection.connect_seconds if connection.replies == 0 else 0.0
        self._connection = connection

    def deliverBody(self, protocol: IProtocol) -> None:
        self._connection.deliver(self, protocol)

    def setPreviousResponse(self, response: IResponse) -> None:
        """Redirects are never followed, so there is none."""

    def pauseProducing(self) -> None:
        if self._connection.response is self:
            self._connection.pause()

    def resumeProducing(self) -> None:
        if self._connection.response is self:
            self._connection.resume()

    def abortConnection(self) -> None:
        """The receiver wants no more, nor to be told of the end."""
        if self._connection.response is self:
            self._connection.leave()

    stopProducing = abortConnection

    def loseConnection(self) -> None:
        """The receiver has all it needs: keep the connection if the body ends soon."""
        if self._connection.response is self:
            self._connection.drain()
