"""The models that a backend serves by its settings, and the backend's own names of them."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase


class ModelNames:
    """The ``models`` of one backend's settings.

    :param entries: a name or a glob each, with the backend's own name for the model where it has
        another (an alias), else None. No entries: the backend serves all models.
    """

    def __init__(self, entries: Sequence[tuple[str, str | None]] = ()) -> None:
        self._entries = entries

    @property
    def all(self) -> bool:
        """Whether the backend serves all models."""
        return not self._entries

    @property
    def names(self) -> list[str]:
        """The names, aliases included, globs left out."""
        return [name for name, _ in self._entries if not _is_glob(name)]

    @property
    def globs(self) -> list[str]:
        return [name for name, _ in self._entries if _is_glob(name)]

    def real_name(self, model: str) -> str | None:
        """The backend's own name for a model; None if the backend does not serve it.

        An entry of that name counts before a glob that matches it.
        """
        if not self._entries:
            return model
        for name, real in self._entries:
            if name == model:
                return real or model
        for name, real in self._entries:
            if fnmatchcase(model, name):
                return real or model
        return None

    def offer(self, listed: str) -> bool:
        """Whether a model in the backend's own list is served under that name."""
        return not self._entries or any(
            real is None and fnmatchcase(listed, name) for name, real in self._entries
        )


def _is_glob(name: str) -> bool:
    return not set("*?[").isdisjoint(name)
