"""A worker's side of the pipe from its supervisor, which is its standard input.

The supervisor writes messages to the pipe. The first is a :class:`Handover`. Each later one holds
the settings that the supervisor has read again and accepted, or None if they had a mistake. A
worker reads no settings itself. So all workers use the same settings whenever they were started,
and no key passes through a command line or an environment variable.

The end of standard input means that the supervisor has died.
"""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Callable
from typing import Any

import attrs
from twisted.application.service import Service
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from gatewayd.settings.model import Settings

#: The environment variable with a worker's number; it is set in workers only.
WORKER_NUMBER = "GATEWAYD_WORKER_NUMBER"

#: The descriptor of the first listening socket that a worker is given.
FIRST_SOCKET = 3

_STDIN = 0
#: Precedes each message: its size in bytes.
_SIZE = struct.Struct(">I")


@attrs.frozen
class Handover:
    """What a worker begins with.

    :param sockets: the number of listening sockets, from :data:`FIRST_SOCKET` on.
    :param kept: whether systemd holds them too, so that they stay open when the service stops.
    """

    settings: Settings
    sockets: int
    kept: bool

    @property
    def descriptors(self) -> list[int]:
        return list(range(FIRST_SOCKET, FIRST_SOCKET + self.sockets))


def message(content: Handover | Settings | None) -> bytes:
    """A message in the form in which it is written to the pipe."""
    data = pickle.dumps(content)
    return _SIZE.pack(len(data)) + data


def is_worker() -> bool:
    """Whether a supervisor has started this process."""
    return WORKER_NUMBER in os.environ


class Supervised:
    """What this worker has received from its supervisor; the constructor waits for the handover.

    :raises SystemExit: the supervisor has died.
    """

    def __init__(self) -> None:
        self.number = int(os.environ[WORKER_NUMBER])
        (size,) = _SIZE.unpack(_read(_SIZE.size))
        self.handover: Handover = pickle.loads(_read(size))
        self._settings: Settings = self.handover.settings

    def load(self) -> Settings:
        """The settings that the supervisor has accepted last."""
        return self._settings

    def accept(self, settings: Settings) -> None:
        self._settings = settings


def _read(size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = os.read(_STDIN, size - len(data))
        if not more:
            raise SystemExit("gatewayd: a worker's supervisor has ended")
        data += more
    return data


@implementer(IReadDescriptor)
class Lifeline(Service):
    """Reads the messages that come after the handover.

    :param reload: called when the supervisor has accepted new settings.
    :param reopen: called when the supervisor was told to reload but found a mistake.
    :param lost: called when the supervisor has died, and when the reactor closes all descriptors. A
        worker that went on without a supervisor would keep the port from the next one.
    """

    def __init__(
        self,
        supervised: Supervised,
        reload: Callable[[], None],
        reopen: Callable[[], None],
        lost: Callable[[], None],
        reactor: Any,
    ) -> None:
        self._supervised = supervised
        self._reload = reload
        self._reopen = reopen
        self._lost = lost
        self._reactor = reactor
        self._buffer = b""

    def startService(self) -> None:
        super().startService()
        self._reactor.addReader(self)

    def fileno(self) -> int:
        return _STDIN

    def logPrefix(self) -> str:
        return "lifeline"

    def doRead(self) -> Any:
        data = os.read(_STDIN, 65536)
        if not data:
            return ConnectionDone()
        self._buffer += data
        while len(self._buffer) >= _SIZE.size:
            end = _SIZE.size + _SIZE.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                break
            content = pickle.loads(self._buffer[_SIZE.size : end])
            self._buffer = self._buffer[end:]
            self._received(content)
        return None

    def _received(self, settings: Settings | None) -> None:
        if settings is None:
            self._reopen()
        else:
            self._supervised.accept(settings)
            self._reload()

    def connectionLost(self, reason: Failure) -> None:
        self._lost()
