"""The order of backends that could all take a request: tiers, keys, load and turns.

Backends with the same ``priority`` are a tier; the lowest number comes first. Within a tier, a
request with a key goes to the backend of its key, unless that one has more than its share of the
requests in flight. A request without a key goes to the backend with the fewest requests in flight.

Source: Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads" (2016).
"""

from __future__ import annotations

from collections.abc import Sequence

from .rendezvous import score
from .target import Target

#: While a backend has more than this many times its fair share of the requests in flight, rounded
#: up, the keys that it wins go to the next backend in their order.
MOST_LOAD = 1.25

#: More than the rounding errors of a bound, less than one request.
_ROUNDING = 1e-9


def by_key(tier: Sequence[Target], key: int) -> list[Target]:
    """The targets of a tier by their scores for a key, those above their share of the load last."""
    shares = [target.share for target in tier]
    in_flight = 1  # this request counts, too
    for target in tier:
        in_flight += target.in_flight
    most = MOST_LOAD * in_flight / sum(shares)
    scored = [
        # At most the bound rounded up is the same as less than one above the bound.
        (target.in_flight - 1 + _ROUNDING < most * share, score(key, target.seed, share), n)
        for n, (target, share) in enumerate(zip(tier, shares, strict=True))
    ]
    scored.sort(reverse=True)
    return [tier[n] for _, _, n in scored]


class Turns:
    """Orders requests without a key: the least load first, turns in proportion to the weights.

    Turns are points of a virtual time, as in weighted fair queueing: the turns of a target are
    ``1 / share`` apart, and among equally loaded targets the one whose turn is next is asked.

    :param targets: that may have taken turns before, under other settings.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        self._now = max((target.turn for target in targets), default=0.0)

    def in_order(self, tier: Sequence[Target]) -> list[Target]:
        now, loads = self._now, []
        for n, target in enumerate(tier):
            share = target.share
            loads.append((target.in_flight / share, _next_turn(target.turn + 1 / share, now), n))
        loads.sort()
        return [tier[n] for _, _, n in loads]

    def take(self, target: Target) -> None:
        """A request without a key is sent to this target."""
        step = 1 / target.share
        target.turn = turn = _next_turn(target.turn + step, self._now)
        self._now = max(self._now, turn - step)


def _next_turn(turn: float, now: float) -> float:
    """A target that was away for many turns is next; it does not catch up on all of them."""
    return turn if turn > now else now


def in_order(targets: Sequence[Target], key: int | None, turns: Turns) -> list[Target]:
    """The targets in the order in which a request asks them.

    :param key: of the request; None if it has none.
    """
    first = targets[0].priority
    if all([target.priority == first for target in targets]):
        return _tier_in_order(targets, key, turns)
    tiers: dict[int, list[Target]] = {}
    for target in targets:
        tiers.setdefault(target.priority, []).append(target)
    found: list[Target] = []
    for priority in sorted(tiers):
        found += _tier_in_order(tiers[priority], key, turns)
    return found


def _tier_in_order(tier: Sequence[Target], key: int | None, turns: Turns) -> list[Target]:
    if len(tier) == 1:
        return list(tier)
    return turns.in_order(tier) if key is None else by_key(tier, key)
