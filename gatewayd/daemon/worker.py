"""A worker's side of its supervisor: what it is told over standard input.

The supervisor writes messages there. The first is a :class:`Handover`; each later one holds the
settings that the supervisor has read again and accepted, or None where it found a mistake in them.
A worker reads no settings by itself, so all workers go by the same ones whenever they were started,
and no key passes through a command line or an environment.

The end of standard input says that the supervisor is gone.
"""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from gatewayd.settings.model import Settings

#: The variable that says which worker a process is; it is set in workers only.
WORKER_NUMBER = "GATEWAYD_WORKER_NUMBER"

#: The descriptor of the first listening socket that a worker is given.
FIRST_SOCKET = 3

_STDIN = 0
_LENGTH = struct.Struct(">I")


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
    """As it is written to a worker."""
    data = pickle.dumps(content)
    return _LENGTH.pack(len(data)) + data


def is_worker() -> bool:
    return WORKER_NUMBER in os.environ


class Supervised:
    """What this worker knows from its supervisor.

    Making one waits for the handover.

    :raises SystemExit: the supervisor is gone.
    """

    def __init__(self) -> None:
        self.number = int(os.environ[WORKER_NUMBER])
        (size,) = _LENGTH.unpack(_read(_LENGTH.size))
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
class Lifeline:
    """Reads the messages that come after the handover.

    :param reload: called when other settings were accepted.
    :param reopen: called when the supervisor was told to reload, but found a mistake.
    :param lost: called when the supervisor is gone (a worker that went on alone would keep the
        port from the next one), and when the reactor lets go of all descriptors.
    """

    def __init__(
        self,
        supervised: Supervised,
        reload: Callable[[], None],
        reopen: Callable[[], None],
        lost: Callable[[], None],
    ) -> None:
        self._supervised = supervised
        self._reload = reload
        self._reopen = reopen
        self._lost = lost
        self._buffer = b""

    def fileno(self) -> int:
        return _STDIN

    def logPrefix(self) -> str:
        return "lifeline"

    def doRead(self) -> Any:
        data = os.read(_STDIN, 65536)
        if not data:
            return ConnectionDone()
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                break
            content = pickle.loads(self._buffer[_LENGTH.size : end])
            self._buffer = self._buffer[end:]
            self._told(content)
        return None

    def _told(self, settings: Settings | None) -> None:
        if settings is None:
            self._reopen()
        else:
            self._supervised.accept(settings)
            self._reload()

    def connectionLost(self, reason: Failure) -> None:
        self._lost()
