"""The sources -> one frozen `Settings`: defaults < ini file < environment < command line.

The sources are read by :mod:`gatewayd.settings.sources` into a :mod:`draft <.draft>`, which
:mod:`gatewayd.settings.checks` completes.
"""

from collections.abc import Mapping
from typing import Any

import attrs

from . import checks, sources
from .declaring import SectionId
from .draft import Draft, Source
from .model import (
    DEFAULT_BACKEND,
    NAMED,
    SECTIONS,
    SETTINGS,
    BackendSettings,
    Settings,
    TokenSettings,
)


class SettingsError(Exception):
    """The settings cannot be used; ``problems`` has one line for each mistake."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load(
    environ: Mapping[str, str],
    options: Mapping[str, str] | None = None,
    path: str | None = None,
    folder: str = "",
) -> Settings:
    """Read every source.

    :param options: of the command line, by name: ``listen``, ``port``, ``backend-url``.
    :param path: the ini file; without one ``GATEWAYD_CONFIG`` in `environ` may name it.
    :param folder: the folder of files that settings name without a leading slash; empty for the
        working folder.
    :raises SettingsError: there are mistakes; it has all of them.
    """
    draft = Draft(folder)
    if path := path or environ.get("GATEWAYD_CONFIG"):
        sources.read_ini(draft, path)
    sources.read_environment(draft, environ)
    sources.read_options(draft, options or {})
    settings = _settings(draft)
    if draft.problems:
        raise SettingsError(draft.problem_lines())
    return attrs.evolve(settings, warnings=draft.warning_lines())


def _settings(draft: Draft) -> Settings:
    """Check the draft as a whole. Backends and tokens with mistakes are left out."""
    single: dict[str, Any] = {
        kind: cls(**draft.values(kind)) for kind, cls in SECTIONS.items() if kind not in NAMED
    }
    checks.check_own_tls(draft)
    tokens = [_token(draft, token) for token in draft.of_kind("token")]
    checks.warn_of_same_tokens(draft)
    backends = [_backend(draft, id, single) for id in _backends_in_order(draft)]
    return Settings(
        **single,
        backends=tuple(backend for backend in backends if backend),
        tokens=tuple(token for token in tokens if token),
    )


def _backends_in_order(draft: Draft) -> list[SectionId]:
    """In the order of the file; a backend that ``BACKEND_URL`` makes is the first."""
    backends = draft.of_kind("backend")
    default = draft.sections.get(DEFAULT_BACKEND)
    if default and default.start.source is not Source.FILE:
        backends.sort(key=lambda backend: backend != DEFAULT_BACKEND)
    return backends


def _token(draft: Draft, token: SectionId) -> TokenSettings | None:
    checks.complete_token(draft, token)
    values = _nonempty(draft, token)
    return TokenSettings(name=token.name, **values) if "sha256" in values else None


def _backend(draft: Draft, backend: SectionId, single: Mapping[str, Any]) -> BackendSettings | None:
    """:param single: the sections whose values apply to a backend that has none of its own."""
    checks.complete_backend(draft, backend)
    values = {
        key: getattr(single[kind], key)
        for kind in ("timeouts", "routing")
        for key in SETTINGS[kind].keys() & SETTINGS["backend"].keys()
    }
    values |= _nonempty(draft, backend)
    return BackendSettings(name=backend.name, **values) if "url" in values else None


def _nonempty(draft: Draft, section: SectionId) -> dict[str, Any]:
    values = draft.sections[section].values
    return {key: value for key, value in values.items() if value is not None}
