"""The log of what happens to the daemon itself, at the chosen level.

Where it goes is twistd's business: ``--logfile``, ``--syslog``, standard output in the foreground.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import IO, Any, cast

from twisted.logger import (
    FilteringLogObserver,
    ILogFilterPredicate,
    ILogObserver,
    LegacyLogObserverWrapper,
    LogEvent,
    LogLevel,
    LogLevelFilterPredicate,
    PredicateResult,
    textFileLogObserver,
)
from twisted.scripts._twistd_unix import UnixAppLogger
from zope.interface import implementer

from .lines import STDOUT, Lines

#: The name of :func:`observer` as twistd's ``--logger`` option takes it: it imports that name, so
#: what the observer must know is kept here.
OBSERVER = f"{__name__}.observer"

#: The namespace of lines that workers have logged: each has passed the level of its worker.
WORKERS = "gatewayd.workers"

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
_lowest.setLogLevelForNamespace(WORKERS, LogLevel.debug)
_lost_lines = 0
_count_lost: Callable[[], None] | None = None


def configure(twistd_options: Any, level: str) -> None:
    """Say what twistd was told about its log, and the least important level that is logged."""
    _twistd_options.update(twistd_options, logger=None)
    set_level(level)


def set_level(level: str) -> None:
    """Log this level and those above it, from now on."""
    # Its defaultLogLevel is only read when it is made.
    _lowest.setLogLevelForNamespace("", LogLevel.levelWithName(level))


def on_lost(count: Callable[[], None]) -> None:
    """Call ``count`` for each line of this log that is dropped, and for those dropped before."""
    global _count_lost
    _count_lost = count
    for _ in range(_lost_lines):
        count()


def observer() -> ILogObserver:
    """The observer that twistd would have made from its other options, behind a filter."""
    inner: Any
    if _to_stdout():
        inner = textFileLogObserver(cast(IO[str], _Stdout()))
    else:
        # twistd offers no other way to have its own observer and filter it.
        inner = UnixAppLogger(_twistd_options)._getLogObserver()
    if not ILogObserver.providedBy(inner):
        inner = LegacyLogObserverWrapper(inner)
    return FilteringLogObserver(inner, [_lowest, _Sparing()])


def _to_stdout() -> bool:
    """Whether twistd would log to standard output; it decides so in ``UnixAppLogger``."""
    given = _twistd_options
    foreground = given.get("nodaemon", True)  # twist has no such option and never forks
    return foreground and not given.get("syslog") and given.get("logfile") in (None, "", STDOUT)


def _lost() -> None:
    global _lost_lines
    _lost_lines += 1
    if _count_lost is not None:
        _count_lost()


class _Stdout(io.TextIOBase):
    """Standard output as a file for Twisted's observer; it drops what cannot be written at once."""

    def __init__(self) -> None:
        self._lines = Lines(STDOUT, "standard output", _lost)

    def write(self, text: str) -> int:
        self._lines.write(text.encode("utf-8", "backslashreplace"))
        return len(text)
