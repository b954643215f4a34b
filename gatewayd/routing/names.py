"""The models that a backend serves: by its settings, by its own list, or any.

A backend whose ``models`` has ``auto`` serves what it lists. If ``models`` is empty, the backend
serves every model if it is the only one. Beside others, its list decides which models it is asked
for first, and it is also asked for a model that no backend is known to serve.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from .listing import Listing

#: The entry of ``models`` that stands for the backend's own list.
AUTO = ("auto", None)

#: Ollama lists ``llama3.2:latest`` and accepts ``llama3.2`` for it.
_DEFAULT_TAG = ":latest"


class ModelNames:
    """The ``models`` of one backend's settings, with the list of that backend.

    :param entries: a name or a glob each, with the backend's own name for the model where it has
        another (an alias), else None; or :data:`AUTO`.
    :param listing: what the backend lists.
    :param alone: whether there is no other backend.
    """

    def __init__(
        self,
        entries: Sequence[tuple[str, str | None]] = (),
        listing: Listing | None = None,
        alone: bool = True,
    ) -> None:
        self._entries = tuple(entry for entry in entries if entry != AUTO)
        self._all = not entries and alone
        self._open = not entries and not alone
        self._auto = AUTO in entries
        self._listing = listing or Listing()

    @property
    def follow_list(self) -> bool:
        """Whether the backend's own list decides, so that it must be known."""
        return self._auto or self._open

    @property
    def take_unnamed(self) -> bool:
        """Whether a request that names no model may be sent to this backend, as one of several."""
        return self._all or self._open or self._auto

    @property
    def names(self) -> list[str]:
        """The names in the settings, aliases included, globs left out."""
        return [name for name, _ in self._entries if not _is_glob(name)]

    @property
    def globs(self) -> list[str]:
        return [name for name, _ in self._entries if _is_glob(name)]

    def real_name(self, model: str) -> str | None:
        """The backend's own name for a model; None if it is not known to serve the model.

        An entry of that name counts before a glob that matches it.
        """
        if self._all:
            return model
        for name, real in self._entries:
            if name == model:
                return real or model
        for name, real in self._entries:
            if fnmatchcase(model, name):
                return real or model
        if self._auto or self._open:
            listed = self._listing.names
            if model in listed or (":" not in model and model + _DEFAULT_TAG in listed):
                return model
        return None

    @property
    def may_serve_others(self) -> bool:
        """Whether the backend may serve models that it is not known to serve."""
        return self._open or (self._auto and not self._listing.known)

    def offer(self, listed: str) -> bool:
        """Whether a model in the backend's own list is served under that name."""
        return self.take_unnamed or any(
            real is None and fnmatchcase(listed, name) for name, real in self._entries
        )


def _is_glob(name: str) -> bool:
    return not set("*?[").isdisjoint(name)
