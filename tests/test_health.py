"""The state machine of one backend's health, on a clock."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.internet.task import Clock

from gatewayd.routing.evidence import FAILURES, ClientLeft, Evidence, Failure, evidence_of
from gatewayd.routing.health import (
    FIRST_BACKOFF,
    FIRST_PART,
    LONGEST_BACKOFF,
    RAMP_SECONDS,
    TRANSITIONS,
    TRIAL_SECONDS,
    Event,
    Health,
    State,
)
from gatewayd.routing.target import Target
from gatewayd.wire import errors
from tests.memory import FakeBackend, fails
from tests.outcomes import FAULTS, NO_FAULTS, state_of


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(clock)


def eject(health: Health) -> None:
    for _ in range(FAILURES):
        fails(health)
    assert health.state is State.EJECTED


def back_off(health: Health, clock: Clock) -> float:
    """Wait until the trial is due; return how long that took."""
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
    assert not health.usable  # however long the trial takes
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
def test_requests_that_began_before_the_trial_do_not_end_it(
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
    how(health, first)  # an earlier trial does not end it either
    assert health.state is State.ON_TRIAL
    fails(health, second)
    assert state_of(health) is State.EJECTED


@pytest.mark.parametrize("state", [State.EJECTED, State.TRIAL_DUE, State.ON_TRIAL])
def test_a_success_of_a_request_that_began_before_the_trial_counts_in_every_state(
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


# -- the table -----------------------------------------------------------------------------------


def test_every_event_and_every_state_is_in_the_table() -> None:
    assert TRANSITIONS.keys() == set(State)
    assert {event for events in TRANSITIONS.values() for event in events} == set(Event)
    assert {state for events in TRANSITIONS.values() for state in events.values()} == set(State)
    for state, events in TRANSITIONS.items():
        assert state not in events.values()  # entering a state does something


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


def test_a_server_whose_check_passes_must_still_pass_its_trial(
    health: Health, clock: Clock
) -> None:
    eject(health)
    health.check_passed()
    assert not health.usable
    back_off(health, clock)
    health.check_passed()
    assert health.state is State.TRIAL_DUE


def test_while_checks_pass_a_slow_trial_lets_another_request_be_the_trial(
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
def test_silence_or_lost_connections_of_several_requests_mean_that_a_server_is_dead(
    health: Health, clock: Clock, failures: list[Failure], dead: bool
) -> None:
    for each in failures:
        health.failed(each, health.begin())
    assert health.state is State.EJECTED and not health.usable
    assert health.usable_as_last_resort is not dead
    clock.advance(FIRST_BACKOFF)
    health.begin()
    assert health.usable_as_last_resort  # the server may be back while its trial is slow
    health.succeeded()
    assert health.usable


def test_a_change_is_reported_once_and_with_the_reason(clock: Clock) -> None:
    reports: list[str] = []
    health = Health(clock, reports.append)
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
    assert reports == [
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


# -- the share of requests -----------------------------------------------------------------------


def test_a_backend_that_never_failed_has_its_whole_share(health: Health) -> None:
    assert health.ramp == 1


@pytest.mark.parametrize("loading", [False, True])
def test_a_backend_that_is_healthy_again_gets_its_share_back_over_some_seconds(
    health: Health, clock: Clock, loading: bool
) -> None:
    if loading:
        health.check_loading()
        health.check_passed()
    else:
        eject(health)
        back_off(health, clock)
        health.begin()
        health.succeeded()
    found = []
    for _ in range(12):
        found.append(health.ramp)
        clock.advance(RAMP_SECONDS / 10)
    assert found[:2] == pytest.approx([FIRST_PART, FIRST_PART])
    assert found[2:10] == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    assert found[10:] == pytest.approx([1, 1])  # the clock adds fractions of seconds
    health.succeeded()
    assert health.ramp == pytest.approx(1)


# -- events in any order -------------------------------------------------------------------------


class AnyEvents(RuleBasedStateMachine):
    """Requests, checks of the health path and time, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.target = Target(FakeBackend(), self.clock)
        self.health = self.target.health
        self.running: list[int] = []
        self.trial: int | None = None  # the one that was let through last
        self.bad_news_at = 0.0
        self.bad_news = 0  # since something good was heard
        self.check: bool | None = None

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
        outweighed = self.check and evidence_of(problem) is Evidence.ANSWERED
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
    def a_check_passes(self) -> None:
        before = self.health.state
        self.health.check_passed()
        self.check = True
        after = self.health.state
        if before in (State.HEALTHY, State.LOADING):
            assert after is State.HEALTHY
        else:
            assert after in {before, State.HEALTHY, State.TRIAL_DUE}
        if after is State.HEALTHY and after is not before:
            self.bad_news = 0

    @rule()
    def a_check_says_loading(self) -> None:
        self.health.check_loading()
        assert self.health.state is State.LOADING
        self.bad_news = 0
        self.check = None

    @rule()
    def a_check_fails(self) -> None:
        self.health.check_failed()
        self.note_bad_news()
        self.check = False

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
    def a_trial_is_under_way_exactly_while_on_trial_and_no_other_request_is_sent(self) -> None:
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
