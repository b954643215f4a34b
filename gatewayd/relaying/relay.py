"""Joins a backend's reply to a client's request. The only place where a reply ends.

Theory of operation
-------------------

A :class:`Relay` lives for one request and passes through these phases:

``UNSENT``
    A backend was asked. Its head comes, then its body: a document up to its end, an event stream up
    to its first event. The client has been sent nothing, so a failure is still an HTTP status.
``PINGED``
    The status line and comments are out, and no part of the reply. A failure is an ``error`` event.
``STREAMING``
    A part of the reply is out. A failure is one ``error`` event, after which the connection is
    closed without the last chunk. No other backend is asked.
``ENDED``
    Terminal. Later events are ignored.

A stream is committed with its first good event, or after ``ping`` seconds of silence, when the
gateway begins to send comments.

:mod:`.failover` decides whether another backend is asked when one has failed, and when: at once, or
after the connection to the first one is closed. An aborted connection is closed in the reactor's
next turn, so two executions are never alive at one time (:meth:`Relay._go_on`). If a
backend says that the prompt is too long for its model, and another model is declared for that
(:class:`.policy.Policy`), the request begins anew for that model, with other candidates.

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
    GatewayError,
    Internal,
    Overloaded,
    Truncated,
    UpstreamError,
    UpstreamTimeout,
)

from .attempt import Attempt
from .bodies import error_of
from .candidates import Candidates
from .client import Client
from .failover import (
    ASK_LATER,
    ASK_NEXT,
    END,
    ENDED,
    PINGED,
    STREAMING,
    UNSENT,
    Decision,
    Situation,
)
from .heads import begin_answer, receiver_for
from .policy import Policy, headers_for
from .receiver import CONTENT, EMPTY_EVENT, Step
from .watch import Watch

#: Seconds that the body of an error is waited for.
ERROR_SECONDS = 5.0

#: The code, in the log, of an attempt that was left because ``patience`` had run out.
PATIENCE = "patience"

_DEFAULT_POLICY = Policy()

_log = Logger()


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
        self._phase = UNSENT
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
            self.fail_over(refused)
        elif reply.status != 200 and attempt.has_body:  # the head says nearly all
            error = error_of(reply)
            if self._situation().leaves_at_head(error):
                self.fail_over(error)
            else:
                self.watch.start(attempt.target.backend.clocks.at_most(ERROR_SECONDS))

    def _situation(self) -> Situation:
        reask = self._attempt.target.backend.reask
        return Situation(self._phase, reask, self.client.draining, self._candidates)

    def fail_over(self, problem: GatewayError, began: bool = False) -> None:
        """The backend has failed: ask another one if that is allowed, else end.

        :param began: as in :meth:`.failover.Situation.after`.
        """
        decision = self._situation().after(problem, began)
        if decision is END:
            self.end(problem)
            return
        # The connection of a backend that cannot have run is sound if it answered.
        self._leave_attempt(problem, problem.end, problem.code, keep=decision is ASK_NEXT)
        error = self._candidates.passed_over(problem)
        if self._situation().has_another():
            self._go_on(decision)
        else:
            self.end(error)

    def _falls_back(self, problem: GatewayError) -> bool:
        """Ask for another model if this one cannot take the prompt, and another one is declared.

        :returns: whether that was done.
        """
        fallback = self._policy.fallback
        if fallback is None or not self._situation().may_fall_back(problem):
            return False
        found = fallback(self._call)
        if found is None:
            return False
        self._call, candidates = found
        self._exchange.fallback, self._fell_back = self._call.model, True
        answered = self._attempt.error_reply is not None  # and all of its body is here
        self._leave_attempt(problem, problem.end, problem.code, keep=answered)
        self._candidates = self._candidates.instead(candidates)
        self._go_on(ASK_NEXT if answered else ASK_LATER)
        return True

    def _leave_attempt(self, outcome: Outcome, end: str, code: str, keep: bool = False) -> None:
        """Settle the attempt, which has not given the reply, and record it."""
        self._attempt.settle(outcome, keep)
        name, now = self._attempt.target.backend.name, self._reactor.seconds()
        self._exchange.add_tried(Tried(name, end, code, self.watch.started_at, now))

    def _go_on(self, decision: Decision) -> None:
        """Ask the next candidate, now or when the connection to the one that was left is closed."""
        if decision is ASK_NEXT:
            self._ask_next()
            return
        self._exchange.first_byte = self._exchange.connected = None
        # An aborted connection is closed in the reactor's next turn, before this call.
        self._asks_next = self._reactor.callLater(0, self._ask_next_later)

    def _ask_next_later(self) -> None:
        self._asks_next = None
        if self._candidates.has_next():  # it may have become full in this turn
            self._ask_next()
        else:
            error = self._candidates.error
            self.end(error or Overloaded("No backend for this model is available."))

    def internal_error(self, failure: Failure) -> None:
        """Log a bug of the gateway, and end with an error."""
        _log.failure("relaying {id} failed", failure, id=self._exchange.id)
        problem = Internal("The gateway met an internal error.")
        problem.executed = self._attempt.in_flight  # the backend may work for it
        self.end(problem)

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
            self.fail_over(outcome, began=self._attempt.error_reply is None)
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
            self.fail_over(problem, began=True)
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
            begin_answer(self.client, self._attempt, self._call)

    def _name(self, candidate: Candidate | None) -> None:
        """Say in headers who has answered, if the client may know it or must."""
        show = self._policy.show_backend
        if show or self._fell_back:
            self.client.set_headers(headers_for(candidate, self._call, self._fell_back, show))

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
                self._name(self._candidates.source_of(problem) or self._attempt.candidate)
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
            self.fail_over(problem, began=True)
        else:
            self.end(problem)

    def _lose_patience(self) -> bool:
        """``patience`` has run out: ask another backend, if there is one that was not asked yet.

        :returns: whether the backend was left.
        """
        attempt = self._attempt
        if not (
            attempt.in_flight
            and attempt.error_reply is None
            and self._situation().leaves_when_slow()
        ):
            return False
        waited = TookLong(self.watch.waited)
        self._leave_attempt(waited, End.BACKEND_TIMEOUT, PATIENCE)
        self._candidates.left(attempt.candidate)
        self._go_on(ASK_LATER)
        return True

    def _send_comment(self) -> None:
        if self._phase is UNSENT:
            self._phase = PINGED
            sure = self._asks_next is None and not self._situation().has_another()
            self._name(self._attempt.candidate if sure else None)
            begin_answer(self.client, self._attempt, self._call)
        self.client.write(sse.COMMENT)
