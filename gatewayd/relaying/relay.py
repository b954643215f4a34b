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
``PINGED``
    The status line and comments are out, and no part of the reply. A failure is an ``error`` event.
``STREAMING``
    A part of the reply is out. A failure is one ``error`` event, after which the connection is
    closed without the last chunk. No other backend is asked.
``ENDED``
    Terminal. Later events are ignored.

A stream is committed with its first good event, or from ``ASKING`` or ``READING`` after ``ping``
seconds of silence, when the gateway begins to send comments.

A backend with ``reask = before-commit`` is also left for another one if it fails although it may
have executed the request, or is silent for ``patience`` seconds, in any phase before ``STREAMING``.
Its connection is closed in the reactor's next turn, and the other backend is asked after that: two
executions are never alive at one time (:meth:`Relay._ask_next_later`).

If a backend says that the prompt is too long for its model, and another model is declared for that
(:class:`.policy.Policy`), the request begins anew for that model: back to ``ASKING``, with other
candidates. This happens only while the client has been sent nothing.

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
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from gatewayd.backend.interface import Reply
from gatewayd.exchange import End, Tried
from gatewayd.routing.evidence import ClientLeft, Outcome, TookLong
from gatewayd.routing.router import Candidate
from gatewayd.settings.model import LimitSettings
from gatewayd.wire import sse
from gatewayd.wire.call import Call
from gatewayd.wire.errors import (
    BackendFailed,
    GatewayError,
    Internal,
    Overloaded,
    Truncated,
    UpstreamError,
    UpstreamTimeout,
)
from gatewayd.wire.overlong import says_prompt_too_long

from .attempt import Attempt
from .bodies import Bytes, error_of
from .candidates import Candidates
from .client import Client
from .heads import EVENTS, receiver_for
from .policy import Policy, headers_for
from .receiver import CONTENT, EMPTY_EVENT, Step
from .watch import Watch

#: Seconds that the body of an error is waited for.
ERROR_SECONDS = 5.0

#: The code, in the log, of an attempt that was left because ``patience`` had run out.
PATIENCE = "patience"

#: Headers of an event stream that crosses unread.
_UNBUFFERED = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))

_DEFAULT_POLICY = Policy()

_log = Logger()


class Phase(enum.Enum):
    ASKING = enum.auto()
    READING = enum.auto()
    PINGED = enum.auto()
    STREAMING = enum.auto()
    ENDED = enum.auto()


