"""Whether a backend is worth asking: one small state machine for each.

It is told how requests ended (:class:`Evidence`) and, where a ``health`` path is configured, what
that said, and decides from these and the time alone; ``docs/routing.rst`` has the reasons.

============ ======================================= ==============================================
state        meaning                                 leaves it
============ ======================================= ==============================================
``well``     nothing is known against it             :data:`FAILURES` failures in a row: ``ejected``
``ejected``  left alone while another can be asked   the back-off is over: ``waiting``
``waiting``  one request may try it                  that request is sent: ``trying``
``trying``   that request is under way               it fails: ``ejected``, for longer
``loading``  its health path says "not yet"          its health path says 200: ``well``
============ ======================================= ==============================================

A good answer makes it ``well`` in every state. A request that began before the trial may fail
during it, which decides nothing.

Ejected is not dead. Only silence and lost connections, of more than one caller and with more than
one body, or a failing health path, say that a backend is dead. In all other cases it
:attr:`Health.may_answer`: it is asked when no better one can be.
"""

from __future__ import annotations

import enum
import random
from collections import deque
from collections.abc import Callable, Hashable

import attrs
from twisted.internet.interfaces import IReactorTime

#: Failures in a row after which a backend is ejected.
FAILURES = 3
#: Seconds that the first back-off takes, and the most that a later one may.
FIRST_BACKOFF = 1.0
LONGEST_BACKOFF = 15.0
#: Cap the exponent; 2**ejections would overflow within hours.
_DOUBLINGS = 10
#: A trial that runs longer than this no longer keeps others away while the health path is good.
TRIAL_SECONDS = 5.0


class Evidence(enum.Enum):
    """What a request that ended says of the backend."""

    #: It answered well, or refused with a reason (4xx, 501).
    GOOD = enum.auto()
    #: Nothing: the client left at once, or the gateway stopped it.
    NONE = enum.auto()
    #: It answered, but with an error of its own or with something that is no answer.
    ANSWERED = enum.auto()
    #: The caller waited for seconds without a byte and gave up.
    GAVE_UP = enum.auto()
    #: It was silent for too long, or the connection broke: the request may be to blame.
    LOST = enum.auto()
    #: No connection came about: no request can be to blame.
    NOT_REACHED = enum.auto()


@attrs.frozen
class Failure:
    """
    :param caller: who asked, where that may matter.
    :param body: a digest of what was asked.
    :param why: in words, for the log.
    """

    evidence: Evidence
    caller: Hashable = None
    body: Hashable = None
    why: str = ""


class Health:
    """
    :param clock: tells the time; nothing is scheduled.
    :param changed: told in words when the backend is ejected, loading, or well again.
    """

    def __init__(
        self, clock: IReactorTime, changed: Callable[[str], None] = lambda _: None
    ) -> None:
        self._clock = clock
        self._changed = changed
        self._state = "well"
        self._failures: deque[Failure] = deque(maxlen=2 * FAILURES)  # since the last good answer
        self._ejections = 0
        self._ejected_at = self._until = self._tried_at = 0.0
        self._trial = 0  # the number of the latest
        self._dead = False
        self._looks: bool | None = None  # what the health path said last; None if nothing

    @property
    def state(self) -> str:
        """``well``, ``ejected``, ``waiting``, ``trying`` or ``loading``."""
        if self._state == "ejected" and self._clock.seconds() >= self._until:
            self._state = "waiting"
        return self._state

    @property
    def usable(self) -> bool:
        """Whether to send the next request there."""
        return self.state == "well" or (self._state == "waiting" and self._looks is not False)

    @property
    def may_answer(self) -> bool:
        """Whether to send a request there when no usable backend can take it."""
        if self.state == "loading" or self._looks is False:
            return False
        return not self._dead or self._state == "trying"  # its trial may take long

    @property
    def answers(self) -> bool:
        """Whether it is well, or is known to live because all its failures are answers."""
        if self.state in ("well", "loading") or self._looks is False:
            return self._state == "well"
        return all(failure.evidence is Evidence.ANSWERED for failure in self._failures)

    @property
    def looks_fine(self) -> bool:
        """Whether its health path said 200 when it was asked last."""
        return self._looks is True

    def asked(self) -> int:
        """A request is sent there, and will end in :meth:`ended`.

        :returns: what to tell that: the number of the trial that it begins, 0 if it does not.
        """
        if self.state != "waiting":
            return 0
        self._state, self._tried_at = "trying", self._clock.seconds()
        self._trial += 1
        return self._trial

    def succeeded(self) -> None:
        """It answered, be it that the client had asked for something wrong."""
        if self._failures or self._state != "well":
            self._recover()

    def failed(self, failure: Failure, trial: int = 0) -> None:
        """A request failed there.

        :param trial: what :meth:`asked` returned for it.
        """
        if failure.evidence is Evidence.ANSWERED and self._looks:
            self.learned_nothing(trial)  # its health path, which says 200, outweighs that
            return
        self._failures.append(failure)
        if self.state == "trying":
            if trial == self._trial:
                self._eject()
        elif self._state in ("well", "loading") and len(self._failures) >= FAILURES:
            self._eject()

    def learned_nothing(self, trial: int) -> None:
        """The client left, or the like: the next request is the trial, if this one was."""
        if self._state == "trying" and trial == self._trial:
            self._state = "waiting"

    # -- what its health path says ---------------------------------------------------------------

    def looks_well(self) -> None:
        self._looks = True
        answered = all(f.evidence is Evidence.ANSWERED for f in self._failures)
        if self.state == "loading" or (self._state != "well" and answered):
            self._recover()
        elif self._state == "trying" and self._clock.seconds() - self._tried_at >= TRIAL_SECONDS:
            self._state = "waiting"

    def not_yet(self) -> None:
        """It will be ready later."""
        self._looks = None
        self._failures.clear()
        if self._state != "loading":
            self._state = "loading"
            self._changed("is loading its model")

    def looks_broken(self, why: str = "") -> None:
        """It says something else, or nothing."""
        self._looks = False
        self.failed(Failure(Evidence.NOT_REACHED, why=why or "its health path fails"))

    # --------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        before, down = self.state, self._clock.seconds() - self._ejected_at
        self._failures.clear()
        self._state, self._dead = "well", False
        if self._ejections:
            self._ejections = 0
            self._changed(f"is well again after {down:.1f} s")
        elif before == "loading":
            self._changed("has loaded its model")

    def _eject(self) -> None:
        lost = [f for f in self._failures if f.evidence is Evidence.LOST]
        self._dead = (
            len(lost) >= FAILURES
            and len({f.caller for f in lost}) > 1
            and len({f.body for f in lost}) > 1
        )
        longest = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** min(self._ejections, _DOUBLINGS))
        # Jitter: several gateways should not try a backend that comes up at the same time.
        self._until = self._clock.seconds() + longest * random.uniform(0.5, 1.0)
        self._state = "ejected"
        self._ejections += 1
        if self._ejections == 1:  # later ones belong to the same outage
            self._ejected_at = self._clock.seconds()
            count, why = len(self._failures), self._failures[-1].why
            self._changed(f"is ejected after {count} failures in a row, the last: {why}")
