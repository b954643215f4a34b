"""Files that settings name; they are read together with the settings.

A setting holds the content of its file, not only the name. So settings are equal if their files
have the same content, a reload notices a file that was replaced under its old name, and a worker
process that is handed settings needs no file. Only regular files are read: a FIFO could block the
daemon for ever, and a reload could not read it a second time.
"""

import os
import stat

import attrs

from .values import Secret, secret

_LARGEST = 2**20  # bytes; a wrong file name must not fill the memory
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFDIR: "a directory",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@attrs.frozen(repr=False)
class File:
    """The content of a file, with its path and mode. Only the content counts for equality."""

    path: str = attrs.field(eq=False)
    content: bytes
    mode: int = attrs.field(default=stat.S_IFREG | stat.S_IRUSR, eq=False)
    """As in ``st_mode``."""

    def __repr__(self) -> str:
        return f"<file {self.path}>"

    def readable_by(self, others: int) -> bool:
        """Whether other users can read the file.

        False for a credential that systemd made for this service: its access list makes the mode
        look as if the group could read it.

        :param others: ``stat.S_IRGRP``, ``stat.S_IROTH`` or both.
        """
        return bool(self.mode & others) and not _is_credential(self.path)


def read_file(path: str) -> File:
    """
    :raises ValueError: the file is not a regular file, is too large, or cannot be read.
    """
    if "\0" in path:
        raise ValueError("cannot be read (not a file name), expected a readable file")
    try:
        # Check before opening, because opening a device may have side effects. Check again after
        # it, because another file may have replaced the first one.
        _must_be_regular(os.stat(path).st_mode)
        with open(os.open(path, _READ), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            _must_be_regular(mode)
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror}), expected a readable file") from None
    if len(content) > _LARGEST:
        raise ValueError("is too large, expected a file of at most 1 MiB")
    return File(path, content, mode)


def read_secret(path: str) -> tuple[Secret, File]:
    """Read a file that contains one key or token and perhaps a line end.

    :raises ValueError: the file cannot be read, or contains something else.
    """
    file = read_file(path)
    # Decoding Latin-1 cannot fail; secret() refuses what is not ASCII.
    return secret(file.content.decode("latin-1").rstrip("\r\n")), file


def _must_be_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise ValueError(f"is {kind}, expected a regular file")


def _is_credential(path: str) -> bool:
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    return bool(folder) and os.path.dirname(os.path.abspath(path)) == folder
