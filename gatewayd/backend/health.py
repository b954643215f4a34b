"""Whether a backend is worth asking: one small state machine for each.

It is told how exchanges ended and, where a ``health`` path is configured, what that said, and
decides from that and the time alone. Connection failures, 5xx, broken and stalled replies count
against a backend; what a client did wrong does not.

``well`` -> failures in a row -> ``ejected`` -> back-off over -> ``waiting`` -> one request is let
through -> ``trying`` -> ``well`` (with the first event of a stream, or a whole reply), or
``ejected`` again for twice as long. What began before the trial may end during it: its success is
good news, its failure decides nothing.

A backend whose ``health`` path says that it is loading its model is ``loading``: not broken, not
usable yet. While that path fails there is no trial; its saying "well" shortens no back-off, because
a server whose model hangs says so too.
"""

from __future__ import annotations

import random
from typing import Protocol

import attrs
from automat import TypeMachineBuilder
from twisted.internet.interfaces import IReactorTime

#: Failures in a row after which a backend is left alone.
FAILURES = 3
#: Seconds that the first back-off takes, and the most that a later one may.
FIRST_BACKOFF = 1.0
LONGEST_BACKOFF = 15.0
#: More than it takes to get there: a power of the number of ejections would overflow in hours.
_DOUBLINGS = 10


class _Inputs(Protocol):
    def answered(self) -> None:
        """A request was answered."""

    def gave_up(self) -> None:
        """Too many requests failed, or the one on trial."""

    def backed_off(self) -> None:
        """The back-off is over."""

    def asked(self) -> None:
        """A request is on its way."""

    def learned_nothing(self) -> None:
        """It ended, but not by what the backend did."""

    def not_yet(self) -> None:
        """It says that it will be ready later."""

    def looks_well(self) -> None:
        """It says that it is well."""


@attrs.define
class _Memory:
    """:param state: its name, for operators."""

    state: str = "well"
    ejections: int = 0


_builder = TypeMachineBuilder(_Inputs, _Memory)
_well, _ejected = _builder.state("well"), _builder.state("ejected")
_waiting, _trying = _builder.state("waiting"), _builder.state("trying")
_loading = _builder.state("loading")


def _recover(inputs: _Inputs, memory: _Memory) -> None:
    memory.state, memory.ejections = "well", 0


def _eject(inputs: _Inputs, memory: _Memory) -> None:
    memory.state = "ejected"
    memory.ejections += 1


def _wait(inputs: _Inputs, memory: _Memory) -> None:
    memory.state = "waiting"


def _try(inputs: _Inputs, memory: _Memory) -> None:
    memory.state = "trying"


def _load(inputs: _Inputs, memory: _Memory) -> None:
    memory.state = "loading"


_well.upon(_Inputs.gave_up).to(_ejected)(_eject)
_trying.upon(_Inputs.gave_up).to(_ejected)(_eject)
_ejected.upon(_Inputs.backed_off).to(_waiting)(_wait)
_waiting.upon(_Inputs.asked).to(_trying)(_try)
_trying.upon(_Inputs.learned_nothing).to(_waiting)(_wait)
for _state in (_well, _ejected, _waiting, _trying):
    _state.upon(_Inputs.not_yet).to(_loading)(_load)
for _state in (_ejected, _waiting, _trying, _loading):
    _state.upon(_Inputs.answered).to(_well)(_recover)
_loading.upon(_Inputs.gave_up).to(_ejected)(_eject)
for _state in (_loading, _trying):
    _state.upon(_Inputs.looks_well).to(_well)(_recover)
for _state in (_well, _ejected, _waiting):
    _state.upon(_Inputs.looks_well).loop().returns(None)
for _input in (_Inputs.not_yet, _Inputs.asked, _Inputs.backed_off, _Inputs.learned_nothing):
    _loading.upon(_input).loop().returns(None)
# An exchange that began before an ejection ends after it: that says nothing new.
for _state in (_ejected, _waiting):
    _state.upon(_Inputs.gave_up).loop().returns(None)
for _state in (_well, _ejected, _trying):
    _state.upon(_Inputs.asked).loop().returns(None)
for _state in (_well, _waiting, _trying):
    _state.upon(_Inputs.backed_off).loop().returns(None)
for _state in (_well, _ejected, _waiting):
    _state.upon(_Inputs.learned_nothing).loop().returns(None)
_well.upon(_Inputs.answered).loop().returns(None)
_new_machine = _builder.build()


class Health:
    """
    :param clock: tells the time; nothing is scheduled.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._memory = _Memory()
        self._machine = _new_machine(self._memory)
        self._failures = 0
        self._trial = 0  # the number of the latest
        self._until = 0.0
        self._looks_broken = False

    @property
    def state(self) -> str:
        """``well``, ``ejected``, ``waiting``, ``trying`` or ``loading``."""
        if self._memory.state == "ejected" and self._clock.seconds() >= self._until:
            self._machine.backed_off()
        return self._memory.state

    @property
    def usable(self) -> bool:
        """Whether to send the next request there."""
        return self.state == "well" or (self.state == "waiting" and not self._looks_broken)

    def asked(self) -> int:
        """A request is sent there, and will end in one of the three below.

        :returns: what to tell these: the number of the trial that it begins, 0 if it does not.
        """
        if self.state != "waiting":
            return 0
        self._machine.asked()
        self._trial += 1
        return self._trial

    def succeeded(self) -> None:
        """It answered, be it that the client had asked for something wrong."""
        if self._failures or self._memory.state != "well":  # nearly never: spare the machine
            self._failures = 0
            self._machine.answered()

    def failed(self, trial: int) -> None:
        """A request failed there, by no fault of its client."""
        self._failures += 1
        trying = self.state == "trying"
        if trial != self._trial if trying else self._failures < FAILURES:
            return
        self._failures = 0
        before = self._memory.ejections
        self._machine.gave_up()
        if self._memory.ejections > before:
            longest = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** min(before, _DOUBLINGS))
            # Jitter: several gateways should not try a backend that comes up at the same time.
            self._until = self._clock.seconds() + longest * random.uniform(0.5, 1.0)

    def learned_nothing(self, trial: int) -> None:
        """The client left, or the like: the next request is the trial, if this one was."""
        if trial == self._trial:
            self._machine.learned_nothing()

    # What its health path says.

    def looks_well(self) -> None:
        self._looks_broken = False
        self._machine.looks_well()

    def not_yet(self) -> None:
        """It will be ready later."""
        self._failures, self._looks_broken = 0, False
        self._machine.not_yet()

    def looks_broken(self) -> None:
        """It says something else, or nothing."""
        self._looks_broken = True
        self.failed(0)
