"""Which backends may answer a request, and in which order they are asked.

A model's backends share its load: the one with the fewest requests in flight comes first, ties
take turns. One at its ``in_flight`` is passed over. One that is ejected comes behind the others,
unless it is known to be dead or loading. What is left is the order in which a request tries them
(see :mod:`gatewayd.relaying.relay` for when it tries the next).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Sequence
from fnmatch import fnmatchcase

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from gatewayd.backend.interface import Backend
from gatewayd.wire.errors import (
    BackendFailed,
    ConnectionReset,
    GatewayError,
    ModelNotFound,
    Overloaded,
    Truncated,
    UpstreamError,
    UpstreamTimeout,
)

from .health import Evidence, Failure, Health

_log = Logger()

#: A caller that waited this long without a byte, and then gave up, says something of the backend.
GAVE_UP_SECONDS = 5.0

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
        self.health = self._new_health()
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
            self.health = self._new_health()

    def _new_health(self) -> Health:
        def changed(said: str) -> None:
            _log.warn("backend {name} {said}", name=self.backend.name, said=said)

        return Health(self._clock, changed)

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
    def may_answer(self) -> bool:
        """Whether a request may go there that no other backend can take."""
        return not self.full and self.health.may_answer

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

    def ended(
        self,
        problem: GatewayError | None,
        trial: int,
        caller: Hashable = None,
        body: bytes = b"",
    ) -> None:
        """A request that was :meth:`asked` has ended; ``problem`` is what went wrong there.

        :param caller: who asked; with ``body`` it tells many failures from one that is repeated.
        """
        self.in_flight -= 1
        evidence = evidence_of(problem)
        if evidence is Evidence.GOOD:
            self.health.succeeded()
        elif evidence is Evidence.NONE or problem is None:
            self.health.learned_nothing(trial)
        else:
            why = f"{problem.message} {problem.detail}".strip()
            self.health.failed(Failure(evidence, caller, hash(body), why), trial)

    def left(
        self, trial: int, waited: float = 0.0, caller: Hashable = None, body: bytes = b""
    ) -> None:
        """A request that was :meth:`asked` was given up by its client.

        :param waited: seconds without a byte of the reply; 0 if there was one.
        """
        self.in_flight -= 1
        if waited < GAVE_UP_SECONDS:
            self.health.learned_nothing(trial)
            return
        why = f"The caller gave up after {waited:.1f} s without a byte."
        self.health.failed(Failure(Evidence.GAVE_UP, caller, hash(body), why), trial)


def evidence_of(problem: GatewayError | None) -> Evidence:
    """What a request that ended so says of its backend."""
    if problem is None:
        return Evidence.GOOD
    if not isinstance(problem, UpstreamError):
        return Evidence.NONE
    if problem.status < 500 or problem.status == 501:  # the client's fault, or no such endpoint
        return Evidence.GOOD
    if not problem.executed and not isinstance(problem, BackendFailed):
        return Evidence.NOT_REACHED
    if isinstance(problem, (ConnectionReset, Truncated, UpstreamTimeout)):
        return Evidence.LOST
    return Evidence.ANSWERED


def _is_glob(name: str) -> bool:
    return bool(set("*?[") & set(name))


@attrs.frozen
class Choice:
    """One target to ask, and the name of the model to ask it for; None leaves it as it is.

    :param last: whether it is asked only because no usable one can take the request.
    """

    target: Target
    model: str | None = None
    last: bool = False

    @property
    def open(self) -> bool:
        """Whether the target may still be asked."""
        return self.target.may_answer if self.last else self.target.ready


def _least_busy(target: Target) -> tuple[int, int]:
    return target.in_flight, target.turn


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
        rest = [target for target in serving if target.may_answer and target not in usable]
        if not usable and not rest and len(serving) == 1 and not serving[0].full:
            # No other backend could take its place, and its own error says more than ours.
            usable = serving
        if not usable and not rest:
            raise Overloaded("No backend for this model is available.")
        if model is not None:  # else the settings' order: these need not be alike
            usable.sort(key=_least_busy)
            rest.sort(key=_least_busy)
            (usable or rest)[0].turn = next(self._turns)
        return [
            Choice(target, self._renamed(target, model), last)
            for last, targets in ((False, usable), (True, rest))
            for target in targets
        ]

    def usable(self) -> bool:
        """Whether any backend is worth asking."""
        return any(target.health.usable or target.health.answers for target in self.targets)

    def states(self) -> dict[str, bool]:
        """Which backends are known to answer, by name."""
        return {target.backend.name: target.health.answers for target in self.targets}

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
