"""How the process of a worker is started: its command, environment and descriptors.

A worker is ``twistd gatewayd`` again, in the foreground, with
:data:`gatewayd.daemon.worker.WORKER_NUMBER` in its environment.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from gatewayd.telemetry.multiprocess import FOLDER_VARIABLE

from .worker import FIRST_SOCKET, WORKER_NUMBER
from .worker_process import CHECK_SECONDS

_RUN = "from twisted.scripts.twistd import run; run()"

#: The folders of modules, as absolute paths, because twistd may change to another folder later.
_PATH = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)

#: The supervisor's own variables: what systemd tells it, and settings, which may hold keys.
_NOT_INHERITED = re.compile("(LISTEN_|WATCHDOG_|GATEWAYD_).*|PORT|BACKEND_URL").fullmatch

#: A worker reports twice in this time, as a service of systemd would: once per check.
_WATCHDOG_USEC = str(int(2 * CHECK_SECONDS * 1e6))


def command(twistd_options: Sequence[str]) -> list[str]:
    """
    :param twistd_options: besides those for the foreground.
    """
    run = [sys.executable, "-P", "-c", _RUN, "--nodaemon", "--pidfile="]
    return [*run, *twistd_options, "gatewayd"]


def environment(
    inherited: Mapping[str, str], number: int, folder: str, notify_socket: str
) -> dict[str, str]:
    """
    :param inherited: the supervisor's own environment.
    :param number: of the worker.
    :param folder: that the workers share.
    :param notify_socket: the address to which the worker reports.
    """
    kept = {name: value for name, value in inherited.items() if not _NOT_INHERITED(name)}
    return kept | {
        "PYTHONPATH": _PATH,
        FOLDER_VARIABLE: folder,
        "NOTIFY_SOCKET": notify_socket,
        "WATCHDOG_USEC": _WATCHDOG_USEC,
        WORKER_NUMBER: str(number),
    }


def descriptors(foreground: bool, sockets: Sequence[int], lock: int) -> dict[int, Any]:
    """As ``childFDs`` of ``spawnProcess``.

    :param foreground: whether its output goes where the supervisor's goes, and not through pipes.
    :param sockets: listening ones.
    :param lock: of the shared folder.
    """
    output: dict[int, Any] = {1: 1, 2: 2} if foreground else {1: "r", 2: "r"}
    return {0: "w", **output, **dict(enumerate([*sockets, lock], FIRST_SOCKET))}
