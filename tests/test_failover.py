"""Backends that fail, and clients that do not wait: which backend a request reaches, in memory."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs

from gatewayd.backend.interface import Clocks, PlainReply, Reply
from gatewayd.exchange import End
from gatewayd.routing.evidence import FAILURES
from gatewayd.routing.health import FIRST_BACKOFF, State
from gatewayd.wire import errors
from tests.memory import (
    Answer,
    Asked,
    FakeBackend,
    Gateway,
    backends,
    chunk,
    completion,
    fails,
    gateway_of,
    settings,
)
from tests.observing import messages
from tests.outcomes import state_of


def test_a_limit_holds_for_requests_that_failed_over_too() -> None:
    a, b = backends("a", "b")
    gateway = gateway_of(a, b, b_in_flight="1")
    clients = [gateway.chat() for _ in range(3)]
    for call in list(a.calls):
        call.answer.errback(errors.Unreachable("No."))
    assert len(b.calls) == 1
    b.calls[0].whole(completion())
    assert [Answer(client).status for client in clients] == [200, 502, 502]


def test_there_is_one_trial_at_a_time_even_if_several_requests_fail_over() -> None:
    a, b = backends("a", "b")
    gateway = gateway_of(a, b)
    health = gateway.targets[1].health
    for _ in range(FAILURES):
        fails(health)
    gateway.clock.advance(1)
    for _ in range(3):
        gateway.chat()
    for call in list(a.calls):
        call.answer.errback(errors.Unreachable("No."))
    assert len(b.calls) == 1


def test_a_caller_with_a_very_short_timeout_ejects_no_backend() -> None:
    gateway = gateway_of(*backends("a", "b"))
    for _ in range(20):
        client = gateway.chat(model="m", headers={"x-stainless-read-timeout": "0.1"})
        gateway.clock.advance(0.1)
        assert Answer(client).status == 504
        assert gateway.ended[-1].end is End.BACKEND_TIMEOUT
    assert gateway.api.router.answering() == {"a": True, "b": True}
    assert [target.in_flight for target in gateway.targets] == [0, 0]


@pytest.mark.parametrize("kind", ["text/html", ""])
def test_a_page_in_place_of_speech_is_a_502(kind: str) -> None:
    backend = FakeBackend()
    client = Gateway(backend).post("/v1/audio/speech", input="hi")
    backend.calls[0].head(media_type=kind)
    assert (Answer(client).status, Answer(client).code) == (502, "upstream_bad_response")


# -- one end for each attempt --------------------------------------------------------------------


def two(**values: str) -> tuple[FakeBackend, FakeBackend, Gateway]:
    first, second = FakeBackend("first"), FakeBackend("second")
    return first, second, Gateway(first, second, settings=settings(**values))


def settled(gateway: Gateway) -> bool:
    idle = all(target.in_flight == 0 for target in gateway.targets)
    return idle and not gateway.site.state.active


def watched(gateway: Gateway) -> bool:
    """Whether a relay's clocks still run."""
    channels: Any = gateway.site.state.connections
    deadlines = [channel.deadline for channel in channels]
    return "Watch._check" in str([vars(deadline) for deadline in deadlines])


@pytest.mark.parametrize("problem", [ValueError("odd host"), errors.Unreachable("No.")])
def test_an_exception_while_asking_ends_the_attempt(problem: Exception) -> None:
    backend = FakeBackend()

    def send(*_: object) -> Deferred[Reply]:
        raise problem

    backend.send = send  # type: ignore[method-assign, assignment]
    gateway = Gateway(backend)
    answer = Answer(gateway.chat())
    known = isinstance(problem, errors.Unreachable)
    assert answer.status == (502 if known else 500) and answer.complete
    assert settled(gateway) and not watched(gateway)
    (exchange,) = gateway.ended
    assert exchange.end is (End.BACKEND_UNREACHABLE if known else End.INTERNAL)
    assert exchange.stop is None


def test_a_fault_of_the_gateway_after_it_asked_tells_clients_not_to_retry() -> None:
    backend = FakeBackend()
    gateway = Gateway(backend)
    client = gateway.chat()
    with capturedLogs():
        backend.calls[0].lose(ValueError("a bug"))  # the backend may work for the request
    answer = Answer(client)
    assert (answer.status, answer.header("x-should-retry")) == (500, "false")
    assert gateway.end is End.INTERNAL and settled(gateway)


