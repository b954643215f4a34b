"""File descriptors: how many there are, and how they are shared out.

A client's connection takes one, and so does a backend's. When none is left, the kernel can neither
accept a client (it could not even be refused) nor connect to a backend. So clients get no more
than leaves enough for the rest, and those beyond are refused with a 503.
"""

from __future__ import annotations

# A name is encoded with it when it is looked up, in a thread; a late import needs a descriptor.
import encodings.idna  # noqa: F401
import resource
from contextlib import suppress

from gatewayd.api import metrics
from gatewayd.api.state import SURPLUS_CONNECTIONS
from gatewayd.settings.model import Settings

from .listening import ACCEPTED_AT_ONCE, CannotStart

#: For the process itself: logs, ports, the event loop, the files that workers share, look-ups of
#: names, files that it reads.
_OWN = 48
#: For connections that are too many: those that linger, those that were accepted in this turn of
#: the loop, and those of the turn before, which close in this one.
_REFUSED = SURPLUS_CONNECTIONS + 2 * ACCEPTED_AT_ONCE

RESERVE = _OWN + _REFUSED + metrics.CONNECTIONS

#: With fewer a gateway is none.
FEWEST = RESERVE + 16

#: Asked for where the system's limit is none: a table of them costs memory.
_PLENTY = 1 << 20


def limit() -> int:
    """How many descriptors this process may have."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _PLENTY if soft == resource.RLIM_INFINITY else soft


def raise_limit() -> None:
    """Have as many as the system allows: shells and systemd give few at first (1024).

    :raises CannotStart: they are too few.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _PLENTY if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < most:
        # Not allowed under systemd's filter of system calls: those there are have to do.
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if limit() < FEWEST:
        said = f"at most {limit()} open files are allowed, at least {FEWEST} are needed"
        raise CannotStart(f"{said} (ulimit -n, LimitNOFILE=)")


def for_clients(settings: Settings) -> int:
    """How many connections clients may hold: ``[limits] connections``, or fewer if they must.

    A request needs a backend's connection beside its client's. Each backend may be looked at (its
    health path, its list of models) at any time.
    """
    left = limit() - RESERVE
    backends = settings.limits.in_flight + 2 * len(settings.backends)
    return max(1, min(settings.limits.connections, left - min(backends, left // 2)))


def warnings(settings: Settings) -> list[str]:
    """A sentence if clients cannot hold as many connections as the settings say."""
    wanted, possible = settings.limits.connections, for_clients(settings)
    if possible == wanted:
        return []
    said = f"{wanted} do not fit into {limit()} open files (ulimit -n, LimitNOFILE=)"
    return [f"[limits] connections: {said}, {possible} are accepted"]
