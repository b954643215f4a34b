"""Limits on the requests under way, of all callers together and of each one, per process.

A request that exceeds a limit is refused at once; there is no queue.
"""

from __future__ import annotations

import math

import attrs
from twisted.internet.interfaces import IReactorTime

from gatewayd.wire.errors import Overloaded, RateLimited

from .security import Caller


@attrs.define
class Bucket:
    """A token bucket for requests per minute. It is refilled evenly; each request takes one token.

    :param size: the most tokens it holds, and how many are added in a minute.
    :param level: how many it held at the time ``at``, in seconds.
    """

    size: int
    level: float
    at: float

    def take(self, now: float) -> bool:
        """Take one token if there is one."""
        self.level = min(self.size, self.level + (now - self.at) * self.size / 60)
        self.at = now
        if self.level < 1:
            return False
        self.level -= 1
        return True

    @property
    def next_in(self) -> float:
        """Seconds until there is a token."""
        return max(0.0, (1 - self.level) * 60 / self.size)

    @property
    def full_in(self) -> float:
        """Seconds until the bucket is full."""
        return (self.size - self.level) * 60 / self.size


@attrs.define
class _Use:
    """What one caller uses now."""

    in_flight: int = 0
    bucket: Bucket | None = None


class Admission:
    """Counts the requests under way and refuses those that exceed a limit."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._in_flight = 0
        self._uses: dict[str | None, _Use] = {}

    def acquire(self, caller: Caller, limit: int) -> list[tuple[bytes, bytes]]:
        """Count a request as under way until :meth:`release`; return headers for its answer.

        :param limit: how many requests of all callers may be under way.
        :raises Overloaded: too many are.
        :raises RateLimited: this caller has too many, or has sent too many in this minute.
        """
        if self._in_flight >= limit:
            raise Overloaded("The gateway is at its limit of requests in flight.")
        use = self._uses.get(caller.name)
        if use is None:
            use = self._uses[caller.name] = _Use()
        headers = self._within_rate(caller, use)
        if caller.in_flight is not None and use.in_flight >= caller.in_flight:
            raise RateLimited(
                f"This API key may have {caller.in_flight} requests in flight.", 1, headers
            )
        self._in_flight += 1
        use.in_flight += 1
        return headers

    def release(self, caller: Caller) -> None:
        self._in_flight -= 1
        self._uses[caller.name].in_flight -= 1

    def _within_rate(self, caller: Caller, use: _Use) -> list[tuple[bytes, bytes]]:
        rate = caller.requests_per_minute
        if rate is None:
            return []
        now = self._clock.seconds()
        if use.bucket is None or use.bucket.size != rate:
            use.bucket = Bucket(rate, rate, now)
        bucket = use.bucket
        taken = bucket.take(now)
        headers = [
            (b"x-ratelimit-limit-requests", b"%d" % rate),
            (b"x-ratelimit-remaining-requests", b"%d" % bucket.level),
            (b"x-ratelimit-reset-requests", b"%.3fs" % bucket.full_in),
        ]
        if not taken:
            wait = math.ceil(bucket.next_in)
            raise RateLimited(f"This API key may send {rate} requests a minute.", wait, headers)
        return headers
