"""The daemon's own log, at the level of the settings.

twistd's options decide where it goes: ``--logfile``, ``--syslog``, else standard output if twistd
stays in the foreground.
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

from .lines import STDOUT, LineWriter

#: The name of :func:`observer` for twistd's ``--logger`` option. twistd imports that name and
#: passes no arguments, so the observer's state is kept in this module.
OBSERVER = f"{__name__}.observer"

#: The namespace of lines that workers have logged. They have passed their worker's level already.
WORKERS = "gatewayd.workers"

#: The namespace in which Twisted logs that it cannot accept a connection. When no file descriptors
#: are left it logs three lines for each attempt, and clients may attempt it often.
_ACCEPTING = "twisted.internet.tcp.Port"
_ACCEPTING_SECONDS = 1.0


@implementer(ILogFilterPredicate)
class _AcceptErrors:
    """Lets at most one of these lines through in :data:`_ACCEPTING_SECONDS`."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, event: LogEvent) -> Any:  # constantly has no type hints
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
    """Set the options that twistd was started with, and the level."""
    _twistd_options.update(twistd_options, logger=None)
    set_level(level)


def set_level(level: str) -> None:
    """Log this level and those above it from now on."""
    # The predicate reads its defaultLogLevel only when it is made.
    _lowest.setLogLevelForNamespace("", LogLevel.levelWithName(level))


def on_lost(count: Callable[[], None]) -> None:
    """Call ``count`` once for each dropped line of this log, those dropped before included."""
    global _count_lost
    _count_lost = count
    for _ in range(_lost_lines):
        count()


def observer() -> ILogObserver:
    """The observer that twistd would make from its other options, behind a filter."""
    inner: Any
    if _to_stdout():
        inner = textFileLogObserver(cast(IO[str], _Stdout()))
    else:
        # twistd has no public way to filter its own observer.
        inner = UnixAppLogger(_twistd_options)._getLogObserver()
    if not ILogObserver.providedBy(inner):
        inner = LegacyLogObserverWrapper(inner)
    return FilteringLogObserver(inner, [_lowest, _AcceptErrors()])


def _to_stdout() -> bool:
    """Whether twistd would log to standard output, by the rules of its ``UnixAppLogger``."""
    options = _twistd_options
    foreground = options.get("nodaemon", True)  # twist has no such option and never forks
    return foreground and not options.get("syslog") and options.get("logfile") in (None, "", STDOUT)


def _count_dropped() -> None:
    global _lost_lines
    _lost_lines += 1
    if _count_lost is not None:
        _count_lost()


class _Stdout(io.TextIOBase):
    """Standard output as a file for Twisted's observer. Lines that would block are dropped."""

    def __init__(self) -> None:
        self._lines = LineWriter(STDOUT, "standard output", _count_dropped)

    def write(self, text: str) -> int:
        self._lines.write(text.encode("utf-8", "backslashreplace"))
        return len(text)
