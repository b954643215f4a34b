"""File descriptors: how many this process may have, and how many of them clients get.

Each connection of a client takes a descriptor, and so does each connection to a backend. When none
is left, no client can be accepted, not even to be refused, and no backend can be connected to. So
clients get only as many as leave enough for the rest; further connections are refused with a 503.
"""

from __future__ import annotations

# Used when a name is looked up. Importing it then would need a free descriptor.
import encodings.idna  # noqa: F401
import resource
from contextlib import suppress

from gatewayd.api import metrics
from gatewayd.api.state import SURPLUS_CONNECTIONS
from gatewayd.settings.model import Settings

from .listening import ACCEPTED_AT_ONCE, CannotStart

#: For the process itself: logs, ports, the event loop, the files that workers share, name lookups,
#: files that it reads.
_OWN = 48
#: For surplus connections: those that linger, those accepted in this turn of the loop, and those of
#: the turn before, which close in this one.
_REFUSED = SURPLUS_CONNECTIONS + 2 * ACCEPTED_AT_ONCE

RESERVE = _OWN + _REFUSED + metrics.CONNECTIONS

#: With fewer descriptors the gateway does not start.
FEWEST = RESERVE + 16

#: Used if the system has no limit, because the table of descriptors takes memory.
_PLENTY = 1 << 20


def limit() -> int:
    """The number of descriptors that this process may have."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _PLENTY if soft == resource.RLIM_INFINITY else soft


def raise_limit() -> None:
    """Raise the soft limit, which shells and systemd set to 1024, to the hard limit.

    :raises CannotStart: there are too few descriptors nevertheless.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _PLENTY if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < most:
        # systemd's filter of system calls may forbid it; then the soft limit stays.
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if limit() < FEWEST:
        reason = f"at most {limit()} open files are allowed, at least {FEWEST} are needed"
        raise CannotStart(f"{reason} (ulimit -n, LimitNOFILE=)")


def for_clients(settings: Settings) -> int:
    """How many connections clients may hold: ``[limits] connections``, or fewer if necessary.

    Each request in flight needs a connection to a backend beside its client's. Each backend's
    health path, list of models and slots may be requested at any time.
    """
    available = limit() - RESERVE
    backends = settings.limits.in_flight + 3 * len(settings.backends)
    return max(1, min(settings.limits.connections, available - min(backends, available // 2)))


def warnings(settings: Settings) -> list[str]:
    """A sentence if clients cannot hold as many connections as the settings allow."""
    wanted, possible = settings.limits.connections, for_clients(settings)
    if possible == wanted:
        return []
    reason = f"{wanted} do not fit into {limit()} open files (ulimit -n, LimitNOFILE=)"
    return [f"[limits] connections: {reason}, {possible} are accepted"]