def test_another_backend_is_asked_if_asking_the_first_raises_unreachable() -> None:
    first, second, gateway = two()

    def send(*_: object) -> Deferred[Reply]:
        raise errors.Unreachable("No.")

    first.send = send  # type: ignore[method-assign, assignment]
    client = gateway.chat()
    second.calls[0].whole(completion())
    assert Answer(client).status == 200 and settled(gateway)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("refused_first", [True, False])
def test_a_refusal_is_sent_rather_than_the_error_of_a_backend_not_reached(
    status: int, refused_first: bool
) -> None:
    first, second, gateway = two()
    busy, gone = (first, second) if refused_first else (second, first)
    gone.failing = [errors.Unreachable("No.")]
    client = gateway.chat()
    envelope = b'{"error":{"message":"busy","code":"slow_down"}}'
    body = Early(busy.calls[0], envelope)
    busy.calls[0].answer.callback(
        PlainReply(status, "application/json", ((b"retry-after", b"7"),), body)
    )
    answer = Answer(client)
    assert (answer.status, answer.header("retry-after")) == (status, "7")
    assert answer.body == envelope and settled(gateway)
    (exchange,) = gateway.ended
    assert exchange.code == "slow_down" and exchange.backends == ["first", "second"]


class Early:
    """A body that came with its head."""

    def __init__(self, asked: Asked, body: bytes) -> None:
        self._asked, self._body = asked, body

    def deliverBody(self, protocol: Any) -> None:
        self._asked.deliverBody(protocol)
        self._asked.send(self._body)
        self._asked.end()


@pytest.mark.parametrize("status", [429, 503])
def test_the_body_of_a_refusal_is_not_waited_for(status: int) -> None:
    first, second, gateway = two()
    client = gateway.chat()
    first.calls[0].head(status, "application/json")
    assert first.calls[0].left == "released"  # its end may keep the connection
    second.calls[0].whole(completion())
    assert Answer(client).status == 200 and settled(gateway)


@pytest.mark.parametrize("status", [400, 429, 500, 503])
@pytest.mark.parametrize("how", ["stalls", "breaks off"])
def test_an_error_without_its_body_is_sent_by_its_head(status: int, how: str) -> None:
    backend = FakeBackend()
    gateway = Gateway(backend)
    client = gateway.chat()
    backend.calls[0].head(status, "application/json", ((b"retry-after", b"7"),))
    backend.calls[0].send(b'{"error":')
    if how == "stalls":
        gateway.clock.advance(5)
        gateway.clock.advance(5)
        assert backend.calls[0].left == "aborted"
    else:
        backend.calls[0].end(errors.Truncated("Cut."))
    answer = Answer(client)
    assert (answer.status, answer.code) == (status, "upstream_error")
    assert answer.header("retry-after") == "7" and settled(gateway)


def test_no_second_backend_is_asked_once_its_total_is_over() -> None:
    first = FakeBackend("first")
    second = FakeBackend("second", Clocks(total=2))
    gateway = Gateway(first, second)
    client = gateway.chat()
    gateway.clock.advance(3)
    first.calls[0].answer.errback(errors.Unreachable("No."))
    answer = Answer(client)
    assert (answer.status, answer.code) == (502, "upstream_unreachable")
    assert not second.calls and settled(gateway)
    assert gateway.ended[0].backends == ["first"]
    assert gateway.targets[1].health.state is State.HEALTHY


PHASES = ["asking", "asking the second", "reading", "an error's body", "pinged", "streaming"]


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("how", ["client leaves", "stop"])
def test_every_attempt_is_settled_once_in_every_phase(phase: str, how: str) -> None:
    first, second, gateway = two(timeouts_ping="1")
    client = gateway.chat(stream=True)
    call = first.calls[0]
    if phase == "asking the second":
        call.answer.errback(errors.Unreachable("No."))
        call = second.calls[0]
    elif phase == "reading":
        call.head()
    elif phase == "an error's body":
        call.head(400, "application/json")
    elif phase == "pinged":
        gateway.clock.advance(1)
    elif phase == "streaming":
        call.head()
        call.event(chunk("a"))
    if how == "stop":
        (exchange,) = gateway.site.state.active
        assert exchange.stop is not None
        exchange.stop(errors.Drained())
    else:
        client.leave()
    assert call.left == ("cancelled" if phase in (*PHASES[:2], "pinged") else "aborted")
    assert settled(gateway)
    (ended,) = gateway.ended
    assert ended.end is (End.DRAINED if how == "stop" else End.CLIENT_GONE)
    assert ended.stop is None
    assert not watched(gateway)


