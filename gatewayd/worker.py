"""What a worker has of its supervisor: the socket that all of them accept from, and a lifeline."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

#: The number of the descriptor of the socket; it is set in workers only.
WORKER_SOCKET = "GATEWAYD_WORKER_SOCKET"
#: The variable that says which worker a process is.
WORKER_NUMBER = "GATEWAYD_WORKER_NUMBER"


def is_worker() -> bool:
    return WORKER_SOCKET in os.environ


def worker_number() -> int:
    """Which of the workers this process is, from 0 on."""
    return int(os.environ[WORKER_NUMBER])


def worker_socket() -> int | None:
    number = os.environ.get(WORKER_SOCKET)
    return None if number is None else int(number)


@implementer(IReadDescriptor)
class Lifeline:
    """A worker's standard input: its other end closes when the supervisor dies.

    A worker that went on alone would keep the port from the next supervisor.

    :param lost: called when that has happened, and when the reactor lets go of all descriptors.
    """

    def __init__(self, lost: Callable[[], None]) -> None:
        self._lost = lost

    def fileno(self) -> int:
        return 0

    def logPrefix(self) -> str:
        return "lifeline"

    def doRead(self) -> Any:
        return None if os.read(0, 1024) else ConnectionDone()

    def connectionLost(self, reason: Failure) -> None:
        self._lost()
