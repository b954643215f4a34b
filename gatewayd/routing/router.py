"""The order in which backends are asked for a model.

Backends that are full, loading or known to be dead are left out. Those that can take the request
are put in order by :mod:`.order`. An ejected backend comes behind them, and one that has asked for
a rest (:mod:`.rest`) is asked only when that is over. A request tries the backends in this order
(:mod:`gatewayd.relaying.relay` says when it tries the next one).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from operator import attrgetter

import msgspec

from gatewayd.wire.errors import ModelNotFound, Overloaded, RateLimited
from gatewayd.wire.retryafter import whole_seconds

from .order import Turns, in_order
from .target import Target

#: The most model names that an error lists.
_NAMES_SHOWN = 20


class Candidate(msgspec.Struct, frozen=True):
    """A backend that a request may be sent to.

    :param model: the model's name at this backend; None leaves the request's own.
    :param last_resort: whether it is asked only because no available backend can take the request.
    """

    target: Target
    model: str | None = None
    last_resort: bool = False

    @property
    def available(self) -> bool:
        """Whether the target may still be asked."""
        target = self.target
        return target.available_as_last_resort if self.last_resort else target.available


_priority = attrgetter("priority")


class Router:
    """Finds the backends for a model, and puts them in order.

    :param targets: in the order of the settings.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        self.targets = tuple(targets)
        self._turns = Turns(self.targets)

    def route(
        self,
        model: str | None,
        visible: Callable[[], Iterable[str]] = tuple,
        key: Callable[[], int | None] | None = None,
    ) -> list[Candidate]:
        """The backends to ask for a model, best first; at least one.

        :param visible: returns the model names that an error may show to the caller.
        :param key: returns the key of the request's conversation if it has one. It is called only
            if there is a choice between backends.
        :raises ModelNotFound: no backend serves the model.
        :raises Overloaded: each backend that serves it is full, down or resting.
        :raises RateLimited: they rest, and the first that may be asked again had answered 429.
        """
        serving = self._serving(model)
        if not serving:
            for target in self.targets:
                target.listing.missed = True
            raise _unknown(model, visible())
        return self._in_order(serving, key, "model", keep_order=model is None)

    def route_to(self, names: Collection[str]) -> list[Candidate]:
        """Those of the backends with these names that may be asked for a path; at least one.

        :raises Overloaded: each of them is full or down.
        """
        serving = {target: None for target in self.targets if target.backend.name in names}
        return self._in_order(serving, None, "path")

    def _in_order(
        self,
        serving: Mapping[Target, str | None],
        key: Callable[[], int | None] | None,
        what: str,
        keep_order: bool = False,
    ) -> list[Candidate]:
        """The candidates among backends, best first.

        :param serving: the backends, each with its own name of the model where it has another.
        :param what: is asked for, for the error.
        :param keep_order: whether backends of a tier stay in the order of the settings.
        """
        if len(serving) == 1:
            ((target, name),) = serving.items()
            if target.available:
                return [Candidate(target, name)]
        first, last = list[Target](), list[Target]()
        for target in serving:
            if target.available:
                first.append(target)
            elif target.available_as_last_resort:
                last.append(target)
        if not first and not last and len(serving) == 1:
            # No other backend could take its place, and its own error says more than ours.
            first = [target for target in serving if not target.full]
        if not first and not last:
            raise _none_available(serving, what)
        if keep_order:  # the models of these backends need not be alike
            first.sort(key=_priority)
            last.sort(key=_priority)
        elif len(first) > 1 or len(last) > 1:
            found = None if key is None else key()
            if first:
                first = in_order(first, found, self._turns)
            if last:
                last = in_order(last, found, self._turns)
            if found is None:
                self._turns.take((first or last)[0])
        candidates = [Candidate(target, serving[target]) for target in first]
        candidates += [Candidate(target, serving[target], True) for target in last]
        if len(candidates) < len(serving):  # a rest may end while the others are asked
            resting = [target for target in serving if target.rest.remaining]
            candidates += [Candidate(target, serving[target], True) for target in resting]
        return candidates

    def ready(self) -> bool:
        """Whether a request could be answered now."""
        return any(target.health.usable or target.health.answering for target in self.targets)

    def answering(self) -> dict[str, bool]:
        """Which backends are known to answer, by their names."""
        return {target.backend.name: target.health.answering for target in self.targets}

    def _serving(self, model: str | None) -> dict[Target, str | None]:
        """The backends that serve a model, each with its own name for it where it has another."""
        if model is None:
            alone = len(self.targets) == 1
            return {target: None for target in self.targets if alone or target.models.take_unnamed}
        serving: dict[Target, str | None] = {}
        for target in self.targets:
            name = target.models.real_name(model)
            if name is not None:
                serving[target] = None if name == model else name
        if not serving:
            return {target: None for target in self.targets if target.models.may_serve_others}
        return serving


def _none_available(serving: Iterable[Target], what: str) -> Overloaded | RateLimited:
    """No backend of these can be asked. If all others are down, a rest says how long.

    :param what: for which they were asked.
    """
    resting = [target.rest for target in serving if target.rest.remaining]
    if not resting or any(target.full for target in serving):  # there may be room at any time
        return Overloaded(f"No backend for this {what} is available.")
    soonest = min(resting, key=attrgetter("remaining"))
    message = f"The backends for this {what} have asked to wait."
    if soonest.status == 429:
        return RateLimited(message, whole_seconds(soonest.remaining), [])
    return Overloaded(message, wait=whole_seconds(soonest.remaining))


def _unknown(model: str | None, visible: Iterable[str]) -> ModelNotFound:
    names = list(dict.fromkeys(visible))
    known = ", ".join(names[:_NAMES_SHOWN]) + (", ..." if names[_NAMES_SHOWN:] else "")
    message = "The request names no model." if model is None else "There is no such model."
    return ModelNotFound(message + (f" Known ones: {known}." if known else ""), param="model")
