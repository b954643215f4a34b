"""The order in which backends are asked for a model.

The backends of a model share its load: the one with the fewest requests in flight comes first, ties
take turns. Backends that are full, loading or known to be dead are left out. An ejected backend
comes behind the others. A request tries the backends in this order
(:mod:`gatewayd.relaying.relay` says when it tries the next one).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

import attrs

from gatewayd.wire.errors import ModelNotFound, Overloaded

from .target import Target

#: The most model names that an error lists.
_NAMES_SHOWN = 20


@attrs.frozen
class Candidate:
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


def _load(target: Target) -> tuple[int, int]:
    return target.in_flight, target.turn


class Router:
    """Finds the backends for a model, and puts them in order.

    :param targets: in the order of the settings.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        self.targets = tuple(targets)
        self._turns = itertools.count(1)

    def route(
        self, model: str | None, visible: Callable[[], Iterable[str]] = tuple
    ) -> list[Candidate]:
        """The backends to ask for a model, best first; at least one.

        :param visible: returns the model names that an error may show to the caller.
        :raises ModelNotFound: no backend serves the model.
        :raises Overloaded: each backend that serves it is full or down.
        """
        serving = self._serving(model)
        if not serving:
            raise _unknown(model, visible())
        first = [target for target in serving if target.available]
        last = [t for t in serving if t.available_as_last_resort and t not in first]
        if not first and not last and len(serving) == 1 and not serving[0].full:
            # No other backend could take its place, and its own error says more than ours.
            first = serving
        if not first and not last:
            raise Overloaded("No backend for this model is available.")
        if model is not None:  # else the order of the settings: these models need not be alike
            first.sort(key=_load)
            last.sort(key=_load)
            (first or last)[0].turn = next(self._turns)
        return [
            Candidate(target, _renamed(target, model), last_resort)
            for last_resort, targets in ((False, first), (True, last))
            for target in targets
        ]

    def ready(self) -> bool:
        """Whether a request could be answered now."""
        return any(target.health.usable or target.health.answering for target in self.targets)

    def answering(self) -> dict[str, bool]:
        """Which backends are known to answer, by their names."""
        return {target.backend.name: target.health.answering for target in self.targets}

    def _serving(self, model: str | None) -> list[Target]:
        if model is not None:
            return [target for target in self.targets if target.models.serve(model)]
        if len(self.targets) == 1:
            return list(self.targets)
        return [target for target in self.targets if target.models.all]


def _renamed(target: Target, model: str | None) -> str | None:
    if model is None or (real := target.models.real_name(model)) == model:
        return None
    return real


def _unknown(model: str | None, visible: Iterable[str]) -> ModelNotFound:
    names = list(dict.fromkeys(visible))
    known = ", ".join(names[:_NAMES_SHOWN]) + (", ..." if names[_NAMES_SHOWN:] else "")
    message = "The request names no model." if model is None else "There is no such model."
    return ModelNotFound(message + (f" Known ones: {known}." if known else ""), param="model")
