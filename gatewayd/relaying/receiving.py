"""Receives the body of a backend's reply, each kind in its way.

What :meth:`gatewayd.backend.interface.Body.deliverBody` is given. A receiver reads, and tells its
relay what to send and how the reply ends; what becomes of that is the relay's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

from twisted.internet.interfaces import IPushProducer
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss

from gatewayd.backend.interface import Reply
from gatewayd.exchange import Exchange
from gatewayd.wire import failure, sse
from gatewayd.wire.call import Call, Reader
from gatewayd.wire.errors import (
    AuthRefused,
    BackendFailed,
    BadReply,
    GatewayError,
    Truncated,
    UpstreamError,
)

from .watch import Watch

#: A backend's error is read up to here; what is longer is replaced by an envelope of our own.
MAX_ERROR_BODY = 256 * 1024
#: How long more of it is waited for.
ERROR_SECONDS = 5.0


class BodyTransport(Protocol):
    def pauseProducing(self) -> None: ...
    def resumeProducing(self) -> None: ...
    def abortConnection(self) -> None: ...
    def loseConnection(self) -> None: ...


class Client(Protocol):
    """The client's side of an exchange: :class:`gatewayd.api.request.Request`."""

    exchange: Exchange

    def respond(
        self,
        status: int,
        body: bytes,
        headers: Sequence[tuple[bytes, bytes]] = (),
        media_type: bytes = b"application/json",
    ) -> None: ...
    def fail(self, error: GatewayError) -> None: ...
    def begin_stream(self, headers: Sequence[tuple[bytes, bytes]] = ()) -> None: ...
    def begin_bytes(
        self, headers: Sequence[tuple[bytes, bytes]], content_type: str
    ) -> None: ...
    def write(self, data: bytes) -> None: ...
    def finish(self) -> None: ...
    def cut(self, error: GatewayError, name: bytes) -> None: ...
    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None: ...
    def unregisterProducer(self) -> None: ...


class Owner(Protocol):
    """What a receiver belongs to: :class:`gatewayd.relaying.relay.Relay`."""

    client: Client
    exchange: Exchange
    call: Call
    watch: Watch

    @property
    def is_over(self) -> bool: ...
    def receive_from(self, transport: BodyTransport) -> None: ...
    def receives(self) -> bool: ...
    def send(self, data: bytes) -> None: ...
    def commit(self) -> None: ...
    def broke_off(self, problem: BaseException | None) -> None: ...
    def failed(self, problem: GatewayError) -> None: ...
    def end(self, problem: GatewayError | None, body: bytes = b"") -> None: ...


class Receiver(ABC):
    """Of any body. Subclasses take what comes and what it means that it ended."""

    def __init__(self, relay: Owner) -> None:
        self._relay = relay

    def makeConnection(self, transport: BodyTransport) -> None:
        self._relay.receive_from(transport)

    @abstractmethod
    def dataReceived(self, data: bytes) -> None:
        """Bytes of the body came."""

    @abstractmethod
    def ended(self, exact: bool) -> None:
        """The body ended well.

        :param exact: its framing said so, not the connection's end.
        :raises GatewayError: it was not whole for all that.
        """

    def connectionLost(self, reason: Failure) -> None:
        relay = self._relay
        if not relay.receives():
            return
        exact = reason.check(ResponseDone) is not None
        try:
            if not exact and not reason.check(PotentialDataLoss):
                relay.broke_off(reason.value)
            else:
                self.ended(exact)
        except GatewayError as problem:
            if isinstance(problem, BadReply) and not exact:
                # Nothing but its content could have said that it was whole.
                problem = Truncated("The backend's reply broke off before its end.")
            relay.end(problem)


class Gathered(Receiver):
    """A body that is gathered whole.

    :param limit: the most bytes it may take.
    """

    def __init__(self, relay: Owner, limit: int) -> None:
        super().__init__(relay)
        self._limit = limit
        self._body = bytearray()

    def dataReceived(self, data: bytes) -> None:
        if self._relay.is_over:
            return
        if not data.isspace():  # some servers send white space until they have a reply
            self._relay.watch.content()
        self._body += data
        if len(self._body) > self._limit:
            self.too_large()

    @abstractmethod
    def too_large(self) -> None:
        """It has grown past the limit."""


class Document(Gathered):
    """A JSON document."""

    def __init__(self, relay: Owner, reader: Reader, limit: int) -> None:
        super().__init__(relay, limit)
        self._reader = reader

    def too_large(self) -> None:
        self._relay.end(BadReply("The backend's reply is too large."))

    def ended(self, exact: bool) -> None:
        relay, reader = self._relay, self._reader
        received, self._body = bytes(self._body), bytearray()  # never three of them at a time
        body = reader.whole(received)
        del received
        if relay.call.stream:
            payloads = reader.as_stream(body)
            if not reader.complete(done=True):
                raise Truncated("The backend's reply has a choice that was not finished.")
            relay.exchange.events = len(payloads)
            relay.send(b"".join([*map(sse.encode, payloads), sse.DONE]))
            relay.end(None)
        else:
            relay.end(None, body)


