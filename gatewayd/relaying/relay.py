"""Joins a backend's reply to a client's request. The only place where a reply ends.

Theory of operation
-------------------

A :class:`Relay` lives for one request and passes through these phases:

``ASKING``
    A backend was asked and no head has come. If it fails and cannot have executed the request, the
    next one is asked.
``READING``
    A head is here and its body comes: a document up to its end, an event stream up to its first
    event. The client has been sent nothing, so a failure is still an HTTP status. If the head is a
    refusal (429, 503), the next backend is asked: back to ``ASKING``.
``STREAMING``
    Committed: the status line is out. A failure is now one ``error`` event, after which the
    connection is closed without the last chunk. No other backend is asked.
``ENDED``
    Terminal. Later events are ignored.

A stream is committed with its first good event, or from ``ASKING`` or ``READING`` after ``ping``
seconds of silence, when the gateway begins to send comments.

A receiver reads the body and returns a :class:`.receiver.Step`, which :meth:`Relay.act` carries
out. Only the fast path of a token needs no step (:meth:`.attempt.Attempt.dataReceived`).

Rules:

1. :meth:`Relay.end` acts once and decides everything: what the client is sent, how the exchange
   ends, and whether the backend's connection is aborted or kept.
2. ``[DONE]``, or the end of the body, ends a stream well only if every choice was finished.
   Receivers write ``[DONE]``, together with an outcome that is whole. Nothing follows it.
3. Only content moves the clocks (:mod:`.watch`); comments do not. While the client is too slow, the
   backend's silence does not count. An error is judged by its head: its body is not waited for if
   another backend can be asked, and never longer than :data:`ERROR_SECONDS`.
4. If the client disconnects, the Deferred that :meth:`Relay.run` returned is cancelled. That aborts
   the backend's request in any phase.
5. Each backend that is asked has one :class:`.attempt.Attempt`, which is settled once.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from gatewayd.backend.interface import Reply
from gatewayd.routing.evidence import ClientLeft, Outcome
from gatewayd.routing.router import Candidate
from gatewayd.settings.model import LimitSettings
from gatewayd.wire import sse
from gatewayd.wire.call import Call
from gatewayd.wire.errors import GatewayError, Internal, Truncated, UpstreamTimeout

from .attempt import Attempt
from .bodies import Bytes, error_of
from .candidates import Candidates
from .client import Client
from .heads import receiver_for
from .receiver import Progress, Step
from .watch import Watch

#: Seconds that the body of an error is waited for.
ERROR_SECONDS = 5.0

_log = Logger()


class Phase(enum.Enum):
    ASKING = enum.auto()
    READING = enum.auto()
    STREAMING = enum.auto()
    ENDED = enum.auto()


class Relay:
    """
    :param ping: seconds of silence after which a comment is sent; 0 for none.
    :param caller_timeout: seconds that the caller waits for the first byte; 0 if it did not say.
    """

    _attempt: Attempt  # the last one

    def __init__(
        self,
        client: Client,
        call: Call,
        limits: LimitSettings,
        reactor: IReactorTime,
        ping: float,
        caller_timeout: float = 0.0,
    ) -> None:
        self.client = client
        if not call.stream or call.opaque:  # the reply may be no event stream
            ping = 0.0
        self.watch = Watch(
            reactor,
            client.timer,
            client.exchange,
            ping,
            caller_timeout,
            self._timed_out,
            self._send_comment,
        )
        self._exchange = client.exchange
        self._call = call
        self._limits = limits
        self._phase = Phase.ASKING
        self._done: Deferred[None] | None = Deferred(self._client_left)

    def run(self, candidates: Sequence[Candidate]) -> Deferred[None]:
        """Ask the candidates in this order and relay the reply of the first that has one.

        :param candidates: at least one.
        :returns: fires when the reply has ended, well or not; it never fails. Cancelling it means
            that the client has disconnected.
        """
        done = self._done
        assert done is not None
        self._exchange.stop = self.end
        self._candidates = Candidates(candidates)
        self._ask_next()
        return done

    # -- asking ------------------------------------------------------------------------------------

    def _ask_next(self) -> None:
        """Ask the next candidate. An exception on the way ends the attempt as a failure does."""
        self._attempt = Attempt(self, self._candidates.next(), self._call, self._exchange)
        try:
            self.watch.start(self._attempt.target.backend.clocks)
            if self._phase is not Phase.ENDED:  # else total or caller_timeout was due already
                self._attempt.ask(self._limits.json_depth).addErrback(self._internal_error)
        except GatewayError as problem:
            self.fail_over(problem)
        except Exception:
            self._internal_error(Failure())

    def replied(self, reply: Reply) -> None:
        """The head of a reply has arrived. Choose a receiver, and ask for the body."""
        attempt = self._attempt
        if self._phase is Phase.ASKING:
            self._phase = Phase.READING
        if reply.status == 200:
            attempt.note_head(sure=not self._call.stream)
        try:
            attempt.receiver = receiver_for(reply, self._call, attempt.reader, self._limits)
        except GatewayError as problem:
            self.end(problem)
        # Also after the end: the body's transport is needed to abort it.
        reply.body.deliverBody(attempt)  # type: ignore[arg-type]  # what it calls
        if attempt.error_reply is not None and attempt.has_body:  # the head says nearly all
            error = error_of(reply)
            if error.retryable and self._may_ask_another():
                self.fail_over(error)
            else:
                self.watch.start(attempt.target.backend.clocks.at_most(ERROR_SECONDS))

    def _may_ask_another(self) -> bool:
        return self._phase is not Phase.STREAMING and self._candidates.has_next()

    def fail_over(self, problem: GatewayError) -> None:
        """The backend has no reply: ask another one if that is safe, else end.

        The client was sent nothing yet, or only comments.
        """
        if not problem.retryable:
            self.end(problem)
            return
        self._attempt.settle(problem, keep=True)  # its connection is sound if it answered
        error = self._candidates.passed_over(problem)
        if self._may_ask_another():
            self._phase = Phase.ASKING
            self._ask_next()
        else:
            self.end(error)

    def _internal_error(self, failure: Failure) -> None:
        """Log a bug of the gateway, and end with an error."""
        _log.failure("relaying {id} failed", failure, id=self._exchange.id)
        self.end(Internal("The gateway met an internal error."))

    # -- the body ----------------------------------------------------------------------------------

    def act(self, step: Step) -> None:
        """Carry out what a receiver returned."""
        if step.progress is Progress.CONTENT:
            self.watch.content()
        elif step.progress is Progress.EMPTY_EVENT:
            self.watch.empty_event()
        if step.partial:
            self.watch.partial_event()
        if step.frames:
            self._exchange.events += step.events
            self._attempt.note_event()
            self.watch.wrote()
            self.commit()
            self.client.write(step.frames)
        outcome = step.outcome
        if outcome is None:
            return
        if isinstance(outcome, GatewayError):
            if self._attempt.error_reply is None:
                self.end(outcome)
            else:
                self.fail_over(outcome)
        elif outcome.body is None:
            self.commit()  # an empty body has sent nothing yet
            self.end(None)
        else:
            self.end(None, outcome.body)

    def lost(self, reason: Failure) -> None:
        """No head came, or the body broke off."""
        problem, attempt = reason.value, self._attempt
        if attempt.error_reply is not None:
            self.fail_over(error_of(attempt.error_reply))
        elif attempt.reply is not None:
            if not isinstance(problem, GatewayError):
                problem = Truncated("The backend's reply broke off before its end.")
            if self._phase is Phase.STREAMING:
                problem.end = Truncated.end  # also if the body's framing was invalid
            self.end(problem)
        elif isinstance(problem, GatewayError):
            self.fail_over(problem)
        else:
            self._internal_error(reason)

    def commit(self) -> None:
        """Begin the answer, unless it was begun."""
        if self._phase is Phase.STREAMING:
            return
        self._phase = Phase.STREAMING
        attempt, reply = self._attempt, self._attempt.reply
        if reply is None:
            self.client.begin_stream()
        elif isinstance(attempt.receiver, Bytes):
            self.client.begin_bytes(reply.headers, reply.media_type + reply.parameters)
        else:
            self.client.begin_stream(reply.headers)
        self.client.registerProducer(attempt, True)

    # -- the end -----------------------------------------------------------------------------------

    def end(self, problem: GatewayError | None, body: bytes = b"") -> None:
        """End the reply, well if ``problem`` is None. Later calls do nothing.

        :param body: of a reply that was not streamed.
        """
        phase, self._phase = self._phase, Phase.ENDED
        if phase is Phase.ENDED:
            return
        reply, reader = self._attempt.reply, self._attempt.reader
        if problem is None and reader is not None:
            self._exchange.usage = reader.usage
        self._leave_backend(problem)
        if phase is Phase.STREAMING:
            self.client.unregisterProducer()
            if problem is None:
                self.client.finish()
            else:
                named = reader is not None and not reader.ends_with_done
                self.client.cut(problem, b"error" if named else b"")
        elif problem is not None:
            self.client.fail(problem)
        else:
            self.client.respond(200, body, () if reply is None else reply.headers)
        done, self._done = self._done, None  # break the reference cycle
        if done is not None:
            done.callback(None)

    def _client_left(self, _: Deferred[None]) -> None:
        """The canceller of :meth:`run`'s Deferred."""
        self._phase, self._done = Phase.ENDED, None
        self._leave_backend(ClientLeft(self.watch.waited))

    def _leave_backend(self, outcome: Outcome) -> None:
        """Stop the clocks and leave the backend."""
        self._exchange.stop = None  # break the reference cycle
        self.watch.stop()
        self._attempt.settle(outcome, keep=outcome is None)

    # -- what the watch calls ----------------------------------------------------------------------

    def _timed_out(self, clock: str) -> None:
        """A clock has run out: ``total``, ``first_byte``, ``idle`` or ``caller_timeout``."""
        attempt, error = self._attempt, self._candidates.error
        if error is not None and not attempt.in_flight:  # another backend was about to be asked
            self.end(error)
            return
        if clock == "caller_timeout":
            attempt.settle(ClientLeft(self.watch.waited))
        if attempt.error_reply is not None:
            self.end(error_of(attempt.error_reply))
        else:
            self.end(UpstreamTimeout(f"The backend took too long ({clock})."))

    def _send_comment(self) -> None:
        self.commit()
        self.client.write(sse.COMMENT)
