"""All sources into one frozen `Settings`: defaults < ini file < environment < command line.

The sources are read by :mod:`gatewayd.settings.sources`; what several values must satisfy together
is checked by :mod:`gatewayd.settings.checks`.
"""

from collections.abc import Mapping
from typing import Any

import attrs

from . import checks
from .model import (
    SCHEMA,
    BackendSettings,
    GatewaySettings,
    LimitSettings,
    LogSettings,
    MetricsSettings,
    Settings,
    TimeoutSettings,
    TokenSettings,
)
from .sources import Gathering


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
    """Read every source; raise `SettingsError` with all the mistakes in them.

    :param options: from the command line, by name: ``listen``, ``port``, ``backend-url``.
    :param path: the ini file; without one ``GATEWAYD_CONFIG`` in `environ` may name it.
    :param folder: where files are that settings name without a slash at the beginning; empty for
        the working folder.
    """
    given = Gathering(SCHEMA, folder)
    if path := path or environ.get("GATEWAYD_CONFIG"):
        given.read_ini(path)
    given.read_environment(environ)
    given.read_options(options or {})
    settings = _build(given)
    if given.problems:
        raise SettingsError(given.problem_lines())
    return attrs.evolve(settings, warnings=given.warning_lines())


def _build(given: Gathering) -> Settings:
    """Put the values together; what is wrong with their combination goes to the problems."""
    timeouts = TimeoutSettings(**given.sections.get("timeouts", {}))
    checks.check_own_tls(given)
    tokens = [_token(given, section) for section in given.sections if section[:6] == "token "]
    checks.warn_of_same_tokens(given)
    sections = [section for section in given.sections if section.startswith("backend ")]
    # The one that BACKEND_URL makes is the first.
    sections.sort(key=lambda section: section != "backend default" or given.in_file(section))
    backends = [_backend(given, section, timeouts) for section in sections]
    return Settings(
        gateway=GatewaySettings(**given.sections.get("gateway", {})),
        timeouts=timeouts,
        limits=LimitSettings(**given.sections.get("limits", {})),
        backends=tuple(backend for backend in backends if backend),
        tokens=tuple(token for token in tokens if token),
        log=LogSettings(**given.sections.get("log", {})),
        metrics=MetricsSettings(**given.sections.get("metrics", {})),
    )


def _token(given: Gathering, section: str) -> TokenSettings | None:
    checks.read_token(given, section)
    values = _given(given, section)
    return TokenSettings(**values) if "sha256" in values else None


def _backend(given: Gathering, section: str, timeouts: TimeoutSettings) -> BackendSettings | None:
    checks.read_api_key(given, section)
    checks.check_trust(given, section)
    if (section, "url") not in given.places:
        given.missing(section, "url", "a base URL such as http://127.0.0.1:8080/v1")
    common = SCHEMA.keys["timeouts"].keys() & SCHEMA.keys["backend"].keys()
    values = {key: getattr(timeouts, key) for key in common} | _given(given, section)
    return BackendSettings(**values) if "url" in values else None


def _given(given: Gathering, section: str) -> dict[str, Any]:
    """The values of ``[backend NAME]`` and the like that are not empty, and the name."""
    values = {key: value for key, value in given.sections[section].items() if value is not None}
    return {**values, "name": section.partition(" ")[2]}
