"""What is bound at the start and stays until a restart, whatever a reload reads."""

from __future__ import annotations

from typing import Any

import attrs

from gatewayd.settings.model import Settings

#: By section, the keys of what is bound.
BOUND = {
    "gateway": ("listen", "port", "workers"),
    "metrics": ("listen",),
}


def keep_bound(before: Settings, after: Settings) -> tuple[Settings, list[str]]:
    """Other settings, but with what cannot change as it was; and a sentence for each difference."""
    said = []
    for section, keys in BOUND.items():
        old, new = getattr(before, section), getattr(after, section)
        for key in keys:
            value = getattr(old, key)
            if value != getattr(new, key):
                said.append(f"[{section}] {key} stays {value} until a restart")
                after = evolved(after, section, {key: value})
    if (before.gateway.tls_certificate is None) != (after.gateway.tls_certificate is None):
        said.append("TLS cannot be switched on or off without a restart")
        kept = {key: getattr(before.gateway, key) for key in ("tls_certificate", "tls_key")}
        after = evolved(after, "gateway", kept)
    return after, said


def evolved(settings: Settings, section: str, values: dict[str, Any]) -> Settings:
    """These settings with some keys of one section replaced."""
    changed: Any = {section: attrs.evolve(getattr(settings, section), **values)}
    return attrs.evolve(settings, **changed)
