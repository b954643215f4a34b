"""Paths that settings allow, and requests for such paths, which cross unread.

An entry of a list of paths is one path, or the beginning of paths with a ``*`` behind it. Paths
are compared as they came: nothing is decoded, merged or resolved. A path that an entry with ``*``
allows must also be one that every server reads in the same way, so that none takes it for another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Self
from urllib.parse import unquote_to_bytes

from .call import Endpoint, PathCall
from .errors import InvalidValue, UnsupportedMediaType

#: The methods that are relayed. A HEAD becomes a GET.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})

#: What must not be escaped: letters and others that no client needs to escape, because
#: ``/v1/%63hat/completions`` is one of the gateway's own paths to a server; slash, backslash,
#: semicolon, question mark, number sign, percent sign and control characters.
_REFUSED = "2[d-f35]|3[0-9bf]|4[1-9a-f]|5[0-9acf]|6[1-9a-f]|7[0-9aef]|[01]"
#: A segment without dots that climb, and without these escapes.
_SEGMENT = (
    r"(?!\.{1,2}(?:/|$))"
    rf"(?:[A-Za-z0-9._~!$&'()*+,=:@-]|%(?!{_REFUSED})[0-9a-f]{{2}})+"
)
_PLAIN = re.compile(f"(?:/{_SEGMENT})*/?", re.IGNORECASE)

_MEDIA_TYPE = re.compile(rb"[ -~]{1,255}")


def is_plain(path: str) -> bool:
    """Whether every server reads this path in the same way."""
    if not path.startswith("/") or not _PLAIN.fullmatch(path):
        return False
    try:  # an overlong form of UTF-8 could hide a dot or a slash
        return "%" not in path or bool(unquote_to_bytes(path).decode("utf-8"))
    except UnicodeDecodeError:
        return False


def entry_for(path: str, entries: Iterable[str]) -> str | None:
    """The first entry that allows a path; None if none does."""
    for entry in entries:
        if path == entry:
            return entry
        if entry.endswith("*") and path.startswith(entry[:-1]) and is_plain(path):
            return entry
    return None


class Declared:
    """The paths that backends declare as their own.

    :param entries: of each backend, by its name. A longer entry counts before a shorter one.
    """

    def __init__(self, entries: Mapping[str, Sequence[str]]) -> None:
        self._by_backend = {
            name: sorted(own, key=len, reverse=True) for name, own in entries.items() if own
        }

    def __bool__(self) -> bool:
        return bool(self._by_backend)

    def find(self, path: str) -> tuple[str, list[str]] | None:
        """An entry that allows a path, and the names of all backends that declare the path.

        :returns: None if there is none.
        """
        found = [(name, entry_for(path, own)) for name, own in self._by_backend.items()]
        names = [name for name, entry in found if entry is not None]
        entries = [entry for _, entry in found if entry is not None]
        return (max(entries, key=len), names) if names else None


class UnreadCall(PathCall, frozen=True):
    """A request for a declared path. Nothing of it is read, so it names no model.

    :param raw_path: as it came, without the gateway's ``root_path``.
    """

    media_type: ClassVar = _MEDIA_TYPE
    media_type_hint: ClassVar = "Send at most one Content-Type."
    any_reply: ClassVar = True

    raw_path: str = ""

    @property
    def path(self) -> str:
        return self.raw_path

    @classmethod
    def check_media_type(cls, values: Sequence[bytes]) -> bytes:
        if not values:
            return b""
        if len(values) > 1 or not cls.media_type.fullmatch(values[0]):
            raise UnsupportedMediaType(cls.media_type_hint)
        return values[0]

    @classmethod
    def parse(cls, endpoint: Endpoint, body: bytes, content_type: bytes, depth: int) -> Self:
        if body and endpoint.method in ("GET", "DELETE"):
            raise InvalidValue(f"A {endpoint.method} request has no body.")
        return cls(endpoint, body, content_type if body else b"", None, False)

    def located(self, variables: Mapping[str, str], target: bytes) -> Self:
        _, mark, query = target.decode("ascii").partition("?")
        return type(self)(
            self.endpoint,
            self.body,
            self.content_type,
            None,
            False,
            query=mark + query,
            raw_path=variables["path"],
        )


def row_for(entry: str, method: str) -> Endpoint:
    """The endpoint of a declared path.

    :param method: one of :data:`METHODS`.
    """
    return Endpoint(
        entry, UnreadCall, None, opaque=True, method="GET" if method == "HEAD" else method
    )
