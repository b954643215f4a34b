"""How long a backend has asked not to be sent requests: ``Retry-After`` of a 429 or 503.

A backend that rests is passed over. It is no fault and not part of its health: a service that
limits its callers is well.
"""

from __future__ import annotations

import time

from twisted.internet.interfaces import IReactorTime

from gatewayd.wire.errors import BackendFailed
from gatewayd.wire.retryafter import seconds_to_wait

#: The most seconds for which a backend is passed over because of one refusal. Services that ask for
#: hours may have changed their mind, and a request per minute does them no harm.
LONGEST_REST = 60.0


class Rest:
    """
    :param clock: measures the time; the date comes from :func:`time.time`.
    """

    __slots__ = ("_asked_until", "_clock", "_ends_at", "status")

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._ends_at = 0.0  # 0 if it never rested
        self._asked_until = 0.0
        #: The status of the last refusal that asked for a rest.
        self.status = 503

    def note(self, refusal: BackendFailed) -> None:
        """The backend has refused a request. Its last word counts."""
        wait = seconds_to_wait(refusal.headers, time.time())
        if wait is None:
            return
        now = self._clock.seconds()
        self._ends_at = now + min(wait, LONGEST_REST)
        self._asked_until = now + wait
        self.status = refusal.status

    @property
    def remaining(self) -> float:
        """Seconds for which the backend is still passed over; 0 if it may be asked."""
        return max(0.0, self._ends_at - self._clock.seconds()) if self._ends_at else 0.0

    @property
    def asked_for(self) -> float:
        """Seconds that remain of the time for which the backend itself has asked; 0 for none."""
        return max(0.0, self._asked_until - self._clock.seconds()) if self._ends_at else 0.0
