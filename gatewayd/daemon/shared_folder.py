"""The temporary folder that a supervisor and its workers share.

It holds the files of the workers' metrics and the sockets over which workers report to their
supervisor. The folder is locked as long as the supervisor or one of its workers lives. A
supervisor that was killed leaves a folder without a lock, and the next supervisor removes it. (A
lock on a folder also keeps systemd-tmpfiles from removing it as old.)
"""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import tempfile

_PREFIX = "gatewayd-workers-"


class SharedFolder:
    """
    ``path`` is the folder. ``lock`` is a descriptor that holds the lock, also in each process that
    inherits it.

    :raises OSError: the folder cannot be made.
    """

    def __init__(self) -> None:
        _remove_abandoned()
        while True:
            self.path = tempfile.mkdtemp(prefix=_PREFIX)
            self.lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(self.lock, fcntl.LOCK_SH)
            if os.path.isdir(self.path):  # else another supervisor removed it before the lock
                break
            os.close(self.lock)

    def remove(self) -> None:
        os.close(self.lock)
        shutil.rmtree(self.path, ignore_errors=True)


def _remove_abandoned() -> None:
    """Remove the folders of supervisors that were killed."""
    for path in glob.glob(os.path.join(tempfile.gettempdir(), _PREFIX + "*")):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # it belongs to another user, or has been removed meanwhile
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_uid == os.getuid():
                shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            pass  # it is in use
        finally:
            os.close(descriptor)
