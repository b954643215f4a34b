"""Whether a backend is worth asking, on a clock."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.internet.task import Clock
from twisted.python import failure

from gatewayd.routing.evidence import FAILURES, ClientLeft, Evidence, Failure, evidence_of
from gatewayd.routing.health import FIRST_BACKOFF, LONGEST_BACKOFF, TRIAL_SECONDS, Health, State
from gatewayd.routing.prober import CHECK_SECONDS, CHECK_TIMEOUT, RECHECK_SECONDS, Prober
from gatewayd.routing.router import Router
from gatewayd.routing.target import Target
from gatewayd.wire import errors
from tests.memory import Answer, Asked, FakeBackend, Gateway, chunk, completion, fails


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(clock)


def state_of(health: Health) -> State:
    """The state now; mypy does not expect that a state it has seen compared can change."""
    return health.state


def eject(health: Health) -> None:
    for _ in range(FAILURES):
        fails(health)
    assert health.state is State.EJECTED


def back_off(health: Health, clock: Clock) -> float:
    """Wait until it may be asked again; return how long that took."""
    began = clock.seconds()
    while health.state is State.EJECTED:
        clock.advance(0.01)
    return clock.seconds() - began


# -- ejection ------------------------------------------------------------------------------------


def test_failures_in_a_row_eject(health: Health) -> None:
    for _ in range(FAILURES - 1):
        fails(health)
    assert health.usable
    fails(health)
    assert health.state is State.EJECTED and not health.usable


def test_a_success_in_between_starts_the_count_anew(health: Health) -> None:
    for _ in range(20):
        for _ in range(FAILURES - 1):
            fails(health)
        health.succeeded()
    assert health.usable


FAULTS = [
    errors.Unreachable("x"),
    errors.TLSFailed("x"),
    errors.UnknownHost("x"),
    errors.ConnectTimeout("x"),
    errors.ConnectionReset("x"),
    errors.BadReply("x"),
    errors.Truncated("x"),
    errors.UpstreamTimeout("x"),
    errors.BackendFailed("x", status=500),
    errors.BackendFailed("x", status=503),
]
NO_FAULTS = [
    None,
    *(errors.BackendFailed("x", status=status) for status in (400, 404, 413, 422, 429, 501)),
    errors.UnknownURL("x"),
    errors.InvalidValue("x"),
    errors.Drained("x"),
    errors.Internal("x"),
]


def named(problem: errors.GatewayError | None) -> str:
    return "none" if problem is None else f"{type(problem).__name__}-{problem.status}"


@pytest.mark.parametrize("problem", FAULTS, ids=named)
def test_what_a_backend_does_wrong_counts_against_it(
    clock: Clock, problem: errors.GatewayError
) -> None:
    target = Target(FakeBackend(), clock)
    for _ in range(FAILURES):
        target.settle(target.begin(), problem)
    assert not target.health.usable and target.in_flight == 0


@pytest.mark.parametrize("problem", NO_FAULTS, ids=named)
def test_what_a_client_does_wrong_does_not(
    clock: Clock, problem: errors.GatewayError | None
) -> None:
    target = Target(FakeBackend(), clock)
    for _ in range(100):
        target.settle(target.begin(), problem)
        target.settle(target.begin(), ClientLeft())
    assert target.health.state is State.HEALTHY and target.in_flight == 0


# -- back-off and trial --------------------------------------------------------------------------


def test_after_the_back_off_one_request_is_let_through(health: Health, clock: Clock) -> None:
    eject(health)
    clock.advance(FIRST_BACKOFF / 2 - 0.01)
    assert not health.usable
    clock.advance(FIRST_BACKOFF / 2 + 0.01)
    assert health.state is State.TRIAL_DUE and health.usable
    health.begin()
    assert health.state is State.ON_TRIAL and not health.usable
    clock.advance(1000)
    assert not health.usable  # whatever time it takes
    health.succeeded()
    assert health.state is State.HEALTHY


def test_a_trial_that_fails_ejects_at_once_for_longer_up_to_a_cap(
    health: Health, clock: Clock
) -> None:
    eject(health)
    took = [back_off(health, clock)]
    for _ in range(10):
        fails(health)
        assert health.state is State.EJECTED
        took.append(back_off(health, clock))
    for n, seconds in enumerate(took):
        longest = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2**n)
        assert longest / 2 - 0.02 <= seconds <= longest + 0.02
    health.begin()
    health.succeeded()
    eject(health)
    assert back_off(health, clock) <= FIRST_BACKOFF + 0.02


def test_the_back_off_has_jitter(clock: Clock) -> None:
    took = set()
    for _ in range(10):
        health = Health(clock)
        eject(health)
        took.add(round(back_off(health, clock), 2))
    assert len(took) > 3


def test_a_backend_that_is_down_for_a_week_is_still_tried_and_comes_back(
    health: Health, clock: Clock
) -> None:
    eject(health)
    while clock.seconds() < 7 * 86400:
        clock.advance(LONGEST_BACKOFF)
        assert health.usable
        fails(health)
        assert not health.usable
    clock.advance(LONGEST_BACKOFF)
    health.begin()
    health.succeeded()
    assert health.state is State.HEALTHY


def test_a_client_that_leaves_during_the_trial_makes_the_next_request_the_trial(
    health: Health, clock: Clock
) -> None:
    eject(health)
    clock.advance(FIRST_BACKOFF)
    health.inconclusive(health.begin())
    assert health.state is State.TRIAL_DUE and health.usable
    fails(health)
    assert state_of(health) is State.EJECTED


@pytest.mark.parametrize("how", [fails, Health.inconclusive])
def test_what_began_before_the_trial_does_not_end_it(
    health: Health, clock: Clock, how: Callable[[Health, int], None]
) -> None:
    older = [health.begin() for _ in range(2 * FAILURES)]
    eject(health)
    clock.advance(FIRST_BACKOFF)
    first = health.begin()
    for request in older:
        how(health, request)
        assert health.state is State.ON_TRIAL
    health.inconclusive(first)
    second = health.begin()
    how(health, first)  # nor what was a trial once
    assert health.state is State.ON_TRIAL
    fails(health, second)
    assert state_of(health) is State.EJECTED


@pytest.mark.parametrize("state", [State.EJECTED, State.TRIAL_DUE, State.ON_TRIAL])
def test_the_success_of_what_began_before_is_good_news_at_any_time(
    health: Health, clock: Clock, state: State
) -> None:
    eject(health)
    if state is not State.EJECTED:
        clock.advance(FIRST_BACKOFF)
    if state is State.ON_TRIAL:
        health.begin()
    assert health.state is state
    health.succeeded()
    assert health.state is State.HEALTHY


# -- the health path -----------------------------------------------------------------------------


def test_a_backend_that_is_loading_is_not_usable_and_not_broken(
    health: Health, clock: Clock
) -> None:
    health.check_loading()
    assert health.state is State.LOADING and not health.usable
    clock.advance(1000)
    health.check_loading()
    assert not health.usable
    health.check_passed()
    assert state_of(health) is State.HEALTHY  # at once, without a trial


def test_a_server_that_says_it_is_well_must_still_pass_its_trial(
    health: Health, clock: Clock
) -> None:
    eject(health)
    health.check_passed()
    assert not health.usable
    back_off(health, clock)
    health.check_passed()
    assert health.state is State.TRIAL_DUE


def test_a_trial_that_takes_its_time_is_not_waited_for_when_the_server_says_it_is_well(
    health: Health, clock: Clock
) -> None:
    eject(health)
    back_off(health, clock)
    trial = health.begin()
    health.check_passed()
    assert health.state is State.ON_TRIAL  # its reply decides
    clock.advance(TRIAL_SECONDS)
    assert not health.usable
    health.check_passed()
    assert health.usable  # one more may try it
    second = health.begin()
    fails(health, trial)
    assert health.state is State.ON_TRIAL
    fails(health, second)
    assert health.state is State.EJECTED


def test_errors_that_are_answered_do_not_count_while_the_health_path_is_good(
    health: Health,
) -> None:
    answered = Failure(Evidence.ANSWERED)
    for _ in range(FAILURES):
        health.failed(answered, health.begin())
    assert health.state is State.EJECTED
    health.check_passed()
    assert state_of(health) is State.HEALTHY
    for _ in range(10):
        health.failed(answered, health.begin())
    assert state_of(health) is State.HEALTHY
    for _ in range(FAILURES):
        fails(health)
    assert health.state is State.EJECTED
    health.check_passed()
    assert health.state is State.EJECTED  # a server whose model hangs says 200 too


LOST, ANSWERED = Evidence.LOST, Evidence.ANSWERED


@pytest.mark.parametrize(
    ("failures", "dead"),
    [
        ([Failure(LOST, n, n) for n in range(3)], True),
        ([Failure(LOST, 1, n) for n in range(3)], False),  # one caller alone
        ([Failure(LOST, n, 1) for n in range(3)], False),  # one body alone
        ([Failure(ANSWERED, n, n) for n in range(3)], False),
        ([Failure(Evidence.GAVE_UP, n, n) for n in range(3)], False),
        ([Failure(Evidence.NOT_REACHED, n, n) for n in range(3)], False),
        ([Failure(LOST, 1, 1), Failure(ANSWERED, 2, 2), Failure(LOST, 3, 3)], False),
    ],
)
def test_only_silence_and_lost_connections_of_several_say_that_it_is_dead(
    health: Health, failures: list[Failure], dead: bool
) -> None:
    for each in failures:
        health.failed(each, health.begin())
    assert health.state is State.EJECTED and not health.usable
    assert health.usable_as_last_resort is not dead
    health._clock.advance(FIRST_BACKOFF)  # type: ignore[attr-defined]
    health.begin()
    assert health.usable_as_last_resort  # a slow trial keeps nobody from a server that is back
    health.succeeded()
    assert health.usable


def test_what_changes_is_said_once_and_with_the_reason(clock: Clock) -> None:
    said: list[str] = []
    health = Health(clock, said.append)
    for n in range(FAILURES):
        health.failed(Failure(Evidence.NOT_REACHED, reason=f"refused {n}"), health.begin())
    clock.advance(LONGEST_BACKOFF)
    fails(health)  # the trial: the same outage
    clock.advance(LONGEST_BACKOFF)
    health.begin()
    health.succeeded()
    health.succeeded()
    health.check_loading()
    health.check_loading()
    health.check_passed()
    assert said == [
        "is ejected after 3 failures in a row, the last: refused 2",
        "is healthy again after 30.0 s",
        "is loading its model",
        "has loaded its model",
    ]


def test_while_the_health_path_fails_there_is_no_trial(health: Health, clock: Clock) -> None:
    for _ in range(FAILURES):
        health.check_failed()
    clock.advance(LONGEST_BACKOFF)
    assert health.state is State.TRIAL_DUE and not health.usable
    health.check_passed()
    assert health.usable


def probed(*backends: FakeBackend) -> tuple[Clock, list[Target]]:
    clock = Clock()
    targets = [Target(backend, clock) for backend in backends]
    Prober(Router(targets), clock).start()
    return clock, targets


def test_the_health_path_is_looked_at_at_once_and_then_regularly() -> None:
    backend = FakeBackend()
    clock, (target,) = probed(backend)
    assert len(backend.checks) == 1
    backend.checks[0].callback(False)
    assert target.health.state is State.LOADING
    clock.advance(RECHECK_SECONDS)  # it may be ready any moment
    backend.checks[1].callback(True)
    assert state_of(target.health) is State.HEALTHY
    clock.pump([RECHECK_SECONDS] * 4)
    assert len(backend.checks) == 2
    clock.advance(CHECK_SECONDS - 4 * RECHECK_SECONDS)
    assert len(backend.checks) == 3


def test_a_look_that_hangs_is_given_up_and_delays_nobody() -> None:
    hanging, answering = FakeBackend("a"), FakeBackend("b")
    clock, targets = probed(hanging, answering)
    for n in range(FAILURES):
        assert len(hanging.checks) == len(answering.checks) == n + 1
        answering.checks[n].callback(True)
        clock.pump([RECHECK_SECONDS] * int(CHECK_TIMEOUT))
        assert hanging.checks[n].called  # cancelled
        clock.pump([RECHECK_SECONDS] * int(CHECK_SECONDS - CHECK_TIMEOUT))
    assert [target.health.usable for target in targets] == [False, True]


def test_looks_that_fail_eject_and_the_first_good_one_leads_to_a_trial() -> None:
    backend = FakeBackend()
    clock, (target,) = probed(backend)
    for _ in range(20):
        if not backend.checks[-1].called:
            backend.checks[-1].errback(failure.Failure(errors.Unreachable("No.")))
        clock.advance(RECHECK_SECONDS)
    assert not target.health.usable and not target.health.usable_as_last_resort
    backend.checks[-1].callback(True)
    clock.advance(LONGEST_BACKOFF)
    assert target.health.state is State.TRIAL_DUE and target.health.usable


def test_a_prober_that_was_stopped_looks_no_more() -> None:
    backend, clock = FakeBackend(), Clock()
    prober = Prober(Router([Target(backend, clock)]), clock)
    prober.start()
    prober.stop()
    backend.checks[0].callback(True)
    clock.pump([CHECK_SECONDS] * 3)
    assert len(backend.checks) == 1 and not clock.getDelayedCalls()


# -- a backend that is down for a while ----------------------------------------------------------


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
    """A gateway whose backend was ejected and has been sent the one request that tries it."""
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
    """A stream takes minutes; for so long nobody else would be sent there."""
    backend = FakeBackend("first")
    gateway = on_trial(backend)
    backend.calls[-1].head()
    gateway.clock.advance(gateway.settings.timeouts.ping)  # a comment of ours is no event
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
    eject(gateway.targets[0].health)
    assert (ask("/healthz"), ask("/readyz")) == (200, 200)
    gateway.targets[1].health.check_loading()
    assert (ask("/healthz"), ask("/readyz")) == (200, 503)
    gateway.clock.advance(FIRST_BACKOFF)
    assert ask("/readyz") == 200  # the next request may be the trial
    gateway.api.draining = True
    assert ask("/readyz") == 503


# -- whatever happens ----------------------------------------------------------------------------


class AnyEvents(RuleBasedStateMachine):
    """Requests, looks at the health path and time, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.target = Target(FakeBackend(), self.clock)
        self.health = self.target.health
        self.running: list[int] = []
        self.trial: int | None = None  # the one that was let through last
        self.bad_news_at = 0.0
        self.bad_news = 0  # since something good was heard
        self.looks: bool | None = None

    @precondition(lambda self: self.health.usable)
    @rule()
    def a_request_is_routed_there(self) -> None:
        self.ask()

    @rule()
    def a_request_goes_there_for_want_of_another(self) -> None:
        self.ask()

    def ask(self) -> None:
        waiting = self.health.state is State.TRIAL_DUE
        request = self.target.begin()
        assert bool(request) is waiting
        if waiting:
            self.trial = request
        self.running.append(request)

    def one_ends(self, data: st.DataObject) -> int:
        request = data.draw(st.sampled_from(self.running))
        self.running.remove(request)
        return request

    @precondition(lambda self: self.running)
    @rule(data=st.data(), problem=st.sampled_from(FAULTS))
    def it_fails(self, data: st.DataObject, problem: errors.GatewayError) -> None:
        before, request = self.health.state, self.one_ends(data)
        self.target.settle(request, problem)
        self.note_bad_news()
        outweighed = self.looks and evidence_of(problem) is Evidence.ANSWERED
        if before is State.ON_TRIAL and request == self.trial:
            assert self.health.state is (State.TRIAL_DUE if outweighed else State.EJECTED)
        elif before is State.ON_TRIAL:
            assert self.health.state is State.ON_TRIAL

    @precondition(lambda self: self.running)
    @rule(data=st.data(), problem=st.sampled_from(NO_FAULTS))
    def it_ends_by_no_fault_of_the_backend(
        self, data: st.DataObject, problem: errors.GatewayError | None
    ) -> None:
        before = self.health.state
        self.target.settle(self.one_ends(data), problem)
        assert self.health.state is not State.EJECTED or before is State.EJECTED
        if problem is None or isinstance(problem, errors.UpstreamError):
            assert self.health.state is State.HEALTHY
            self.bad_news = 0

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def its_client_leaves(self, data: st.DataObject) -> None:
        before, request = self.health.state, self.one_ends(data)
        self.target.settle(request, ClientLeft())
        trial_ended = before is State.ON_TRIAL and request == self.trial
        assert self.health.state is (State.TRIAL_DUE if trial_ended else before)

    @rule()
    def its_check_passes(self) -> None:
        before = self.health.state
        self.health.check_passed()
        self.looks = True
        after = self.health.state
        if before in (State.HEALTHY, State.LOADING):
            assert after is State.HEALTHY
        else:
            assert after in {before, State.HEALTHY, State.TRIAL_DUE}
        if after is State.HEALTHY and after is not before:
            self.bad_news = 0

    @rule()
    def its_check_says_loading(self) -> None:
        self.health.check_loading()
        assert self.health.state is State.LOADING
        self.bad_news = 0
        self.looks = None

    @rule()
    def its_check_fails(self) -> None:
        self.health.check_failed()
        self.note_bad_news()
        self.looks = False

    def note_bad_news(self) -> None:
        self.bad_news += 1
        self.bad_news_at = self.clock.seconds()

    @rule(seconds=st.floats(0.01, 20))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def in_flight_is_what_runs(self) -> None:
        assert self.target.in_flight == len(self.running)

    @invariant()
    def a_trial_is_under_way_exactly_while_trying_and_nobody_else_is_let_in(self) -> None:
        if self.health.state is State.ON_TRIAL:
            assert self.trial and self.running.count(self.trial) == 1
            assert not self.health.usable

    @invariant()
    def it_is_not_ejected_for_less_than_some_failures_nor_for_longer_than_the_cap(self) -> None:
        if self.health.state is State.EJECTED:
            assert self.bad_news >= 1
            assert self.clock.seconds() - self.bad_news_at <= LONGEST_BACKOFF
        if self.health.state is State.HEALTHY:
            assert self.health.usable


AnyEvents.TestCase.settings = hypothesis_settings(max_examples=60, stateful_step_count=40)
TestAnyEvents = AnyEvents.TestCase
