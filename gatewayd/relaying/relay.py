"""Joins a backend's reply to a client's request. The only place where a reply ends.

Theory of operation
-------------------

A :class:`Relay` lives for one request and passes through these phases, never back:

``ASKING``
    A backend was asked; no head yet. If it fails and cannot have run, the next backend is asked.
``READING``
    A head is here and its body comes: gathered whole up to a limit, or an event stream up to its
    first event. Nothing has been sent to the client, so a failure is still an HTTP status.
``STREAMING``
    Committed: the status line is out. A failure is now one ``error`` event, after which the
    connection closes without the last chunk.
``ENDED``
    Terminal: later events are ignored.

Commit comes with the first good event (or the whole body), or after ``ping`` seconds of silence,
when comments begin. Then an error can only be told in-band, even before the backend has answered.

Rules:

1. :meth:`Relay.end` is called once and decides everything: what the client is sent, how the
   exchange ends, and that the backend is left (aborted, or released when its reply was whole).
2. ``[DONE]``, or the body's end, ends a stream well only when every choice was finished. It is
   written in :mod:`gatewayd.relaying.receiving` alone, and nothing follows it.
3. Only content moves the clocks (:mod:`gatewayd.relaying.watch`); comments do not. While the client
   is too slow, the backend's silence does not count. Of an error its head decides: its body is not
   waited for where another backend can be asked, and never for long.
4. A client that leaves cancels :meth:`Relay.run`'s Deferred; that aborts the backend in any phase.
5. Each target that was asked is settled once, by :class:`gatewayd.relaying.tries.Tries`.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from gatewayd.backend.interface import Reply
from gatewayd.routing.router import Candidate
from gatewayd.settings.model import LimitSettings
from gatewayd.wire import sse
from gatewayd.wire.call import Call, Reader
from gatewayd.wire.errors import BadReply, GatewayError, Internal, Truncated, UpstreamTimeout

from .receiving import (
    ERROR_SECONDS,
    BodyTransport,
    Client,
    Document,
    ErrorDocument,
    Events,
    Opaque,
    Receiver,
    failed_reply,
    never_relayed,
)
from .tries import Tries
from .watch import Watch

_log = Logger()

JSON = "application/json"
EVENTS = "text/event-stream"


class Phase(enum.Enum):
    ASKING = enum.auto()
    READING = enum.auto()
    STREAMING = enum.auto()
    ENDED = enum.auto()


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
        limits: LimitSettings,
        reactor: IReactorTime,
        ping: float,
        patience: float = 0.0,
    ) -> None:
        self.client = client
        self.exchange = client.exchange
        self.call = call
        self._limits = limits
        if not call.stream or call.opaque:  # whose reply may be no event stream
            ping = 0.0
        self.watch = Watch(reactor, self.exchange, ping, patience, self._late, self._comment)

        self._phase = Phase.ASKING
        self._done: Deferred[None] | None = Deferred(self._client_left)
        self._asked: Deferred[Reply] | None = None
        self._transport: BodyTransport | None = None
        self._reply: Reply | None = None
        self._reader: Reader | None = None
        self._paused = False
        self._opaque = False  # the body crosses unread

    def run(self, candidates: Sequence[Candidate]) -> Deferred[None]:
        """Ask the targets in this order and relay the reply of the first that has one.

        The Deferred fires when the reply has ended, however; it never fails. Cancelling it means
        that the client has left.
        """
        exchange = self.exchange
        exchange.stop = self.end
        self._tries = Tries(candidates, exchange.caller or exchange.client, self.call.body)
        done = self._done
        assert done is not None
        self._ask()
        return done

    # -- asking ------------------------------------------------------------------------------

    def _ask(self) -> None:
        """Ask the next target. Whatever asking it raises ends the attempt as a failure does."""
        try:
            self._send_to(self._tries.next())
        except GatewayError as problem:
            self.failed(problem)
        except Exception:
            self._broken(Failure())

    def _send_to(self, candidate: Candidate) -> None:
        call, exchange, target = self.call, self.exchange, candidate.target
        alias = None
        if candidate.model is not None:
            call, alias = call.renamed(candidate.model), call.model
        self._reader = call.reader(exchange.id, self._limits.json_depth, alias)
        self.watch.asked(target.backend.clocks)
        if self.is_over:  # a clock that runs from the first try on was due
            return
        exchange.backends.append(target.backend.name)
        self._tries.ask(target)
        asked = target.backend.send(call, exchange.id, exchange.traceparent)
        self._asked = asked
        asked.addCallbacks(self._got_reply, self._got_no_reply)
        asked.addErrback(self._broken)

    def _got_no_reply(self, failure: Failure) -> None:
        if self._phase is Phase.ENDED:
            return
        problem = failure.value
        if not isinstance(problem, GatewayError):
            failure.raiseException()
        self.failed(problem)

    def failed(self, problem: GatewayError) -> None:
        """This backend has no reply. Nothing was sent to the client yet, or only comments."""
        if not problem.elsewhere:
            self.end(problem)
            return
        told = self._tries.passed_over(problem)
        self._drop(kept=True)  # a backend that goes on answering an error is well
        if self._phase is not Phase.STREAMING and self._tries.another():
            self._reply, self._phase = None, Phase.ASKING
            self._ask()
        else:
            self.end(told)

    def _got_reply(self, reply: Reply) -> None:
        self._reply = reply
        self.exchange.connected = reply.connect_seconds
        if self._phase is Phase.ASKING:
            self._phase = Phase.READING
        receiver = self._receiver(reply)
        reply.body.deliverBody(receiver)  # type: ignore[arg-type]  # what it calls
        if isinstance(receiver, ErrorDocument) and self._reply is reply and self._transport:
            self._await_error(reply)

    def _await_error(self, reply: Reply) -> None:
        """The head of an error is here and its body is not: the head says nearly all."""
        problem = failed_reply(reply)
        if problem.elsewhere and self._phase is not Phase.STREAMING and self._tries.another():
            self.failed(problem)
        elif self._tries.target is not None:
            self.watch.asked(self._tries.target.backend.clocks.at_most(ERROR_SECONDS))

    def _receiver(self, reply: Reply) -> Receiver:
        """What takes the body of a reply. One that is not to be relayed ends here."""
        if reply.status == 200:
            self._tries.has_head(sure=not self.call.stream)
        else:
            problem = never_relayed(reply.status)
            if problem is not None:
                self.end(problem)
            return ErrorDocument(self, reply)
        receiver: Receiver
        if self._reader is not None and self.call.stream and reply.media_type == EVENTS:
            receiver, known = Events(self, self._reader, self._limits.event), True
        elif self.call.opaque or self._reader is None:
            self._opaque = True
            receiver, known = Opaque(self), reply.media_type not in ("", "text/html")
        else:
            receiver = Document(self, self._reader, self._limits.reply)
            known = reply.media_type == JSON
        if not known:
            self.end(BadReply("The backend's reply is of an unknown type."))
        return receiver

    def _broken(self, failure: Failure) -> None:
        """A fault of our own code."""
        _log.failure("relaying {id} failed", failure, id=self.exchange.id)
        self.end(Internal("The gateway met an internal error."))

    # -- the body: what its receiver calls -----------------------------------------------------

    @property
    def is_over(self) -> bool:
        return self._phase is Phase.ENDED

    def receive_from(self, transport: BodyTransport) -> None:
        """The body comes from there."""
        self._transport = transport
        if self.is_over:
            transport.abortConnection()
        elif self._paused:
            transport.pauseProducing()

    def receives(self) -> bool:
        """The body has ended, so no connection is left. False if the relay had ended before."""
        self._transport = None
        return not self.is_over

    def broke_off(self, problem: BaseException | None) -> None:
        """The body did not come to its end."""
        if self._reply is not None and self._reply.status != 200:
            self.failed(failed_reply(self._reply))
            return
        if not isinstance(problem, GatewayError):
            problem = Truncated("The backend's reply broke off before its end.")
        if self._phase is Phase.STREAMING:
            problem.end = Truncated.end  # also where its framing broke
        self.end(problem)

    def send(self, data: bytes) -> None:
        self._tries.answers()
        self.watch.wrote()
        self.commit()
        self.client.write(data)

    def commit(self) -> None:
        """Begin the answer, unless it was begun."""
        if self._phase is Phase.STREAMING:
            return
        self._phase = Phase.STREAMING
        headers = () if self._reply is None else self._reply.headers
        if self._opaque and self._reply is not None:
            self.client.begin_bytes(headers, self._reply.media_type + self._reply.parameters)
        else:
            self.client.begin_stream(headers)
        self.client.registerProducer(self, True)

    # -- the end -------------------------------------------------------------------------------

    def end(self, problem: GatewayError | None, body: bytes = b"") -> None:
        """End the reply, well if ``problem`` is None. What comes later changes nothing.

        :param body: of a reply that was not streamed.
        """
        phase, self._phase = self._phase, Phase.ENDED
        if phase is Phase.ENDED:
            return
        if problem is None and self._reader is not None:
            self.exchange.usage = self._reader.usage
        self._leave(kept=problem is None)
        self._tries.settle(problem)
        if phase is Phase.STREAMING:
            self.client.unregisterProducer()
            if problem is None:
                self.client.finish()
            else:
                named = self._reader is not None and not self._reader.ends_with_done
                self.client.cut(problem, b"error" if named else b"")
        elif problem is not None:
            self.client.fail(problem)
        else:
            self.client.respond(200, body, () if self._reply is None else self._reply.headers)
        done, self._done = self._done, None  # break the reference cycle
        if done is not None:
            done.callback(None)

    def _leave(self, kept: bool) -> None:
        """Stop the clocks and part from the backend."""
        self.exchange.stop = None  # break the reference cycle
        self.watch.stop()
        asked, self._asked = self._asked, None
        if asked is not None and self._reply is None:
            asked.cancel()
        self._drop(kept)

    def _drop(self, kept: bool) -> None:
        """Take no more of the body; ``kept`` if its connection may be used again."""
        transport, self._transport = self._transport, None
        if transport is not None:
            (transport.loseConnection if kept else transport.abortConnection)()

    def _client_left(self, _: Deferred[None]) -> None:
        self._phase, self._done = Phase.ENDED, None
        self._leave(kept=False)
        self._tries.left(self.watch.waited)

    # -- the client's pace: IPushProducer ------------------------------------------------------

    def pauseProducing(self) -> None:
        self._paused = True
        self.watch.pause()
        if self._transport is not None:
            self._transport.pauseProducing()

    def resumeProducing(self) -> None:
        self._paused = False
        self.watch.resume()
        if self._transport is not None:
            self._transport.resumeProducing()

    def stopProducing(self) -> None:
        """The client's connection is closing: its loss is told by the cancelled Deferred."""

    # -- clocks: what the watch calls ----------------------------------------------------------

    def _late(self, clock: str) -> None:
        tries = self._tries
        if tries.target is None and tries.told is not None:  # before another was asked
            self.end(tries.told)
            return
        if clock == "patience":
            tries.left(self.watch.waited)
        if self._reply is not None and self._reply.status != 200:
            self.end(failed_reply(self._reply))
        else:
            self.end(UpstreamTimeout(f"The backend took too long ({clock})."))

    def _comment(self) -> None:
        self.commit()
        self.client.write(sse.COMMENT)