# Names of the module: an attribute of an enumeration takes a thousand instructions to read.
ASKING, READING, PINGED, STREAMING, ENDED = Phase


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
        policy: Policy = _DEFAULT_POLICY,
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
            self._lose_patience,
        )
        self._exchange = client.exchange
        self._call = call
        self._limits = limits
        self._reactor = reactor
        self._policy = policy
        self._fell_back = False  # the model is not the one that the client named
        self._asks_next: IDelayedCall | None = None
        self._phase = ASKING
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
        self._candidates = Candidates(candidates, self._policy.attempts)
        self._ask_next()
        return done

    # -- asking ------------------------------------------------------------------------------------

    def _ask_next(self) -> None:
        """Ask the next candidate. An exception on the way ends the attempt as a failure does."""
        self._attempt = Attempt(self, self._candidates.next(), self._call, self._exchange)
        if self._phase is PINGED:
            self.client.registerProducer(self._attempt, True)
        try:
            self.watch.start(self._attempt.target.backend.clocks)
            if self._phase is not ENDED:  # else total or caller_timeout was due already
                self._attempt.ask(self._limits.json_depth)
        except GatewayError as problem:
            self.fail_over(problem)
        except Exception:
            self.internal_error(Failure())

    def replied(self, reply: Reply) -> None:
        """The head of a reply has arrived. Choose a receiver, and ask for the body."""
        attempt = self._attempt
        if self._phase is ASKING:
            self._phase = READING
        if self._call.is_good(reply.status):
            attempt.note_head(sure=not self._call.stream)
        refused: GatewayError | None = None
        try:
            attempt.receiver = receiver_for(reply, self._call, attempt.reader, self._limits)
        except GatewayError as problem:
            refused = problem
        # Also if it is refused: the body's transport is needed to abort it.
        reply.body.deliverBody(attempt)  # type: ignore[arg-type]  # what it calls
        if refused is not None:
            self._reask_or_end(refused)
        elif reply.status != 200 and attempt.has_body:  # the head says nearly all
            error = error_of(reply)
            if (error.retryable or self._may_reask(error)) and self._may_ask_another():
                self.fail_over(error)
            else:
                self.watch.start(attempt.target.backend.clocks.at_most(ERROR_SECONDS))

    def _may_ask_another(self) -> bool:
        """Whether a candidate is left, and the client was sent nothing that excludes it."""
        if self._phase is STREAMING:
            return False
        reask = self._attempt.target.backend.reask
        return (reask or self._phase is not PINGED) and self._candidates.has_next()

    def _may_reask(self, problem: GatewayError) -> bool:
        """Whether this failure permits another backend although this one may have run."""
        return (
            self._attempt.target.backend.reask
            and isinstance(problem, UpstreamError)
            and problem.executed
            and self._phase is not STREAMING
            and self._candidates.may_execute_again
            and not self.client.draining
        )

    def fail_over(self, problem: GatewayError) -> None:
        """The backend has failed: ask another one if that is allowed, else end."""
        reask = self._may_reask(problem)
        if not (problem.retryable or reask):
            self.end(problem)
            return
        # The connection of a backend that cannot have run is sound if it answered.
        self._leave_attempt(problem, problem.end, problem.code, keep=problem.retryable)
        error = self._candidates.passed_over(problem)
        if not self._may_ask_another():
            self.end(error)
        elif reask:
            self._ask_next_later()
        else:
            self._begin_asking()
            self._ask_next()

    def _reask_or_end(self, problem: GatewayError) -> None:
        """The backend has failed after it may have executed the request."""
        if self._may_reask(problem):
            self.fail_over(problem)
        else:
            self.end(problem)

    def _falls_back(self, problem: GatewayError) -> bool:
        """Ask for another model if this one cannot take the prompt, and another one is declared.

        :returns: whether that was done.
        """
        if (
            self._policy.fallback is None
            or self._phase not in (ASKING, READING)
            or not isinstance(problem, BackendFailed)
            or not says_prompt_too_long(problem)
            or self.client.draining
        ):
            return False
        found = self._policy.fallback(self._call)
        if found is None:
            return False
        self._call, candidates = found
        self._exchange.fallback, self._fell_back = self._call.model, True
        answered = self._attempt.error_reply is not None  # and all of its body is here
        self._leave_attempt(problem, problem.end, problem.code, keep=answered)
        self._candidates = self._candidates.instead(candidates)
        if answered:
            self._begin_asking()
            self._ask_next()
        else:
            self._ask_next_later()
        return True

    def _leave_attempt(self, outcome: Outcome, end: str, code: str, keep: bool = False) -> None:
        """Settle the attempt, which has not given the reply, and record it."""
        attempt, exchange, watch = self._attempt, self._exchange, self.watch
        attempt.settle(outcome, keep)
        now = self._reactor.seconds()
        tried = Tried(attempt.target.backend.name, end, code, watch.started_at, now)
        exchange.tried = [*(exchange.tried or ()), tried]

    def _begin_asking(self) -> None:
        if self._phase is not PINGED:
            self._phase = ASKING

    def _ask_next_later(self) -> None:
        """Ask the next candidate when the connection to the one that was left is closed.

        An aborted connection is closed in the reactor's next turn, before this call.
        """
        self._begin_asking()
        self._exchange.first_byte = self._exchange.connected = None
        self._asks_next = self._reactor.callLater(0, self._ask_next_now)

    def _ask_next_now(self) -> None:
        self._asks_next = None
        if self._candidates.has_next():  # it may have become full in this turn
            self._ask_next()
        else:
            error = self._candidates.error
            self.end(error or Overloaded("No backend for this model is available."))

    def internal_error(self, failure: Failure) -> None:
        """Log a bug of the gateway, and end with an error."""
        _log.failure("relaying {id} failed", failure, id=self._exchange.id)
        self.end(Internal("The gateway met an internal error."))

    # -- the body ----------------------------------------------------------------------------------

    def act(self, step: Step) -> None:
        """Carry out what a receiver returned."""
        if step.progress is CONTENT:
            self.watch.content()
        elif step.progress is EMPTY_EVENT:
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
            if self._falls_back(outcome):
                return
            if self._attempt.error_reply is None:
                self._reask_or_end(outcome)
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
            if self._phase in (PINGED, STREAMING):
                problem.end = Truncated.end  # also if the body's framing was invalid
            self._reask_or_end(problem)
        elif isinstance(problem, GatewayError):
            self.fail_over(problem)
        else:
            self.internal_error(reason)

    def commit(self) -> None:
        """Begin the answer, unless it was begun. A part of the reply follows."""
        begun, self._phase = self._phase, STREAMING
        if begun is STREAMING:
            return
        self._attempt.note_made()  # so that a response can be cancelled while it is streamed
        if begun is not PINGED:
            self._name(self._attempt.candidate)
            self._begin_answer()

    def _name(self, candidate: Candidate) -> None:
        """Say in headers who has answered, if the client may know it or must."""
        show = self._policy.show_backend
        if show or self._fell_back:
            self.client.set_headers(headers_for(candidate, self._call, self._fell_back, show))

    def _begin_answer(self) -> None:
        attempt = self._attempt
        reply = attempt.reply if attempt.in_flight else None
        if reply is None:
            self.client.begin_stream()
        elif isinstance(attempt.receiver, Bytes):
            headers, content_type = reply.crossing, reply.media_type + reply.parameters
            if self._call.any_reply and reply.media_type == EVENTS:
                headers += _UNBUFFERED
            self.client.begin_bytes(headers, content_type, reply.status)
        else:
            self.client.begin_stream(reply.crossing)
        self.client.registerProducer(attempt, True)

    # -- the end -----------------------------------------------------------------------------------

    def end(self, problem: GatewayError | None, body: bytes = b"") -> None:
        """End the reply, well if ``problem`` is None. Later calls do nothing.

        :param body: of a reply that was not streamed.
        """
        phase, self._phase = self._phase, ENDED
        if phase is ENDED:
            return
        reply, reader = self._attempt.reply, self._attempt.reader
        if problem is None and reader is not None:
            self._exchange.usage = reader.usage
            self._attempt.note_made()
        self._leave_backend(problem)
        if problem is not None and self._candidates.executed:
            problem.executed = True  # by a backend that was left
        if phase is STREAMING or phase is PINGED:
            self.client.unregisterProducer()
            if problem is None:
                self.client.finish()
            else:
                named = reader is not None and not reader.ends_with_done
                self.client.cut(problem, b"error" if named else b"")
        elif problem is not None:
            if isinstance(problem, UpstreamError):
                told = problem is self._candidates.error and self._candidates.error_from
                self._name(told or self._attempt.candidate)
            self.client.fail(problem)
        else:
            self._name(self._attempt.candidate)
            self.client.respond(200, body, () if reply is None else reply.crossing)
        done, self._done = self._done, None  # break the reference cycle
        if done is not None:
            done.callback(None)

    def _client_left(self, _: Deferred[None]) -> None:
        """The canceller of :meth:`run`'s Deferred."""
        self._phase, self._done = ENDED, None
        self._leave_backend(ClientLeft(self.watch.waited))

    def _leave_backend(self, outcome: Outcome) -> None:
        """Stop the clocks and leave the backend."""
        self._exchange.stop = None  # break the reference cycle
        self.watch.stop()
        if self._asks_next is not None:
            self._asks_next.cancel()
            self._asks_next = None
        self._attempt.settle(outcome, keep=outcome is None)

    # -- what the watch calls ----------------------------------------------------------------------

    def _timed_out(self, clock: str) -> None:
        """A clock has run out: ``total``, ``first_byte``, ``idle`` or ``caller_timeout``."""
        if self._asks_next is not None:
            return  # the clocks are checked again when the next backend is asked
        attempt, error = self._attempt, self._candidates.error
        if error is not None and not attempt.in_flight:  # another backend was about to be asked
            self.end(error)
            return
        if clock == "caller_timeout":
            attempt.settle(ClientLeft(self.watch.waited))
        problem: GatewayError
        if attempt.error_reply is not None:
            problem = error_of(attempt.error_reply)
        else:
            problem = UpstreamTimeout(f"The backend took too long ({clock}).")
        if clock in ("first_byte", "idle"):
            self._reask_or_end(problem)
        else:
            self.end(problem)

    def _lose_patience(self) -> bool:
        """``patience`` has run out: ask another backend, if there is one that was not asked yet.

        :returns: whether the backend was left. If not, it may take as long as its other clocks
            allow: patience does not turn a slow reply into an error.
        """
        attempt = self._attempt
        problem = UpstreamTimeout("The backend took too long (patience).")
        if not (
            attempt.in_flight
            and attempt.error_reply is None
            and self._may_reask(problem)
            and self._candidates.has_unasked()
        ):
            return False
        waited = TookLong(self.watch.waited)
        self._leave_attempt(waited, End.BACKEND_TIMEOUT, PATIENCE)
        self._candidates.left(attempt.candidate)
        self._ask_next_later()
        return True

    def _may_be_replaced(self) -> bool:
        """Whether another backend may still give the reply to a stream that begins with a ping."""
        if self._asks_next is not None:
            return True
        return self._attempt.target.backend.reask and self._candidates.has_next()

    def _send_comment(self) -> None:
        if self._phase is ASKING or self._phase is READING:
            if not self._may_be_replaced():  # else the headers could be wrong
                self._name(self._attempt.candidate)
            self._phase = PINGED
            self._begin_answer()
        self.client.write(sse.COMMENT)
