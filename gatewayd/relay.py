"""Joins a backend's reply to a client's request. The only place where a reply ends.

Theory of operation
-------------------

A :class:`Relay` lives for one request and passes through these phases, never back:

``ASKING``
    A backend was asked; no head yet. If it fails and cannot have run, the next backend is asked.
``READING``
    A head is here and its body comes. Whole bodies (JSON, errors) are gathered up to a limit; an
    event stream is read until its first event. Nothing has been sent to the client, so a failure
    is still an HTTP status.
``STREAMING``
    Committed: the status line is out. From here on a failure is one ``error`` event, after which
    the connection closes without the last chunk.
``ENDED``
    Whatever happens now happens to nobody.

Commit comes with the first event that is good (or the whole body), or after ``ping`` seconds of
silence, when comments begin so that nobody in between gives up on the connection. Then an error
can only be told in-band, even from a backend that has not answered yet.

Rules:

1. :meth:`Relay._end` is called once and decides everything: what the client is sent, how the
   exchange ends, and that the backend is left (aborted, or released when its reply was whole).
2. Only ``[DONE]``, or the body's own end, ends a stream well, and only when every choice was
   finished. ``[DONE]`` to the client is written here and nowhere else, and nothing follows it.
3. Only bytes of content move the clocks (:mod:`gatewayd.watch`): a backend that sends comments is
   silent. While the client is too slow to take what it was sent, the backend's silence is our
   doing and does not count.
4. The client leaving cancels :meth:`Relay.run`'s Deferred, and that aborts the backend, whatever
   the phase.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from zope.interface import implementer

from gatewayd.backend.interface import Reply
from gatewayd.backend.routing import Choice, Target
from gatewayd.config import Limits
from gatewayd.exchange import Exchange
from gatewayd.watch import Watch
from gatewayd.wire import sse
from gatewayd.wire.errors import (
    AuthRefused,
    BackendFailed,
    BadReply,
    GatewayError,
    Internal,
    Truncated,
    UpstreamTimeout,
    is_envelope,
)
from gatewayd.wire.others import Call, Reader, with_model

_log = Logger()

JSON = "application/json"
EVENTS = "text/event-stream"

#: A backend's error is read up to here; what is longer is replaced by an envelope of our own.
MAX_ERROR_BODY = 256 * 1024


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
        self, headers: Sequence[tuple[bytes, bytes]], media_type: str
    ) -> None: ...
    def write(self, data: bytes) -> None: ...
    def finish(self) -> None: ...
    def cut(self, error: GatewayError, name: bytes) -> None: ...
    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None: ...
    def unregisterProducer(self) -> None: ...


class Phase(enum.Enum):
    ASKING = enum.auto()
    READING = enum.auto()
    STREAMING = enum.auto()
    ENDED = enum.auto()


class BodyTransport(Protocol):
    def pauseProducing(self) -> None: ...
    def resumeProducing(self) -> None: ...
    def abortConnection(self) -> None: ...
    def loseConnection(self) -> None: ...


@implementer(IPushProducer)
class Relay:
    """
    :param ping: seconds of silence after which a comment is sent; 0 for none.
    :param patience: how long the caller said it waits for the first byte; 0 if it did not say.
    """

    def __init__(
        self,
        client: Client,
        call: Call,
        limits: Limits,
        reactor: IReactorTime,
        ping: float,
        patience: float = 0.0,
    ) -> None:
        self._client = client
        self._exchange = client.exchange
        self._call = call
        self._limits = limits
        ping = ping if call.stream else 0.0
        self._watch = Watch(reactor, self._exchange, ping, patience, self._late, self._comment)

        self._phase = Phase.ASKING
        self._done: Deferred[None] = Deferred(self._client_left)
        self._asked: Deferred[Reply] | None = None
        self._transport: BodyTransport | None = None
        self._reply: Reply | None = None
        self._body = bytearray()  # of a reply that is gathered whole
        self._parser: sse.Parser | None = None
        self._reader: Reader | None = None
        self._target: Target | None = None
        self._trial = 0

        self._bytes = False  # the body crosses as it comes, unread
        self._paused = False

    def run(self, choices: Sequence[Choice]) -> Deferred[None]:
        """Ask the targets in this order and relay the reply of the first that has one.

        The Deferred fires when the reply has ended, however; it never fails. Cancelling it means
        that the client has left.
        """
        self._exchange.stop = self._end
        self._choices = list(choices)
        self._ask()
        return self._done

    # -- asking ------------------------------------------------------------------------------

    def _ask(self) -> None:
        choice = self._choices.pop(0)
        call, exchange = self._call, self._exchange
        body, alias = call.body, None
        if choice.model is not None:
            try:
                body, alias = with_model(call, choice.model), call.model
            except GatewayError as problem:
                self._end(problem)
                return
        self._target = choice.target
        self._reader = call.reader(exchange.id, self._limits.json_depth, alias)
        exchange.backends.append(choice.target.backend.name)
        self._watch.asked(choice.target.backend.clocks)
        self._trial = choice.target.asked()
        send = choice.target.backend.send
        asked = self._asked = send(call, body, exchange.id, exchange.traceparent)
        asked.addCallbacks(self._got_reply, self._got_no_reply)
        asked.addErrback(self._broken)

    def _got_no_reply(self, failure: Failure) -> None:
        if self._phase is Phase.ENDED:
            return
        problem = failure.value
        if not isinstance(problem, GatewayError):
            failure.raiseException()
        self._failed(problem)

    def _failed(self, problem: GatewayError) -> None:
        """This backend has no reply. Nothing was sent to the client yet, or only comments."""
        if problem.elsewhere:  # what was free when they were chosen may have filled up or failed
            self._choices = [choice for choice in self._choices if choice.target.ready]
        if self._choices and self._phase is not Phase.STREAMING and problem.elsewhere:
            self._part_from_target(problem)
            self._reply, self._phase = None, Phase.ASKING
            self._body = bytearray()
            self._ask()
        else:
            self._end(problem)

    def _got_reply(self, reply: Reply) -> None:
        self._reply = reply
        self._exchange.connected = reply.connect_seconds
        if self._phase is Phase.ASKING:
            self._phase = Phase.READING
        if reply.status == 200:
            if self._reader is None:
                self._bytes = True
                if reply.media_type in ("", "text/html"):
                    self._end(BadReply("The backend's reply is of an unknown type."))
            elif self._call.stream and reply.media_type == EVENTS:
                self._parser = sse.Parser(self._limits.event)
            elif reply.media_type != JSON:
                self._end(BadReply("The backend's reply is of an unknown type."))
        elif reply.status in (401, 403):
            self._end(AuthRefused("The backend refused the gateway's credentials."))
        elif not 400 <= reply.status < 600:
            said = f"status {reply.status}"
            self._end(BadReply("The backend's reply is not one to relay.", detail=said))
        reply.body.deliverBody(self)  # type: ignore[arg-type]  # all of IProtocol that it calls

    def _broken(self, failure: Failure) -> None:
        """A fault of our own code."""
        _log.failure("relaying {id} failed", failure, id=self._exchange.id)
        self._end(Internal("The gateway met an internal error."))

    # -- the body: what Body.deliverBody calls -------------------------------------------------

    def makeConnection(self, transport: BodyTransport) -> None:
        self._transport = transport
        if self._phase is Phase.ENDED:
            transport.abortConnection()
        elif self._paused:
            transport.pauseProducing()

    def dataReceived(self, data: bytes) -> None:
        if self._phase is Phase.ENDED:
            return
        if self._parser is not None:
            try:
                self._take_events(self._parser.feed(data), self._parser.progress)
            except sse.EventTooLarge as e:
                self._take_events(e.events, True)
                self._end(BadReply("The backend sent an event that is too large."))
            return
        self._watch.content()
        if self._bytes:
            self._send(data)
            return
        self._body += data
        if self._reply is not None and self._reply.status != 200:
            if len(self._body) > MAX_ERROR_BODY:
                self._body.clear()
                self._end_with_error_status()
        elif len(self._body) > self._limits.reply:
            self._end(BadReply("The backend's reply is too large."))

    def connectionLost(self, reason: Failure) -> None:
        self._transport = None  # nothing to leave any more
        if self._phase is Phase.ENDED:
            return
        try:
            if not reason.check(ResponseDone, PotentialDataLoss):
                problem = reason.value
                if not isinstance(problem, GatewayError):
                    problem = Truncated("The backend's reply broke off before its end.")
                if self._phase is Phase.STREAMING:
                    problem.end = Truncated.end  # also where its framing broke
                self._end(problem)
            elif self._parser is not None:
                self._take_events(self._parser.close(), False)
                self._end_of_events(done=False)
            elif self._reply is not None and self._reply.status != 200:
                self._end_with_error_status()
            elif self._bytes:
                self._end_of_bytes(exact=reason.check(ResponseDone) is not None)
            else:
                self._end_of_body()
        except sse.EventTooLarge:
            self._end(BadReply("The backend sent an event that is too large."))
        except GatewayError as problem:
            if isinstance(problem, BadReply) and not reason.check(ResponseDone):
                # Nothing but its content could have said that it was whole.
                problem = Truncated("The backend's reply broke off before its end.")
            self._end(problem)

    # -- event streams -------------------------------------------------------------------------

    def _take_events(self, events: Sequence[sse.Event], progress: bool) -> None:
        exchange, reader, out = self._exchange, self._reader, []
        assert reader is not None
        problem: GatewayError | None = None
        done = False
        for name, payload in events:
            if reader.by_done and payload.startswith(b"[DONE]"):
                done = True
                break
            try:
                relayed = reader.take(name, payload)
            except GatewayError as e:
                problem = e
                break
            if relayed is not None:
                exchange.events += 1
                out.append(sse.encode(relayed, b"" if reader.by_done else name))
            if not reader.by_done and reader.complete(done=False):
                done = True
                break
        if progress or events:
            self._watch.content()
        whole = problem is None and done and reader.started and reader.complete(done=True)
        if whole and reader.by_done:
            out.append(sse.DONE)
        if out:
            self._send(out[0] if len(out) == 1 else b"".join(out))
        if whole:
            self._end(None)
        elif problem is not None:
            self._end(problem)
        elif done and reader.started:
            self._end_of_events(done=True)
        elif done:
            self._end(BadReply("The backend's stream ended without an event."))

    def _end_of_events(self, done: bool) -> None:
        """The stream ended, and nothing more will come."""
        reader = self._reader
        if self._phase is Phase.ENDED or reader is None:
            return
        if not reader.started:
            raise BadReply("The backend's stream ended without an event.")
        elif not reader.complete(done):
            self._end(Truncated("The backend ended the stream before the reply was finished."))
        else:
            if reader.by_done:
                self._send(sse.DONE)
            self._end(None)

    def _send(self, data: bytes) -> None:
        self._watch.wrote()
        if self._phase is not Phase.STREAMING:
            self._commit()
        self._client.write(data)

    def _commit(self) -> None:
        self._phase = Phase.STREAMING
        headers = () if self._reply is None else self._reply.headers
        if self._bytes and self._reply is not None:
            self._client.begin_bytes(headers, self._reply.media_type)
        else:
            self._client.begin_stream(headers)
        self._client.registerProducer(self, True)

    # -- whole bodies --------------------------------------------------------------------------

    def _end_of_body(self) -> None:
        assert self._reader is not None and self._reply is not None
        received, self._body = bytes(self._body), bytearray()  # never three of them at a time
        body = self._reader.whole(received)
        del received
        if self._call.stream:
            payloads = self._reader.as_stream(body)
            self._exchange.events = len(payloads)
            self._send(b"".join([*map(sse.encode, payloads), sse.DONE]))
            self._end(None)
        else:
            self._end(None, body)

    def _end_of_bytes(self, exact: bool) -> None:
        """A body that nobody reads is whole only when its framing said so."""
        if not exact:
            self._end(Truncated("The backend closed the connection without saying it was done."))
            return
        if self._phase is not Phase.STREAMING:
            self._commit()
        self._end(None)

    def _end_with_error_status(self) -> None:
        """The backend answered with an error status: pass it on, and its envelope if it is one."""
        assert self._reply is not None
        status, body = self._reply.status, bytes(self._body)
        payload = body if is_envelope(body) else None
        said = f"The backend answered with status {status}."
        self._failed(BackendFailed(said, payload, status, self._reply.headers))

    # -- the end -------------------------------------------------------------------------------

    def _end(self, problem: GatewayError | None, body: bytes = b"") -> None:
        """End the reply, well if ``problem`` is None. What comes later changes nothing.

        :param body: of a reply that was not streamed.
        """
        phase, self._phase = self._phase, Phase.ENDED
        if phase is Phase.ENDED:
            return
        self._exchange.stop = None  # it holds this, and this holds it
        if problem is None and self._reader is not None:
            self._exchange.usage = self._reader.usage
        self._leave(kept=problem is None)
        self._part_from_target(problem)
        if phase is Phase.STREAMING:
            self._client.unregisterProducer()
            if problem is None:
                self._client.finish()
            else:
                named = self._reader is not None and not self._reader.by_done
                self._client.cut(problem, b"error" if named else b"")
        elif problem is not None:
            self._client.fail(problem)
        else:
            self._client.respond(200, body, () if self._reply is None else self._reply.headers)
        self._done.callback(None)

    def _part_from_target(self, problem: GatewayError | None) -> None:
        target, self._target = self._target, None
        if target is not None:
            target.ended(problem, self._trial)
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abortConnection()

    def _leave(self, kept: bool) -> None:
        """Stop the clocks and part from the backend."""
        self._watch.stop()
        asked, self._asked = self._asked, None
        if asked is not None and self._reply is None:
            asked.cancel()
        transport, self._transport = self._transport, None
        if transport is not None:
            if kept:
                transport.loseConnection()
            else:
                transport.abortConnection()

    def _client_left(self, _: Deferred[None]) -> None:
        self._phase = Phase.ENDED
        self._leave(kept=False)
        if self._target is not None:
            self._target.left(self._trial)

    # -- the client's pace: IPushProducer ------------------------------------------------------

    def pauseProducing(self) -> None:
        self._paused = True
        self._watch.pause()
        if self._transport is not None:
            self._transport.pauseProducing()

    def resumeProducing(self) -> None:
        self._paused = False
        self._watch.resume()
        if self._transport is not None:
            self._transport.resumeProducing()

    def stopProducing(self) -> None:
        """The client's connection is closing: its loss is told by the cancelled Deferred."""

    # -- clocks: what the watch calls ----------------------------------------------------------

    def _late(self, clock: str) -> None:
        if clock == "patience" and self._target is not None:
            self._target.left(self._trial)  # no fault of the backend
            self._target = None
        self._end(UpstreamTimeout(f"The backend took too long ({clock})."))

    def _comment(self) -> None:
        if self._phase is not Phase.STREAMING:
            self._commit()
        self._client.write(sse.COMMENT)