def test_a_failure_after_a_ping_is_an_error_event_and_asks_no_other() -> None:
    first, second, gateway = two(timeouts_ping="1")
    client = gateway.chat(stream=True)
    gateway.clock.advance(1)
    first.calls[0].answer.errback(errors.Unreachable("No."))
    assert json.loads(Answer(client).payloads[-1])["error"]["code"] == "upstream_unreachable"
    assert not second.calls and settled(gateway) and not Answer(client).complete


# -- callers that wait and give up ---------------------------------------------------------------


@pytest.mark.parametrize("how", ["says how long it waits", "leaves"])
def test_a_backend_that_callers_gave_up_on_is_asked_after_the_others(how: str) -> None:
    hanging, good = backends("hanging", "good")
    gateway = gateway_of(hanging, good)
    met = []
    for _ in range(20):
        asked = len(hanging.calls)
        timeout = {"x-stainless-read-timeout": "6"} if how != "leaves" else {}
        client = gateway.chat(model="m", headers=timeout)
        if len(hanging.calls) > asked:
            gateway.clock.advance(6)
            if how == "leaves":
                client.leave()
            else:
                assert Answer(client).status == 504
        else:
            good.calls[-1].whole(completion())
            assert Answer(client).status == 200
        met.append(len(hanging.calls) > asked)
    # Three in a row. A trial comes only after a back-off, and no time passes here.
    assert sum(met) == FAILURES and gateway.api.router.answering()["hanging"] is False
    for call in (hanging, good):
        call.failing = [errors.Unreachable("No.") for _ in range(9)]
    assert Answer(gateway.chat(model="m")).status == 502
    assert gateway.ended[-1].backends == ["good", "hanging"]  # the second as the last resort


def test_a_caller_that_disconnects_soon_proves_nothing() -> None:
    hanging, good = backends("hanging", "good")
    gateway = gateway_of(hanging, good)
    for _ in range(20):
        client = gateway.chat(model="m")
        gateway.clock.advance(1)
        client.leave()
    assert gateway.api.router.answering() == {"hanging": True, "good": True}


def test_the_daemons_log_says_which_backend_is_ejected_or_back() -> None:
    first, second, gateway = two()
    first.failing = [errors.Unreachable("No.", detail="refused") for _ in range(FAILURES)]
    with capturedLogs() as events:
        for _ in range(2 * FAILURES):
            gateway.chat()
            if second.calls and not second.calls[-1].answer.called:
                second.calls[-1].whole(completion())
        gateway.clock.advance(15)
        gateway.chat()
        first.calls[-1].whole(completion())
    assert messages(events) == [
        "backend first is ejected after 3 failures in a row, the last: No. refused",
        "backend first is healthy again after 15.0 s",
    ]


def test_one_clients_bad_requests_leave_the_gateway_ready() -> None:
    first, second, gateway = two()
    failed = b'{"error":{"message":"no image input"}}'
    for _ in range(10):
        gateway.chat()
        for call in (*first.calls, *second.calls):
            if not call.answer.called:
                call.whole(failed, 500)
    assert Answer(gateway.request("GET", "/readyz")).status == 200
    assert gateway.api.router.answering() == {"first": True, "second": True}


# -- a backend that is down for some time ---------------------------------------------------------


def under_way(gateway: Gateway, *backends: FakeBackend) -> Asked:
    """The one request that a backend has not answered."""
    (exchange,) = gateway.site.state.active
    (backend,) = [b for b in backends if b.name == exchange.backends[-1]]
    return backend.calls[-1]


def test_a_backend_that_fails_is_passed_over_tried_again_and_back_within_30_s() -> None:
    first, second = FakeBackend("first"), FakeBackend("second")
    first.failing = [errors.Unreachable("No.") for _ in range(20)]
    gateway = Gateway(first, second)
    for _ in range(3000):
        client = gateway.chat(model="m")
        under_way(gateway, first, second).whole(completion())
        assert Answer(client).status == 200
        gateway.clock.advance(0.1)
        if gateway.ended[-1].backends == ["first"]:
            break
    refused = [exchange for exchange in gateway.ended if len(exchange.backends) == 2]
    assert len(refused) == 20  # each of them went on to the second
    gap = gateway.ended[-1].started - refused[-1].started
    assert 0 < gap <= 30 and gateway.ended[-1].backends == ["first"]
    assert gateway.targets[0].health.state is State.HEALTHY
    gateway.chat(model="m")
    gateway.chat(model="m")
    assert [target.in_flight for target in gateway.targets] == [1, 1]  # trusted as before


