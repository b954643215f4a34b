"""One request for a WebSocket: asks backends until one accepts, and ends what follows.

It is to a tunnel what :mod:`.relay` is to a reply. Another backend is asked only if the one before
cannot have accepted: it was not reached, or it refused with 429 or 503. Any other refusal reaches
the client as an HTTP error. After the backend's 101 only :class:`.tunnel.Tunnel` sends anything.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone

from gatewayd.backend.interface import Accepted, Reply
from gatewayd.exchange import Tried
from gatewayd.http1.handshake import Handshake
from gatewayd.routing.evidence import ClientLeft, Outcome
from gatewayd.routing.router import Candidate
from gatewayd.settings.model import LimitSettings
from gatewayd.wire.errors import (
    AuthRefused,
    BadReply,
    GatewayError,
    Internal,
    UpstreamError,
    UpstreamTimeout,
)
from gatewayd.wire.tunnels import TunnelCall

from .attempt import BodyTransport
from .bodies import ErrorDocument, error_of
from .candidates import Candidates
from .client import TunnelClient
from .heads import check_error_status
from .policy import headers_for
from .relay import ERROR_SECONDS
from .tunnel import Tunnel
from .watch import Watch

_log = Logger()


class Phase(enum.Enum):
    ASKING = enum.auto()  # no head has come
    REFUSED = enum.auto()  # the body of an error comes
    OPEN = enum.auto()  # the backend has accepted
    ENDED = enum.auto()


class Opening:
    """
    :param call: under the name of the model that the client used.
    :param show_backend: whether the client is told which backend has answered.
    """

    _candidate: Candidate  # the last one
    _asked: Deferred[Accepted | Reply]
    _tunnel: Tunnel  # in OPEN

    def __init__(
        self,
        client: TunnelClient,
        call: TunnelCall,
        handshake: Handshake,
        limits: LimitSettings,
        reactor: IReactorTime,
        show_backend: bool = False,
    ) -> None:
        self._client = client
        self._exchange = client.exchange
        self._call = call
        self._handshake = handshake
        self._limits = limits
        self._reactor = reactor
        self._show_backend = show_backend
        self._watch = Watch(
            reactor, client.timer, client.exchange, 0.0, 0.0, self._timed_out, lambda: None
        )
        self._phase = Phase.ASKING
        self._refusal: _Refusal | None = None
        self._under_way = False  # the target counts the request
        self._trial = 0  # if not 0, this request decides whether the target is healthy
        self._done: Deferred[None] | None = Deferred(self._client_left)

    def run(self, candidates: Sequence[Candidate]) -> Deferred[None]:
        """Ask the candidates in this order.

        :param candidates: at least one.
        :returns: fires when the exchange has ended; it never fails. Cancelling it means that the
            client has disconnected.
        """
        done = self._done
        assert done is not None
        self._exchange.stop = self.end
        self._candidates = Candidates(candidates)
        self._ask_next()
        return done

    # -- asking ------------------------------------------------------------------------------------

    def _ask_next(self) -> None:
        self._candidate = self._candidates.next()
        backend, call, exchange = self._candidate.target.backend, self._call, self._exchange
        self._watch.start(backend.clocks)
        if self._phase is Phase.ENDED:  # total was due already
            return
        if self._candidate.model is not None:
            call = call.renamed(self._candidate.model)
        exchange.backends.append(backend.name)
        exchange.priority = self._candidate.target.priority
        self._under_way, self._trial = True, self._candidate.target.begin()
        self._asked = backend.open_tunnel(call, self._handshake, exchange.id, exchange.traceparent)
        self._asked.addCallbacks(self._got_head, self._got_none).addErrback(self._internal_error)

    def _got_head(self, head: Accepted | Reply) -> None:
        self._exchange.connected = head.connect_seconds
        if isinstance(head, Accepted):
            self._open(head)
            return
        error = error_of(head)
        self._refusal = refusal = _Refusal(head, self._fail_over)
        self._phase = Phase.REFUSED
        head.body.deliverBody(refusal)  # type: ignore[arg-type]  # what it calls
        if self._refusal is not refusal:
            return  # the whole body was here
        try:
            _check_refusal(head.status)
        except GatewayError as problem:
            self.end(problem)
            return
        if error.retryable and self._candidates.has_next():
            self._fail_over(error)
        else:
            self._watch.start(self._candidate.target.backend.clocks.at_most(ERROR_SECONDS))

    def _got_none(self, reason: Failure) -> None:
        if self._phase is not Phase.ASKING:
            return  # cancelled
        if isinstance(reason.value, GatewayError):
            self._fail_over(reason.value)
        else:
            self._internal_error(reason)

    def _fail_over(self, problem: GatewayError) -> None:
        """The backend does not accept: ask another one if that is safe, else end."""
        if not problem.retryable:
            self.end(problem)
            return
        self._leave_backend(problem)
        name, now = self._candidate.target.backend.name, self._reactor.seconds()
        tried = Tried(name, problem.end, problem.code, self._watch.started_at, now)
        self._exchange.add_tried(tried)
        error = self._candidates.passed_over(problem)
        if self._candidates.has_next():
            self._phase = Phase.ASKING
            self._ask_next()
        else:
            self.end(error)

    def _open(self, accepted: Accepted) -> None:
        target = self._candidate.target
        clocks, watch, limits = target.backend.clocks, self._watch, self._limits
        self._tunnel = Tunnel(self._client, accepted, clocks, watch, limits, self.end)
        self._phase = Phase.OPEN
        self._name(self._candidate)
        if self._trial:
            target.reply_began()
            self._trial = 0
        self._tunnel.begin()

    def _internal_error(self, failure: Failure) -> None:
        """Log a bug of the gateway, and end with an error."""
        _log.failure("the tunnel of {id} failed", failure, id=self._exchange.id)
        self.end(Internal("The gateway met an internal error."))

    # -- the end -----------------------------------------------------------------------------------

    def end(self, problem: GatewayError | None) -> None:
        """End the exchange, well if ``problem`` is None. Later calls do nothing."""
        phase, self._phase = self._phase, Phase.ENDED
        if phase is Phase.ENDED:
            return
        self._exchange.stop = None  # break the reference cycle
        self._watch.stop()
        if phase is Phase.OPEN:
            self._tunnel.close(problem)
            self._settle(problem)
        else:
            self._leave_backend(problem)
            assert problem is not None
            if isinstance(problem, UpstreamError):
                self._name(self._candidates.source_of(problem) or self._candidate)
            self._client.fail(problem)
        done, self._done = self._done, None  # break the reference cycle
        if done is not None:
            done.callback(None)

    def _name(self, candidate: Candidate) -> None:
        """Say in headers who has answered, if the client may know it."""
        if self._show_backend:
            self._client.set_headers(headers_for(candidate, self._call, False, True))

    def _client_left(self, _: Deferred[None]) -> None:
        """The canceller of :meth:`run`'s Deferred."""
        phase, self._phase, self._done = self._phase, Phase.ENDED, None
        self._exchange.stop = None
        outcome = ClientLeft(0.0 if phase is Phase.OPEN else self._watch.waited)
        self._watch.stop()
        if phase is Phase.OPEN:
            self._tunnel.leave()
            self._settle(outcome)
        else:
            self._leave_backend(outcome)

    def _leave_backend(self, outcome: Outcome) -> None:
        """Leave a backend that has not accepted."""
        refusal, self._refusal = self._refusal, None
        if refusal is not None:
            refusal.leave()
        elif self._under_way and self._phase is not Phase.OPEN:
            self._asked.cancel()
        self._settle(outcome)

    def _settle(self, outcome: Outcome) -> None:
        if self._under_way:
            self._under_way = False
            caller = self._exchange.caller or self._exchange.client
            self._candidate.target.settle(self._trial, outcome, caller)

    def _timed_out(self, clock: str) -> None:
        """A clock of the watch has run out: ``total``, ``first_byte`` or ``idle``."""
        if self._phase is Phase.OPEN:
            problem = self._tunnel.timeout_error(clock)
            if clock == "idle" and self._tunnel.awaits_client:
                self._settle(ClientLeft())  # the backend is not to blame
            self.end(problem)
        elif self._refusal is not None:
            self.end(error_of(self._refusal.reply))
        else:
            error = None if self._under_way else self._candidates.error
            self.end(error or UpstreamTimeout(f"The backend took too long ({clock})."))


