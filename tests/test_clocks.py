"""The clocks of a client's connection; the test controls the time."""

import socket
from collections.abc import Iterator

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock

from gatewayd.api.clocks import Deadline, WriteClock, pending


class Calls:
    """A callback of a clock, and the times at which it was called."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.times: list[float] = []

    def __call__(self) -> None:
        self.times.append(self._clock.seconds())


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def late(clock: Clock) -> Calls:
    return Calls(clock)


def run(clock: Clock, seconds: int) -> None:
    """Let time pass in steps of an eighth of a second."""
    clock.pump([0.125] * (8 * seconds))


# -- Deadline ------------------------------------------------------------------------------------


def test_a_deadline_is_called_once_and_on_time(clock: Clock, late: Calls) -> None:
    Deadline(clock).set(10, late)
    run(clock, 30)
    assert late.times == [10.0]
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize(
    ("second", "expected"), [(20, 21.0), (12, 13.0), (9, 10.0), (3, 4.0), (0, None)]
)
def test_a_deadline_replaces_the_one_before(
    clock: Clock, late: Calls, second: float, expected: float | None
) -> None:
    first = Calls(clock)
    deadline = Deadline(clock)
    deadline.set(10, first)
    run(clock, 1)
    deadline.set(second, late)
    run(clock, 30)
    assert first.times == []
    assert late.times == ([] if expected is None else [expected])


def test_a_deadline_knows_what_it_is_for(clock: Clock, late: Calls) -> None:
    deadline = Deadline(clock)
    assert not deadline.is_for(late)
    deadline.set(10, late)
    assert deadline.is_for(late)
    assert not deadline.is_for(Calls(clock))
    run(clock, 10)
    assert not deadline.is_for(late)


def test_a_cleared_deadline_is_never_called(clock: Clock, late: Calls) -> None:
    deadline = Deadline(clock)
    deadline.set(10, late)
    deadline.clear()
    assert not deadline.is_for(late)
    run(clock, 30)
    assert late.times == []


def test_a_stopped_deadline_leaves_no_timer(clock: Clock, late: Calls) -> None:
    deadline = Deadline(clock)
    deadline.stop()
    deadline.set(10, late)
    deadline.stop()
    assert clock.getDelayedCalls() == []
    run(clock, 30)
    assert late.times == []


def test_a_deadline_may_be_set_again_when_it_is_called(clock: Clock) -> None:
    deadline = Deadline(clock)
    times: list[float] = []

    def late() -> None:
        times.append(clock.seconds())
        if len(times) < 3:
            deadline.set(5, late)

    deadline.set(10, late)
    run(clock, 30)
    assert times == [10.0, 15.0, 20.0]


def test_a_busy_connection_costs_few_timers(clock: Clock, late: Calls) -> None:
    class Counting(Clock):
        made = 0

        def callLater(self, *args: object, **kwargs: object) -> object:  # type: ignore[override]
            self.made += 1
            return super().callLater(*args, **kwargs)  # type: ignore[arg-type]

    counting = Counting()
    deadline = Deadline(counting)
    for _ in range(1000):
        deadline.set(60, late)
        deadline.clear()
        deadline.set(60, late)
        counting.advance(0.125)
    assert counting.made <= 1 + 125 // 60
    assert len(counting.getDelayedCalls()) == 1


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("set"), st.integers(0, 9)),
            st.tuples(st.just("pass"), st.integers(0, 12)),
            st.tuples(st.sampled_from(["clear", "stop", "pass"]), st.integers(1, 3)),
        ),
        max_size=30,
    )
)
def test_the_last_deadline_counts(actions: list[tuple[str, int]]) -> None:
    clock = Clock()
    late = Calls(clock)
    deadline = Deadline(clock)
    expected: list[float] = []
    due: float | None = None
    for action, number in actions:
        if action == "set":
            deadline.set(number, late)
            due = clock.seconds() + number if number else None
        elif action == "pass":
            clock.pump([1] * number)
            if due is not None and due <= clock.seconds():
                expected.append(due)
                due = None
        else:
            deadline.clear() if action == "clear" else deadline.stop()
            due = None
        assert late.times == expected
        assert len(clock.getDelayedCalls()) <= 1


# -- WriteClock ----------------------------------------------------------------------------------


@attrs.define
class Transport:
    """A transport with bytes that its peer has not taken."""

    dataBuffer: bytes = b""
    offset: int = 0
    _tempDataLen: int = 0

    def write(self, size: int) -> None:
        self.dataBuffer += b"x" * size

    def take(self, size: int) -> None:
        self.dataBuffer = self.dataBuffer[size:]


@pytest.fixture
def transport() -> Transport:
    return Transport(b"x" * 1000)


@pytest.fixture
def writes(clock: Clock, transport: Transport, late: Calls) -> WriteClock:
    return WriteClock(clock, transport, late)


def test_a_peer_that_takes_nothing_times_out(clock: Clock, writes: WriteClock, late: Calls) -> None:
    writes.start(60)
    run(clock, 59)
    assert late.times == []
    run(clock, 60)
    assert late.times == [60.0]
    assert clock.getDelayedCalls() == []


def test_a_peer_that_takes_a_byte_now_and_then_never_times_out(
    clock: Clock, writes: WriteClock, transport: Transport, late: Calls
) -> None:
    writes.start(60)
    for _ in range(20):
        run(clock, 50)
        transport.take(1)
    assert late.times == []


def test_the_timeout_of_a_peer_runs_from_the_last_byte_that_it_took(
    clock: Clock, writes: WriteClock, transport: Transport, late: Calls
) -> None:
    writes.start(60)
    run(clock, 30)
    transport.take(999)
    run(clock, 59)
    assert late.times == []
    run(clock, 9)
    [when] = late.times
    assert 90 <= when <= 96


def test_more_pending_bytes_are_not_progress(
    clock: Clock, writes: WriteClock, transport: Transport, late: Calls
) -> None:
    writes.start(60)
    for _ in range(60):
        run(clock, 1)
        transport.write(10)
    assert late.times == [60.0]


def test_a_stopped_clock_leaves_no_timer_and_starts_afresh(
    clock: Clock, writes: WriteClock, late: Calls
) -> None:
    writes.stop()
    writes.start(60)
    run(clock, 50)
    writes.stop()
    assert clock.getDelayedCalls() == []
    run(clock, 50)
    writes.start(60)
    run(clock, 59)
    assert late.times == []
    run(clock, 1)
    assert late.times == [160.0]


def test_starting_twice_changes_nothing(clock: Clock, writes: WriteClock, late: Calls) -> None:
    writes.start(60)
    run(clock, 50)
    writes.start(60)
    assert len(clock.getDelayedCalls()) == 1
    run(clock, 50)
    assert late.times == [60.0]


@pytest.mark.parametrize("seconds", [0.3, 1.1, 7.7])
def test_a_clock_of_a_fraction_is_on_time(
    clock: Clock, transport: Transport, late: Calls, seconds: float
) -> None:
    WriteClock(clock, transport, late).start(seconds)
    clock.pump([0.01] * 1000)
    assert late.times == [pytest.approx(seconds, abs=0.011)]


# -- pending -------------------------------------------------------------------------------------


def test_pending_is_what_the_transport_still_holds() -> None:
    assert pending(Transport()) == 0
    assert pending(Transport(b"x" * 100, offset=30, tempDataLen=7)) == 77


@attrs.define
class TLS:
    """A transport that wraps another one."""

    transport: object


def test_pending_looks_below_tls() -> None:
    assert pending(TLS(Transport(b"x" * 100))) == 100


@attrs.define
class Connected(Transport):
    kernel: socket.socket | None = None

    def fileno(self) -> int:
        return -1 if self.kernel is None else self.kernel.fileno()


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_pending_counts_what_the_kernel_still_holds(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = sockets
    transport = Connected(b"x" * 5, kernel=ours)
    assert pending(transport) == 5
    ours.send(b"x" * 1000)
    held = pending(transport)
    assert held >= 1005
    theirs.recv(1000)
    assert pending(transport) == 5


def test_pending_of_a_closed_transport_is_what_it_never_sent() -> None:
    assert pending(Connected(b"x" * 5)) == 5
