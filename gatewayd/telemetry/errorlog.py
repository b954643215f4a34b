"""The log of what happens to the daemon itself, at the chosen level.

Where it goes is twistd's business: ``--logfile``, ``--syslog``, standard output in the foreground.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.logger import (
    FilteringLogObserver,
    ILogObserver,
    LegacyLogObserverWrapper,
    LogLevel,
    LogLevelFilterPredicate,
)
from twisted.scripts._twistd_unix import UnixAppLogger


def observer_factory(twistd_options: Any, level: str) -> Callable[[], ILogObserver]:
    """Make the factory of log observers that twistd's ``--logger`` option takes.

    The observer is the one that twistd would have made from its other options, behind a filter.
    """

    def observer() -> ILogObserver:
        # twistd offers no other way to have its own observer and filter it.
        inner = UnixAppLogger({**twistd_options, "logger": None})._getLogObserver()
        if not ILogObserver.providedBy(inner):
            inner = LegacyLogObserverWrapper(inner)
        lowest = LogLevelFilterPredicate(defaultLogLevel=LogLevel.levelWithName(level))
        return FilteringLogObserver(inner, [lowest])

    return observer
