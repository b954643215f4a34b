"""One request as Klein sees it, and the ways to answer it. Each ends the exchange as it should."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING

from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http, server

from gatewayd.exchange import End, Exchange
from gatewayd.wire import sse
from gatewayd.wire.errors import GatewayError, Internal

from .security import ANYONE

if TYPE_CHECKING:
    from .channel import Channel

_log = Logger()

_PHRASES = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}

#: nginx's, for the log: the client left before it was answered.
CLIENT_CLOSED_REQUEST = 499


class Request(server.Request):
    """
    :param channel: the connection that it came on.
    """

    # Twisted deletes the instance's own when it has finished, and sets None after a disconnect.
    channel: Channel | None = None  # type: ignore[assignment]
    defaultContentType = None

    def __init__(self, channel: Channel, exchange: Exchange) -> None:
        super().__init__(channel, parsePOSTFormSubmission=False)
        self.exchange = exchange
        self.caller = ANYONE
        self.preflight = False
        self.body = b""
        self._events = True
        self._error: GatewayError | None = None
        gateway = channel.site.settings.gateway
        self.setHeader(b"server", gateway.api_title.encode("ascii"))
        self.setHeader(b"date", http.datetimeToString())
        self.setHeader(b"x-content-type-options", b"nosniff")
        self.setHeader(gateway.request_id_header.encode("ascii"), exchange.id.encode("ascii"))

    # -- answering -----------------------------------------------------------------------------

    def respond(
        self,
        status: int,
        body: bytes,
        headers: Sequence[tuple[bytes, bytes]] = (),
        media_type: bytes = b"application/json",
    ) -> None:
        """Answer with a whole body and end."""
        self._last_if_draining()
        self.setResponseCode(status, _PHRASES.get(status, b"Error"))
        self.set_headers(headers)
        self.setHeader(b"content-type", media_type)
        self.setHeader(b"content-length", b"%d" % len(body))
        self.write(body)
        self.finish()

    def fail(self, error: GatewayError) -> None:
        """Answer with an error envelope and end as the error says."""
        if self.finished or self._disconnected:
            return
        headers = list(error.headers)
        if error.executed:  # whatever the backend itself may think of it
            headers.append((b"x-should-retry", b"false"))
        self._error = error
        self.respond(error.status, error.body(), headers)

    def begin_stream(self, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """Answer with an event stream: :meth:`write` its frames, then :meth:`finish`."""
        self._last_if_draining()
        self.set_headers(headers)
        self.setHeader(b"content-type", b"text/event-stream")
        self.setHeader(b"cache-control", b"no-cache")
        self.setHeader(b"x-accel-buffering", b"no")

    def begin_bytes(self, headers: Sequence[tuple[bytes, bytes]], media_type: str) -> None:
        """Answer with bytes of any type, as :meth:`begin_stream` does with events."""
        self._last_if_draining()
        self.set_headers(headers)
        self.setHeader(b"content-type", media_type.encode("latin-1"))
        self._events = False

    def cut(self, error: GatewayError) -> None:
        """End a stream that was begun with an error event, and without the last chunk."""
        if self.finished or self._disconnected:
            return
        if self._events:
            self.write(sse.encode(error.body()))
        self._error = error
        self._end()
        if self.channel is not None:
            self.channel.close_lingering()

    def finish(self) -> None:
        if self.exchange.end is not None:
            return  # Klein finishes every request, also those that have ended or were cut
        self._end()
        super().finish()

    def set_headers(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Headers of the answer, whatever answer it will be."""
        for name, value in headers:
            self.setHeader(name, value)

    def _last_if_draining(self) -> None:
        if self.channel is not None and self.channel.site.draining:
            self.setHeader(b"connection", b"close")

    def _end(self) -> None:
        self._account()
        error, now = self._error, self._now()
        if error is None:
            self.exchange.finish(End.COMPLETE, now)
        else:
            self.exchange.finish(End(error.end), now, code=error.code, detail=error.detail)

    def _account(self) -> None:
        self.exchange.status = self.code
        self.exchange.bytes_out = self.sentLength

    def _now(self) -> float:
        assert self.channel is not None
        return self.channel.site.reactor.seconds()

    # -- Twisted Web's hooks -------------------------------------------------------------------

    def process(self) -> None:
        """Route by the raw path: nothing is unquoted, merged or redirected."""
        assert self.channel is not None
        self.site = site = self.channel.site
        if self.preflight:
            self.respond(200, b"")
            return
        root, path = site.settings.gateway.root_path.encode("ascii"), self.path
        if root:
            path = path[len(root) :] if path.startswith(root + b"/") else b"/"
        if path.startswith(b"//"):
            path = b"/"  # Werkzeug would take the second slash for none
        self.prepath: list[bytes] = []
        self.postpath = path.split(b"/")
        try:
            site.resource.render(self)
        except Exception:
            _log.failure("handling {id} failed", id=self.exchange.id)
            self.fail(Internal("The gateway met an internal error."))

    def getRequestHostname(self) -> bytes:
        """Nothing may depend on what a client calls this host."""
        return b"gateway"

    def unregisterProducer(self) -> None:
        if self.channel is not None:  # it is gone after a disconnect
            super().unregisterProducer()
        self.producer = None

    def give_up(self, end: End, detail: str) -> None:
        """The connection is going to be closed under it, by the client or because of it."""
        if self.exchange.end is None:
            self._account()
            if not self.startedWriting:
                self.exchange.status = CLIENT_CLOSED_REQUEST
            self.exchange.finish(end, self._now(), detail=detail)

    def connectionLost(self, reason: Failure) -> None:
        self.give_up(End.CLIENT_GONE, "")
        super().connectionLost(reason)
