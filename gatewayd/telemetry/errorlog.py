"""The log of what happens to the daemon itself, at the chosen level.

Where it goes is twistd's business: ``--logfile``, ``--syslog``, standard output in the foreground.
"""

from __future__ import annotations

from typing import Any

from twisted.logger import (
    FilteringLogObserver,
    ILogFilterPredicate,
    ILogObserver,
    LegacyLogObserverWrapper,
    LogEvent,
    LogLevel,
    LogLevelFilterPredicate,
    PredicateResult,
)
from twisted.scripts._twistd_unix import UnixAppLogger
from zope.interface import implementer

#: The name of :func:`observer` as twistd's ``--logger`` option takes it: it imports that name, so
#: what the observer must know is kept here.
OBSERVER = f"{__name__}.observer"

#: Where Twisted speaks of connections that it cannot accept: three lines for each when there are no
#: file descriptors left, which is when strangers open many.
_ACCEPTING = "twisted.internet.tcp.Port"
_ACCEPTING_SECONDS = 1.0


@implementer(ILogFilterPredicate)
class _Sparing:
    """Lets such a line through once in a while."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, event: LogEvent) -> Any:  # constantly has no types
        if event.get("log_namespace") != _ACCEPTING or event["log_level"] is LogLevel.critical:
            return PredicateResult.maybe
        if 0 <= event["log_time"] - self._last < _ACCEPTING_SECONDS:
            return PredicateResult.no
        self._last = event["log_time"]
        return PredicateResult.maybe


_twistd_options: dict[str, Any] = {}
_lowest = LogLevelFilterPredicate()


def configure(twistd_options: Any, level: str) -> None:
    """Say what twistd was told about its log, and the least important level that is logged."""
    _twistd_options.update(twistd_options, logger=None)
    set_level(level)


def set_level(level: str) -> None:
    """Log this level and those above it, from now on."""
    # Its defaultLogLevel is only read when it is made.
    _lowest.setLogLevelForNamespace("", LogLevel.levelWithName(level))


def observer() -> ILogObserver:
    """The observer that twistd would have made from its other options, behind a filter."""
    # twistd offers no other way to have its own observer and filter it.
    inner = UnixAppLogger(_twistd_options)._getLogObserver()
    if not ILogObserver.providedBy(inner):
        inner = LegacyLogObserverWrapper(inner)
    return FilteringLogObserver(inner, [_lowest, _Sparing()])