def _check_refusal(status: int) -> None:
    """Refuse a status that the client must not act on.

    Servers in Python (ASGI) answer 403 to each WebSocket that they do not accept, also at a path
    that they do not have.
    """
    if status == 200:
        raise BadReply("The backend did not accept the WebSocket.", detail="status 200")
    if status == 403:
        message = "The backend refused the gateway's credentials, or has no such WebSocket."
        raise AuthRefused(message)
    check_error_status(status)


class _Refusal:
    """Reads the body of a reply with an error status.

    :param ended: called with the error, unless :meth:`leave` comes before.
    """

    def __init__(self, reply: Reply, ended: Callable[[GatewayError], None]) -> None:
        self.reply = reply
        self._receiver = ErrorDocument(reply)
        self._ended: Callable[[GatewayError], None] | None = ended
        self._transport: BodyTransport | None = None

    def leave(self) -> None:
        """Stop reading, and close the connection."""
        self._ended = None
        if self._transport is not None:
            self._transport.abortConnection()

    def makeConnection(self, transport: BodyTransport) -> None:
        self._transport = transport

    def dataReceived(self, data: bytes) -> None:
        self._end(self._receiver.feed(data).outcome)

    def connectionLost(self, reason: Failure) -> None:
        self._transport = None
        if isinstance(reason.value, ResponseDone):
            self._end(self._receiver.close(True).outcome)
        else:
            self._end(error_of(self.reply))

    def _end(self, outcome: object) -> None:
        if isinstance(outcome, GatewayError) and self._ended is not None:
            self._ended(outcome)
