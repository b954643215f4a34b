"""A reload: read all settings again and build what serves by them, or change nothing.

Both :mod:`.service` and :mod:`.supervisor` call :func:`prepare`. What a reload changes is decided
in four places, in this order:

1. :func:`keep_bound`, in this module: what is bound at the start stays until a restart. A reload
   that would change it logs a warning and goes on without that change.
2. :func:`.generation.build`: which targets are kept, with their connections and their health.
3. :meth:`.Serving.use`: what answers new requests. From here on the reload has happened.
4. ``GatewayService._change_to``: the other parts of the service, which follow the new settings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from twisted.logger import Logger

from gatewayd.settings.load import SettingsError
from gatewayd.settings.model import Settings

from .generation import Generation

_log = Logger()

#: By section, the settings that are bound at the start. Whether there is TLS at all is bound too.
BOUND = {
    "gateway": ("listen", "port", "workers"),
    "metrics": ("listen",),
}


def prepare(
    current: Settings,
    load: Callable[[], Settings],
    build: Callable[[Settings], Generation],
) -> Generation | None:
    """Read the settings again and build from them.

    :param current: the settings that hold now.
    :return: the new generation, which is not used yet; None if it could not be made. The log says
        why then.
    """
    try:
        settings, differences = keep_bound(current, load())
        generation = build(settings)
    except SettingsError as error:
        for problem in error.problems:
            _log.error("reload: {problem}", problem=problem)
        _log.error("reload: the settings stay as they were")
        return None
    except Exception:
        _log.failure("reload: the settings stay as they were")
        return None
    for difference in differences:
        _log.warn("reload: {difference}", difference=difference)
    return generation


def keep_bound(current: Settings, new: Settings) -> tuple[Settings, list[str]]:
    """The new settings with what is bound as it was, and a sentence for each such difference."""
    differences = []
    for section, keys in BOUND.items():
        for key in keys:
            value = getattr(getattr(current, section), key)
            if value != getattr(getattr(new, section), key):
                differences.append(f"[{section}] {key} stays {value} until a restart")
                new = evolved(new, section, {key: value})
    if (current.gateway.tls_certificate is None) != (new.gateway.tls_certificate is None):
        differences.append("TLS cannot be switched on or off without a restart")
        kept = {key: getattr(current.gateway, key) for key in ("tls_certificate", "tls_key")}
        new = evolved(new, "gateway", kept)
    return new, differences


def evolved(settings: Settings, section: str, values: dict[str, Any]) -> Settings:
    """These settings with some keys of one section replaced."""
    changed: Any = {section: attrs.evolve(getattr(settings, section), **values)}
    return attrs.evolve(settings, **changed)
