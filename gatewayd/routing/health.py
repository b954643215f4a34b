"""Whether a backend is worth asking: one small state machine for each backend.

The machine learns from the ends of requests (:mod:`.evidence`), from the backend's health path if
one is configured (:mod:`.prober`), and from the time. :data:`TRANSITIONS` is the whole machine;
``docs/routing.rst`` gives the reasons.

Ejected does not mean dead. A backend counts as dead if its health path fails, or if requests of
several callers with several bodies were lost. A backend that is ejected but not dead is still asked
when no other backend can take a request (:attr:`Health.usable_as_last_resort`).
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

from .evidence import Evidence, Failure, FailuresInARow

#: Seconds of the first back-off, and the most of any later one.
FIRST_BACKOFF = 1.0
LONGEST_BACKOFF = 15.0
#: Cap the exponent; 2**ejections would overflow within hours.
_DOUBLINGS = 10
#: Seconds in which a backend that has recovered gets back its share of the requests, and the part
#: of the share that it has at once.
RAMP_SECONDS = 10.0
FIRST_PART = 0.1
#: Seconds after which another request may be the trial while the health path says 200.
TRIAL_SECONDS = 5.0


class State(enum.Enum):
    #: Nothing is known against the backend.
    HEALTHY = enum.auto()
    #: It has failed; it is asked only if no other backend can take the request.
    EJECTED = enum.auto()
    #: The back-off is over; the next request is the trial.
    TRIAL_DUE = enum.auto()
    #: The trial is under way; other requests are kept away as in EJECTED.
    ON_TRIAL = enum.auto()
    #: Its health path says that it is not ready yet.
    LOADING = enum.auto()


class Event(enum.Enum):
    #: A request was answered well, whether it is the trial or not.
    GOOD_ANSWER = enum.auto()
    #: :data:`.evidence.FAILURES` requests in a row have failed.
    TOO_MANY_FAILURES = enum.auto()
    BACKOFF_OVER = enum.auto()
    REQUEST_SENT = enum.auto()
    TRIAL_FAILED = enum.auto()
    #: The trial ended without evidence, or takes long while the health path says 200.
    TRIAL_INCONCLUSIVE = enum.auto()
    CHECK_PASSED = enum.auto()
    #: The check passed, and the backend had answered each request that failed.
    EXONERATED = enum.auto()
    #: The health path says "not ready yet".
    CHECK_LOADING = enum.auto()


_HEALTHY, _EJECTED, _TRIAL_DUE, _ON_TRIAL, _LOADING = State

_AFTER_EJECTION = {
    Event.GOOD_ANSWER: _HEALTHY,
    Event.EXONERATED: _HEALTHY,
    Event.CHECK_LOADING: _LOADING,
}

#: The next state for each event in each state; events that are not listed change nothing.
TRANSITIONS: dict[State, dict[Event, State]] = {
    _HEALTHY: {Event.TOO_MANY_FAILURES: _EJECTED, Event.CHECK_LOADING: _LOADING},
    _EJECTED: {Event.BACKOFF_OVER: _TRIAL_DUE, **_AFTER_EJECTION},
    _TRIAL_DUE: {Event.REQUEST_SENT: _ON_TRIAL, **_AFTER_EJECTION},
    # A trial that fails ejects for longer than before.
    _ON_TRIAL: {
        Event.TRIAL_FAILED: _EJECTED,
        Event.TRIAL_INCONCLUSIVE: _TRIAL_DUE,
        **_AFTER_EJECTION,
    },
    _LOADING: {
        Event.CHECK_PASSED: _HEALTHY,
        Event.GOOD_ANSWER: _HEALTHY,
        Event.TOO_MANY_FAILURES: _EJECTED,
    },
}


class Health:
    """What is known of one backend.

    :param clock: tells the time; nothing is scheduled.
    :param report: called with a phrase for the log when the backend is ejected, begins to load, or
        is healthy again.
    """

    def __init__(self, clock: IReactorTime, report: Callable[[str], None] = lambda _: None) -> None:
        self._clock = clock
        self._report = report
        self._state = _HEALTHY
        self._failures = FailuresInARow()
        self._ejections = 0  # since it was healthy
        self._ejected_at = 0.0  # the first of these ejections
        self._backoff_ends_at = self._trial_began_at = 0.0
        #: None if it never has, or longer ago than the ramp takes.
        self.recovered_at: float | None = None
        self._trial = 0  # the number of the latest trial
        self._dead = False
        self._check: bool | None = None  # whether the last check passed; None: loading, or none yet

    @property
    def state(self) -> State:
        if self._state is _EJECTED and self._clock.seconds() >= self._backoff_ends_at:
            self._apply(Event.BACKOFF_OVER)
        return self._state

    @property
    def usable(self) -> bool:
        """Whether to send the next request to this backend."""
        if self._state is _HEALTHY:
            return True
        return self.state is _TRIAL_DUE and self._check is not False

    @property
    def usable_as_last_resort(self) -> bool:
        """Whether to send a request to this backend when no usable backend can take it."""
        if self.state is _LOADING or self._check is False:
            return False
        return not self._dead or self._state is _ON_TRIAL  # the trial may take long

    @property
    def answering(self) -> bool:
        """Whether the backend is known to answer, even if it answers with errors of its own."""
        if self.state is _HEALTHY:
            return True
        if self._state is _LOADING or self._check is False:
            return False
        return self._failures.all_answered

    @property
    def ramp(self) -> float:
        """Which part of its share of the requests the backend gets: from :data:`FIRST_PART` to 1.

        It grows for some seconds after a recovery. Many requests at once would meet a server whose
        caches are empty, or that is about to fail again.
        """
        if self.recovered_at is None:
            return 1.0
        part = (self._clock.seconds() - self.recovered_at) / RAMP_SECONDS
        if part >= 1:
            self.recovered_at = None
            return 1.0
        return max(FIRST_PART, part)

    @property
    def check_passes(self) -> bool:
        """Whether the health path said 200 at the last check."""
        return self._check is True

    # -- requests ------------------------------------------------------------------------------

    def begin(self) -> int:
        """A request is sent to the backend.

        :returns: the number of the trial if this request is the trial, else 0.
        """
        if self._state is _HEALTHY or self.state is not _TRIAL_DUE:
            return 0
        self._apply(Event.REQUEST_SENT)
        return self._trial

    def succeeded(self) -> None:
        """A request was answered well. To refuse a client's mistake is a good answer too."""
        if self._failures:
            self._failures.clear()
        if self._state is not _HEALTHY:
            self._apply(Event.GOOD_ANSWER)

    def failed(self, failure: Failure, trial: int = 0) -> None:
        """A request failed.

        :param trial: what :meth:`begin` returned for it.
        """
        if failure.evidence is Evidence.ANSWERED and self._check:
            self.inconclusive(trial)  # the health path, which says 200, outweighs the failure
            return
        self._failures.append(failure)
        if trial == self._trial:
            self._apply(Event.TRIAL_FAILED)
        if self._failures.too_many:
            self._apply(Event.TOO_MANY_FAILURES)

    def inconclusive(self, trial: int) -> None:
        """A request ended without evidence. If it was the trial, the next request is the trial."""
        if trial == self._trial:
            self._apply(Event.TRIAL_INCONCLUSIVE)

    # -- checks of the health path -------------------------------------------------------------

    def check_passed(self) -> None:
        self._check = True
        if self._failures.all_answered:
            self._apply(Event.EXONERATED)
        self._apply(Event.CHECK_PASSED)
        if self._clock.seconds() - self._trial_began_at >= TRIAL_SECONDS:
            self._apply(Event.TRIAL_INCONCLUSIVE)

    def check_loading(self) -> None:
        """The health path says that the backend will be ready later."""
        self._check = None
        self._failures.clear()
        self._apply(Event.CHECK_LOADING)

    def check_failed(self, reason: str = "its health path fails") -> None:
        """The health path says anything else, or does not answer."""
        self._check = False
        self.failed(Failure(Evidence.NOT_REACHED, reason=reason))

    # -- transitions ---------------------------------------------------------------------------

    def _apply(self, event: Event) -> None:
        """Enter the state that the event leads to, if there is one."""
        before, after = self._state, TRANSITIONS[self._state].get(event)
        if after is None:
            return
        self._state = after
        if after is _ON_TRIAL:
            self._trial += 1
            self._trial_began_at = self._clock.seconds()
        elif after is _EJECTED:
            self._back_off()
        elif after is _LOADING:
            self._report("is loading its model")
        elif after is _HEALTHY:
            self._recover(before)

    def _recover(self, before: State) -> None:
        self._failures.clear()
        self._dead = False
        self.recovered_at = self._clock.seconds()
        if self._ejections:
            self._ejections = 0
            down = self._clock.seconds() - self._ejected_at
            self._report(f"is healthy again after {down:.1f} s")
        elif before is _LOADING:
            self._report("has loaded its model")

    def _back_off(self) -> None:
        self._dead = self._failures.prove_dead
        longest = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** min(self._ejections, _DOUBLINGS))
        # Jitter: several gateways should not try a backend that comes up at the same time.
        self._backoff_ends_at = self._clock.seconds() + longest * random.uniform(0.5, 1.0)
        self._ejections += 1
        if self._ejections == 1:  # later ejections belong to the same outage
            self._ejected_at = self._clock.seconds()
            count, reason = len(self._failures), self._failures[-1].reason
            self._report(f"is ejected after {count} failures in a row, the last: {reason}")
