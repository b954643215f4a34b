"""One attempt: one backend that is asked for one request, until it is settled.

An :class:`Attempt` holds everything that must be given back when the backend is left: the Deferred
of its reply's head, the transport of its body, and the request that its target counts.
:meth:`Attempt.settle` gives it all back, once. What the backend sends is passed to the relay until
then, and ignored after it.
"""

from __future__ import annotations

from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from zope.interface import implementer

from gatewayd.backend.interface import Reply
from gatewayd.exchange import Exchange
from gatewayd.routing.evidence import Outcome
from gatewayd.routing.router import Candidate
from gatewayd.wire.call import Call, Reader

from .client import Client
from .receiver import Receiver, Step
from .watch import Watch


class BodyTransport(Protocol):
    def pauseProducing(self) -> None: ...
    def resumeProducing(self) -> None: ...
    def abortConnection(self) -> None: ...
    def loseConnection(self) -> None: ...


class Listener(Protocol):
    """What an attempt reports to: :class:`gatewayd.relaying.relay.Relay`."""

    client: Client
    watch: Watch

    def replied(self, reply: Reply) -> None:
        """The head of the reply has arrived."""

    def act(self, step: Step) -> None:
        """A part of the body, or its regular end, was read."""

    def lost(self, reason: Failure) -> None:
        """No head came, or the body broke off."""

    def internal_error(self, failure: Failure) -> None:
        """``replied``, or ``lost`` without a head, has raised an exception."""


@implementer(IPushProducer)
class Attempt:
    """Receives the body of the reply, and is the client's producer: a slow client pauses the body.

    :param call: the client's request, under the name of the model that the client used.
    """

    __slots__ = (
        "_call",
        "_exchange",
        "_head",
        "_listener",
        "_paused",
        "_transport",
        "_trial",
        "_under_way",
        "candidate",
        "reader",
        "receiver",
        "reply",
        "target",
    )

    def __init__(
        self, listener: Listener, candidate: Candidate, call: Call, exchange: Exchange
    ) -> None:
        #: Judges the payloads of the reply; None where nothing reads them.
        self.reader: Reader | None = None
        self.reply: Reply | None = None
        self.receiver: Receiver | None = None
        self._listener: Listener | None = listener  # None once settled; breaks a reference cycle
        self.candidate = candidate
        self.target = candidate.target
        self._call = call
        self._exchange = exchange
        self._head: Deferred[Reply] | None = None
        self._transport: BodyTransport | None = None
        self._paused = False
        self._under_way = False  # the target counts the request
        self._trial = 0  # if not 0, this reply decides whether the target is healthy

    @property
    def in_flight(self) -> bool:
        """Whether the request was sent and the attempt is not settled."""
        return self._under_way and self._listener is not None

    @property
    def error_reply(self) -> Reply | None:
        """The reply, if its status is that of an error."""
        reply = self.reply
        return None if reply is None or self._call.is_good(reply.status) else reply

    @property
    def has_body(self) -> bool:
        """Whether a body is coming."""
        return self._transport is not None

    # -- what the relay does ---------------------------------------------------------------------

    def ask(self, depth: int) -> None:
        """Send the request.

        :param depth: how many levels of JSON may nest in the reply.
        """
        call, exchange, target, alias = self._call, self._exchange, self.target, None
        if self.candidate.model is not None:
            call, alias = call.renamed(self.candidate.model), call.model
        self.reader = call.reader(exchange.id, depth, alias)
        exchange.backends.append(target.backend.name)
        exchange.priority = target.priority
        self._under_way, self._trial = True, target.begin()
        self._head = target.backend.send(call, exchange.id, exchange.traceparent)
        self._head.addCallbacks(self._got_reply, self._got_no_reply)

    def note_head(self, sure: bool) -> None:
        """The head of a good reply has come.

        :param sure: whether the backend sends that head only when the reply is ready. Servers send
            the head of a stream before they read the prompt. Then the target's health path must
            agree before the backend counts as healthy.
        """
        if self._trial and (sure or self.target.health.check_passes):
            self.note_event()

    def note_event(self) -> None:
        """An event has come. Requests that wait for the trial need not wait for the reply's end."""
        if self._trial and self._call.uses_model:
            self.target.reply_began()
            self._trial = 0

    def note_made(self) -> None:
        """Remember that the target has made the response whose id the reader has read, if any."""
        reader = self.reader
        if reader is not None and reader.made is not None:
            self.target.made.add(reader.made, self._exchange.caller)

    def settle(self, outcome: Outcome, keep: bool = False) -> None:
        """Leave the backend and report to its target. Later calls do nothing.

        :param outcome: None if the reply was whole.
        :param keep: whether the connection may be used again, if the body ends soon; else it is
            aborted.
        """
        if self._listener is None:
            return
        self._listener = self.receiver = None
        if self._head is not None and self.reply is None:
            self._head.cancel()
        transport, self._head, self._transport = self._transport, None, None
        if transport is not None:
            (transport.loseConnection if keep else transport.abortConnection)()
        if not self._under_way:
            return
        caller = self._exchange.caller or self._exchange.client
        call = self._call
        self.target.settle(self._trial, outcome, caller, call.body, call.uses_model)

    # -- what the backend does -------------------------------------------------------------------

    def _got_reply(self, reply: Reply) -> None:
        self.reply = reply
        self._exchange.connected = reply.connect_seconds
        listener = self._listener
        if listener is None:  # the backend replied although its Deferred was cancelled: abort it
            reply.body.deliverBody(self)  # type: ignore[arg-type]  # what it calls
            return
        try:
            listener.replied(reply)
        except Exception:
            listener.internal_error(Failure())

    def _got_no_reply(self, reason: Failure) -> None:
        listener = self._listener
        if listener is None:
            return
        try:
            listener.lost(reason)
        except Exception:
            listener.internal_error(Failure())

    def makeConnection(self, transport: BodyTransport) -> None:
        if self._listener is None:
            transport.abortConnection()
            return
        self._transport = transport
        if self._paused:
            transport.pauseProducing()

    def dataReceived(self, data: bytes) -> None:
        listener, receiver = self._listener, self.receiver
        if listener is None or receiver is None:
            return
        fast = receiver.fast
        if fast is not None and len(data) <= receiver.fast_limit:
            frames = fast(data)
            if frames:
                listener.watch.relayed(len(frames))
                listener.client.write(frames[0] if len(frames) == 1 else b"".join(frames))
                return
        listener.act(receiver.feed(data))

    def connectionLost(self, reason: Failure) -> None:
        self._transport = None
        listener, receiver = self._listener, self.receiver
        if listener is None or receiver is None:
            return
        exact = isinstance(reason.value, ResponseDone)
        if exact or isinstance(reason.value, PotentialDataLoss):
            listener.act(receiver.close(exact))
        else:
            listener.lost(reason)

    # -- the client's pace -----------------------------------------------------------------------

    def pauseProducing(self) -> None:
        """Stop reading the body: the client is too slow."""
        self._paused = True
        if self._listener is not None:
            self._listener.watch.pause()
        if self._transport is not None:
            self._transport.pauseProducing()

    def resumeProducing(self) -> None:
        self._paused = False
        if self._listener is not None:
            self._listener.watch.resume()
        if self._transport is not None:
            self._transport.resumeProducing()

    def stopProducing(self) -> None:
        """The client's connection is closing. The relay is told by its cancelled Deferred."""
