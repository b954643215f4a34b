"""Which backends may answer a request, and in which order they are asked.

A model's backends share its load: the one with the fewest requests in flight comes first, ties
take turns. One that is ejected or at its ``in_flight`` is passed over. What is left is the order
in which a request tries them (see :mod:`gatewayd.relay` for when it tries the next).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase

import attrs
from twisted.internet.interfaces import IReactorTime

from gatewayd.wire.errors import GatewayError, ModelNotFound, Overloaded, UpstreamError

from .health import Health
from .interface import Backend

#: How many model names an error may list.
_NAMES_SHOWN = 20


class Target:
    """A backend as requests are sent to it.

    :param models: what it serves: names, globs, aliases with the real name; empty is all.
    :param limit: the most requests in flight there; None is no limit.
    """

    def __init__(
        self,
        backend: Backend,
        clock: IReactorTime,
        models: Sequence[tuple[str, str | None]] = (),
        limit: int | None = None,
    ) -> None:
        self.backend = backend
        self._clock = clock
        self.health = Health(clock)
        self.in_flight = 0
        self.turn = 0
        self._models = models
        self._limit = limit

    def renew(
        self,
        backend: Backend,
        models: Sequence[tuple[str, str | None]],
        limit: int | None,
        unknown: bool,
    ) -> None:
        """Go on with other settings for the same server; its requests stay counted.

        :param unknown: whether to forget what is known of its health.
        """
        self.backend, self._models, self._limit = backend, models, limit
        if unknown:
            self.health = Health(self._clock)

    def serves(self, model: str) -> bool:
        return not self._models or self._entry(model) is not None

    def real_name(self, model: str) -> str:
        """The name by which the backend itself knows the model."""
        entry = self._entry(model) if self._models else None
        return model if entry is None else entry[1] or model

    @property
    def takes_all(self) -> bool:
        return not self._models

    @property
    def full(self) -> bool:
        return self._limit is not None and self.in_flight >= self._limit

    @property
    def ready(self) -> bool:
        """Whether the next request may go there."""
        return not self.full and self.health.usable

    @property
    def names(self) -> list[str]:
        """The models that the settings name, aliases included, globs left out."""
        return [name for name, _ in self._models if not _is_glob(name)]

    @property
    def globs(self) -> list[str]:
        """The patterns by which the settings name further models."""
        return [name for name, _ in self._models if _is_glob(name)]

    def lists(self, model: str) -> bool:
        """Whether a model that the backend itself lists is served under that name."""
        return not self._models or any(
            alias is None and fnmatchcase(model, glob) for glob, alias in self._models
        )

    def _entry(self, model: str) -> tuple[str, str | None] | None:
        """What the settings say of a model: by its name, else by the first glob that fits."""
        exact = (entry for entry in self._models if entry[0] == model)
        globs = (entry for entry in self._models if fnmatchcase(model, entry[0]))
        return next(itertools.chain(exact, globs), None)

    # -- what happens to a request sent there --------------------------------------------------

    def asked(self) -> int:
        """A request is sent there; what this returns goes to one of the two below."""
        self.in_flight += 1
        return self.health.asked()

    def answers(self) -> None:
        """A request that was :meth:`asked` has its first event, and goes on."""
        self.health.succeeded()

    def ended(self, problem: GatewayError | None, trial: int) -> None:
        """A request that was :meth:`asked` has ended; ``problem`` is what went wrong there."""
        self.in_flight -= 1
        if problem is None or (isinstance(problem, UpstreamError) and _is_an_answer(problem)):
            self.health.succeeded()
        elif isinstance(problem, UpstreamError):
            self.health.failed(trial)
        else:
            self.health.learned_nothing(trial)

    def left(self, trial: int) -> None:
        """A request that was :meth:`asked` was given up by its client."""
        self.in_flight -= 1
        self.health.learned_nothing(trial)


def _is_glob(name: str) -> bool:
    return bool(set("*?[") & set(name))


def _is_an_answer(problem: UpstreamError) -> bool:
    """Whether the backend is well: the client's fault, or (501) it does not have this endpoint."""
    return problem.status < 500 or problem.status == 501


@attrs.frozen
class Choice:
    """One target to ask, and the name of the model to ask it for; None leaves it as it is."""

    target: Target
    model: str | None = None


class Router:
    """
    :param targets: in the order of the settings.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        self.targets = tuple(targets)
        self._turns = itertools.count(1)

    def route(
        self, model: str | None, visible: Callable[[], Iterable[str]] = tuple
    ) -> list[Choice]:
        """The targets to ask for a model, best first; at least one.

        :param visible: gives the names that an error may mention, besides the settings' own.
        :raises ModelNotFound: nobody serves it.
        :raises Overloaded: who does is full or down.
        """
        serving = self._serving(model)
        if not serving:
            raise self._unknown(model, visible())
        usable = [target for target in serving if target.ready]
        if not usable and len(serving) == 1 and not serving[0].full:
            # With nobody to take its place, not asking would gain nothing but later good news.
            usable = serving
        if not usable:
            raise Overloaded("No backend for this model is available.")
        if model is not None:  # else the settings' order: these need not be alike
            usable.sort(key=lambda target: (target.in_flight, target.turn))
            usable[0].turn = next(self._turns)
        return [Choice(target, self._renamed(target, model)) for target in usable]

    def usable(self) -> bool:
        """Whether any backend is worth asking."""
        return any(target.health.usable for target in self.targets)

    def states(self) -> dict[str, bool]:
        """Which backends are worth asking, by name."""
        return {target.backend.name: target.health.usable for target in self.targets}

    def _serving(self, model: str | None) -> list[Target]:
        if model is not None:
            return [target for target in self.targets if target.serves(model)]
        if len(self.targets) == 1:
            return list(self.targets)
        return [target for target in self.targets if target.takes_all]

    @staticmethod
    def _renamed(target: Target, model: str | None) -> str | None:
        if model is None or (real := target.real_name(model)) == model:
            return None
        return real

    def _unknown(self, model: str | None, visible: Iterable[str]) -> ModelNotFound:
        names = list(dict.fromkeys(visible))
        known = ", ".join(names[:_NAMES_SHOWN]) + (", ..." if names[_NAMES_SHOWN:] else "")
        said = "The request names no model." if model is None else "There is no such model."
        return ModelNotFound(said + (f" Known ones: {known}." if known else ""), param="model")