def on_trial(backend: FakeBackend) -> Gateway:
    """A gateway whose backend was ejected, and whose trial is under way."""
    gateway = Gateway(backend, FakeBackend("other"))
    gateway.targets[1].in_flight = 100  # so that the first would be chosen
    backend.failing = [errors.Unreachable("No.") for _ in range(FAILURES)]
    for _ in range(FAILURES):
        gateway.chat(model="m")
    gateway.clock.advance(FIRST_BACKOFF)
    gateway.chat(model="m", stream=True)
    assert gateway.targets[0].health.state is State.ON_TRIAL
    return gateway


def test_the_first_event_of_a_stream_on_trial_is_enough() -> None:
    """A stream takes minutes. No other request would be sent to the backend for that time."""
    backend = FakeBackend("first")
    gateway = on_trial(backend)
    backend.calls[-1].head()
    gateway.clock.advance(gateway.settings.timeouts.ping)  # the gateway's own comment is no event
    assert gateway.targets[0].health.state is State.ON_TRIAL
    backend.calls[-1].event(chunk("a"))
    assert state_of(gateway.targets[0].health) is State.HEALTHY
    gateway.chat(model="m")
    assert gateway.targets[0].in_flight == 2


def test_a_stream_that_breaks_off_after_its_trial_counts_as_any_other() -> None:
    backend = FakeBackend("first")
    gateway = on_trial(backend)
    for n in range(FAILURES):
        assert gateway.targets[0].health.state is (State.HEALTHY if n else State.ON_TRIAL)
        backend.calls[-1].head()
        backend.calls[-1].event(chunk("a"))
        backend.calls[-1].end(errors.Truncated("It broke off."))
        if n < FAILURES - 1:
            gateway.chat(model="m", stream=True)
    assert gateway.targets[0].health.state is State.EJECTED


def test_while_none_can_be_reached_the_answer_names_no_host() -> None:
    backends = [FakeBackend("secret-1"), FakeBackend("secret-2")]
    gateway = Gateway(*backends)
    for backend in backends:
        backend.failing = [errors.Unreachable("No.", detail="10.0.0.7") for _ in range(100)]
    for _ in range(10):  # each is asked once for each request: it may be up again
        client = gateway.chat(model="m")
        assert Answer(client).code == "upstream_unreachable"
        assert b"secret" not in client.value() and b"10.0.0.7" not in client.value()
    assert [len(backend.calls) for backend in backends] == [10, 10]
    assert gateway.api.router.answering() == {"secret-1": False, "secret-2": False}
    for backend in backends:
        backend.failing.clear()
    client = gateway.chat(model="m")
    under_way(gateway, *backends).whole(completion())
    assert Answer(client).status == 200


def test_the_only_backend_is_asked_even_when_it_is_down() -> None:
    backend = FakeBackend()
    gateway = Gateway(backend)
    backend.failing = [errors.Unreachable("No.") for _ in range(50)]
    for _ in range(50):
        assert Answer(gateway.chat()).code == "upstream_unreachable"
    client = gateway.chat()
    backend.calls[-1].whole(completion())
    assert Answer(client).status == 200 and gateway.targets[0].health.state is State.HEALTHY


def test_liveness_and_readiness_differ() -> None:
    backends = [FakeBackend("a"), FakeBackend("b")]
    gateway = Gateway(*backends)

    def ask(path: str) -> int:
        return Answer(gateway.request("GET", path)).status

    assert (ask("/healthz"), ask("/readyz")) == (200, 200)
    for _ in range(FAILURES):
        fails(gateway.targets[0].health)
    assert (ask("/healthz"), ask("/readyz")) == (200, 200)
    gateway.targets[1].health.check_loading()
    assert (ask("/healthz"), ask("/readyz")) == (200, 503)
    gateway.clock.advance(FIRST_BACKOFF)
    assert ask("/readyz") == 200  # the next request may be the trial
    gateway.api.draining = True
    assert ask("/readyz") == 503
