"""The folder in which workers keep their metrics and reach their supervisor.

It is locked while the supervisor or one of its workers lives. So a supervisor that was killed
leaves a folder without a lock, and the next one removes it. (A lock on a folder also keeps
systemd-tmpfiles from ageing it.)
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
    ``path`` is the folder, ``lock`` a descriptor that holds the lock, also in a process that has
    inherited it.

    :raises OSError: it cannot be made.
    """

    def __init__(self) -> None:
        _remove_left()
        while True:
            self.path = tempfile.mkdtemp(prefix=_PREFIX)
            self.lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(self.lock, fcntl.LOCK_SH)
            if os.path.isdir(self.path):  # else another supervisor has removed it just before
                break
            os.close(self.lock)

    def remove(self) -> None:
        os.close(self.lock)
        shutil.rmtree(self.path, ignore_errors=True)


def _remove_left() -> None:
    """Remove the folders of supervisors that were killed."""
    for path in glob.glob(os.path.join(tempfile.gettempdir(), _PREFIX + "*")):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # another user's, or gone meanwhile
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_uid == os.getuid():
                shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            pass  # it is in use
        finally:
            os.close(descriptor)
