"""One attempt: what it reports, and that settling it gives everything back once."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss

from gatewayd.api.clocks import Deadline
from gatewayd.backend.interface import Clocks, Reply
from gatewayd.exchange import Exchange
from gatewayd.relaying.attempt import Attempt
from gatewayd.relaying.receiver import Receiver, Step, Whole
from gatewayd.relaying.watch import Watch
from gatewayd.routing.evidence import ClientLeft, Outcome
from gatewayd.routing.router import Candidate
from gatewayd.routing.target import Target
from gatewayd.wire import errors
from tests.memory import Asked, FakeBackend


@attrs.frozen
class AnyCall:
    """A request whose reply nothing reads."""

    model: str = "m"

    @property
    def body(self) -> bytes:
        return b'{"model":"%b"}' % self.model.encode()

    uses_model = True

    def is_good(self, status: int) -> bool:
        return status == 200

    def renamed(self, model: str) -> AnyCall:
        return AnyCall(model)

    def reader(self, *_: object) -> None:
        """Nothing reads it."""


class Echoing(Receiver):
    """Sends what it is fed; its fast path takes upper case."""

    fast_limit = 3

    def __init__(self) -> None:
        self.fast = lambda data: [data.lower()] if data.isupper() else None

    def feed(self, data: bytes) -> Step:
        return Step(data)

    def close(self, exact: bool) -> Step:
        return Step(outcome=Whole(b"exact" if exact else b""))


class Listener:
    """Keeps what an attempt reports, and is the client too."""

    def __init__(self, target: Target) -> None:
        self.exchange = Exchange("req-1", 0.0, "client", lambda _: None)
        clock = Clock()
        self.watch = Watch(
            clock, Deadline(clock), self.exchange, 0, 0, lambda _: None, lambda: None
        )
        self.watch.start(Clocks())
        self.client: Any = self
        self.heard: list[Any] = []
        call: Any = AnyCall()
        self.attempt = Attempt(self, Candidate(target, "real"), call, self.exchange)

    def write(self, data: bytes) -> None:
        self.heard.append(data)

    def replied(self, reply: Reply) -> None:
        self.attempt.receiver = Echoing()
        reply.body.deliverBody(self.attempt)  # type: ignore[arg-type]  # what it calls

    def act(self, step: Step) -> None:
        self.heard.append(step)

    def lost(self, reason: Failure) -> None:
        self.heard.append(reason.value)

    internal_error = lost


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def listener(backend: FakeBackend) -> Listener:
    return Listener(Target(backend, Clock()))


def ask(listener: Listener, backend: FakeBackend, head: bool = True) -> Asked:
    listener.attempt.ask(64)
    (call,) = backend.calls
    if head:
        call.head()
    return call


def test_the_request_goes_out_under_the_backends_name_of_the_model(
    listener: Listener, backend: FakeBackend
) -> None:
    call = ask(listener, backend, head=False)
    assert call.body == b'{"model":"real"}' and listener.exchange.backends == ["fake"]
    assert listener.attempt.target.in_flight == 1


def test_a_body_is_reported_in_steps(listener: Listener, backend: FakeBackend) -> None:
    call = ask(listener, backend)
    call.send(b"ab")
    call.end()
    assert listener.heard == [Step(b"ab"), Step(outcome=Whole(b"exact"))]


def test_the_end_of_the_connection_is_an_end_that_is_not_exact(
    listener: Listener, backend: FakeBackend
) -> None:
    ask(listener, backend).end(PotentialDataLoss())
    assert listener.heard == [Step(outcome=Whole(b""))]


def test_the_fast_path_goes_to_the_client(listener: Listener, backend: FakeBackend) -> None:
    call = ask(listener, backend)
    for data in (b"AB", b"ab", b"ABCD"):
        call.send(data)
    assert listener.heard == [b"ab", Step(b"ab"), Step(b"ABCD")]
    assert listener.exchange.events == 1


@pytest.mark.parametrize("head", [False, True])
def test_a_loss_is_reported_with_its_reason(
    listener: Listener, backend: FakeBackend, head: bool
) -> None:
    call, problem = ask(listener, backend, head), errors.Truncated("Cut.")
    if head:
        call.end(problem)
    else:
        call.answer.errback(problem)
    assert listener.heard == [problem]


# -- settled -------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", [None, errors.Truncated("Cut."), ClientLeft(1.0)])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("phase", ["new", "asking", "body", "ended"])
def test_settling_gives_everything_back_once(
    listener: Listener,
    backend: FakeBackend,
    phase: str,
    keep: bool,
    outcome: Outcome,
) -> None:
    attempt = listener.attempt
    if phase != "new":
        ask(listener, backend, head=phase != "asking")
    if phase == "ended":
        backend.calls[0].end()
    listener.heard.clear()
    for _ in range(2):  # FakeBackend refuses to be left twice
        attempt.settle(outcome, keep)
    expected = {"asking": "cancelled", "body": "released" if keep else "aborted"}
    assert [call.left for call in backend.calls] == ([expected.get(phase)] * (phase != "new"))
    assert attempt.target.in_flight == 0 and listener.heard == []


def test_a_settled_attempt_reports_nothing_and_aborts_a_late_body(
    listener: Listener, backend: FakeBackend
) -> None:
    call = ask(listener, backend)
    attempt = listener.attempt
    attempt.settle(None)
    attempt.dataReceived(b"AB")
    attempt.connectionLost(Failure(ResponseDone()))
    assert listener.heard == []
    call.left = None
    attempt.makeConnection(call)
    assert call.left == "aborted"


def test_a_reply_in_spite_of_a_cancel_is_aborted(
    listener: Listener, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    call: Any = AnyCall()
    late = Asked(call, "req-1")
    late.answer = Deferred(lambda _: late.head())
    monkeypatch.setattr(backend, "send", lambda *_: late.answer)
    listener.attempt.ask(64)
    listener.attempt.settle(ClientLeft(1.0))
    assert late.left == "aborted" and listener.heard == []


# -- the client's pace ---------------------------------------------------------------------------


def test_a_slow_client_pauses_the_body(listener: Listener, backend: FakeBackend) -> None:
    call = ask(listener, backend)
    listener.attempt.pauseProducing()
    assert call.paused
    listener.attempt.resumeProducing()
    assert not call.paused


def test_a_body_that_comes_while_the_client_is_slow_is_paused(
    listener: Listener, backend: FakeBackend
) -> None:
    listener.attempt.pauseProducing()
    assert ask(listener, backend).paused