class ErrorDocument(Gathered):
    """The body of an error status, which is passed on, and what its body says."""

    def __init__(self, relay: Owner, reply: Reply) -> None:
        super().__init__(relay, MAX_ERROR_BODY)
        self._reply = reply

    def too_large(self) -> None:
        self._relay.failed(failed_reply(self._reply))

    def ended(self, exact: bool) -> None:
        self._relay.failed(failed_reply(self._reply, bytes(self._body)))


def failed_reply(reply: Reply, body: bytes = b"") -> BackendFailed:
    """The error that a reply with an error status is; of its head alone without ``body``."""
    return failure.answered(body, reply.status, reply.headers, reply.key)


def never_relayed(status: int) -> UpstreamError | None:
    """What is wrong with a status other than 200 that the client does not get."""
    if status in (401, 403):
        return AuthRefused("The backend refused the gateway's credentials.")
    if not 400 <= status < 600:
        said = f"status {status}"
        return BadReply("The backend's reply is not one to relay.", detail=said)
    return None


class Opaque(Receiver):
    """A body that crosses as it comes; nobody reads it, so only its framing says it is whole."""

    def dataReceived(self, data: bytes) -> None:
        if not self._relay.is_over:
            self._relay.watch.content()
            self._relay.send(data)

    def ended(self, exact: bool) -> None:
        if not exact:
            raise Truncated("The backend closed the connection without saying it was done.")
        self._relay.commit()  # an empty body has sent nothing yet
        self._relay.end(None)


class Events(Receiver):
    """An event stream.

    :param limit: the most bytes that one event may take.
    """

    def __init__(self, relay: Owner, reader: Reader, limit: int) -> None:
        super().__init__(relay)
        self._exchange = relay.exchange
        self._reader = reader
        self._limit = limit
        self._parser = sse.Parser(limit)

    def dataReceived(self, data: bytes) -> None:
        relay, exchange = self._relay, self._exchange
        if exchange.events and exchange.end is None and self._parser.at_rest:
            # Nearly all of what there is to relay goes this way.
            frames = self._reader.frames(data) if len(data) <= self._limit else None
            if frames:
                relay.watch.relayed(len(frames))
                relay.client.write(frames[0] if len(frames) == 1 else b"".join(frames))
                return
        if relay.is_over:
            return
        try:
            self._take(self._parser.feed(data), self._parser.progress)
        except sse.EventTooLarge as e:
            self._take(e.events, True)
            relay.end(_too_large())

    def _take(self, events: Sequence[sse.Event], progress: bool) -> None:
        relay, reader, out = self._relay, self._reader, []
        problem: GatewayError | None = None
        done = content = False
        for name, payload in events:
            if reader.ends_with_done and payload.lstrip().startswith(b"[DONE]"):
                done = True
                break
            try:
                crossing = reader.take(name, payload)
            except GatewayError as e:
                problem = e
                break
            content = content or reader.content
            if crossing is not None:
                self._exchange.events += 1
                out.append(sse.encode(crossing, b"" if reader.ends_with_done else name))
            if not reader.ends_with_done and reader.complete(done=False, framed=False):
                done = True
                break
        if events:
            relay.watch.event(content)
        if progress:
            relay.watch.part()
        whole = problem is None and done and reader.started and reader.complete(done=True)
        if whole and reader.ends_with_done:
            out.append(sse.DONE)
        if out:
            relay.send(out[0] if len(out) == 1 else b"".join(out))
        if whole:
            relay.end(None)
        elif problem is not None:
            relay.end(problem)
        elif done and reader.started:
            self._ended(True)
        elif done:
            relay.end(_empty())

    def ended(self, exact: bool) -> None:
        try:
            self._take(self._parser.close(), False)
        except sse.EventTooLarge:
            self._relay.end(_too_large())
        if self._relay.is_over:
            return
        if not self._reader.started:
            raise _empty()
        self._ended(False, exact)

    def _ended(self, done: bool, exact: bool = True) -> None:
        """The stream ended, and nothing more will come.

        :param done: the backend said so.
        :param exact: its framing said so.
        """
        reader = self._reader
        if not reader.complete(done, exact):
            said = "The backend ended the stream before the reply was finished."
            self._relay.end(Truncated(said))
            return
        if reader.ends_with_done:
            self._relay.send(sse.DONE)
        self._relay.end(None)


def _too_large() -> BadReply:
    return BadReply("The backend sent an event that is too large.")


def _empty() -> BadReply:
    return BadReply("The backend's stream ended without an event.")
