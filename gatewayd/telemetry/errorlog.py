"""The log of what happens to the daemon itself, at the chosen level.

Where it goes is twistd's business: ``--logfile``, ``--syslog``, standard output in the foreground.
"""

from __future__ import annotations

from typing import Any

from twisted.logger import (
    FilteringLogObserver,
    ILogObserver,
    LegacyLogObserverWrapper,
    LogLevel,
    LogLevelFilterPredicate,
)
from twisted.scripts._twistd_unix import UnixAppLogger

#: The name of :func:`observer` as twistd's ``--logger`` option takes it: it imports that name, so
#: what the observer must know is kept here.
OBSERVER = f"{__name__}.observer"

_twistd_options: dict[str, Any] = {}
_lowest = LogLevelFilterPredicate(defaultLogLevel=LogLevel.info)


def configure(twistd_options: Any, level: str) -> None:
    """Say what twistd was told about its log, and the least important level that is logged."""
    _twistd_options.update(twistd_options, logger=None)
    set_level(level)


def set_level(level: str) -> None:
    """Log this level and those above it, from now on."""
    _lowest.defaultLogLevel = LogLevel.levelWithName(level)


def observer() -> ILogObserver:
    """The observer that twistd would have made from its other options, behind a filter."""
    # twistd offers no other way to have its own observer and filter it.
    inner = UnixAppLogger(_twistd_options)._getLogObserver()
    if not ILogObserver.providedBy(inner):
        inner = LegacyLogObserverWrapper(inner)
    return FilteringLogObserver(inner, [_lowest])
