"""The responses that one backend has made, by their ids: a bounded memory of this process.

A later request for such a response goes to the backend that has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

#: How many ids of a backend are remembered. The oldest ones are forgotten first.
MOST_IDS = 10_000


class Made:
    """Ids, each with the caller whose request made it; None without tokens."""

    def __init__(self) -> None:
        self._callers: dict[str, str | None] = {}

    def add(self, id: str, caller: str | None) -> None:
        """Remember an id. The caller of a known one stays: another one may only have read it."""
        callers = self._callers
        callers[id] = callers.pop(id, caller)
        if len(callers) > MOST_IDS:
            del callers[next(iter(callers))]

    def by(self, id: str, caller: str | None) -> bool:
        """Whether a request of this caller made the response."""
        return id in self._callers and self._callers[id] == caller

    def by_another(self, id: str, caller: str | None) -> bool:
        """Whether a request of another caller is known to have made the response."""
        return self._callers.get(id) not in (None, caller)

    def __contains__(self, id: str) -> bool:
        return id in self._callers


class _Maker(Protocol):
    @property
    def made(self) -> Made: ...


_M = TypeVar("_M", bound=_Maker)


def maker_of(id: str, targets: Sequence[_M]) -> _M | None:
    """The target that has made a response; None if none is known to have."""
    for target in targets:
        if id in target.made:
            return target
    return None
