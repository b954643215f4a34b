"""Files that settings name, read when the settings are.

A setting holds what was in its file, not only the name: settings are equal if their files had the
same content, a reload sees a file that was renewed under its old name, and a process that is given
settings needs no file. Only regular files are read: a FIFO could block the daemon for ever, and a
reload could not read it a second time.
"""

import os
import stat

import attrs

from .values import Secret, secret

_LARGEST = 2**20  # of any file that a setting names: a wrong one must not fill the memory
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
    """A file's content, and how it was found. Two are equal if their contents are."""

    path: str = attrs.field(eq=False)
    content: bytes
    mode: int = attrs.field(default=stat.S_IFREG | stat.S_IRUSR, eq=False)
    """As in ``st_mode``."""

    def __repr__(self) -> str:
        return f"<file {self.path}>"

    def readable_by(self, others: int) -> bool:
        """Whether the mode lets others read it: ``stat.S_IRGRP``, ``stat.S_IROTH`` or both.

        False for a credential that systemd made for this service alone: its access list makes the
        mode look as if a group could read it.
        """
        return bool(self.mode & others) and not _is_credential(self.path)


def read_file(path: str) -> File:
    """
    :raises ValueError: it is not a regular file, too large, or cannot be read.
    """
    if "\0" in path:
        raise ValueError("cannot be read (not a file name), expected a readable file")
    try:
        # Looked at before it is opened, which has effects on devices, and after, because another
        # file may have taken its place.
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


def secret_file(path: str) -> tuple[Secret, File]:
    """The key in a file, without its line end.

    :raises ValueError: the file cannot be read, or holds no key.
    """
    file = read_file(path)
    # Latin-1 never fails; what is not ASCII is refused by secret().
    return secret(file.content.decode("latin-1").rstrip("\r\n")), file


def _must_be_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise ValueError(f"is {kind}, expected a regular file")


def _is_credential(path: str) -> bool:
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    return bool(folder) and os.path.dirname(os.path.abspath(path)) == folder
