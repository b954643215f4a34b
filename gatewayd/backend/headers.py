"""Header fields sent to a backend, and those of its replies that cross to the client."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from twisted.web.http_headers import Headers

from gatewayd.http1.writing import header_lines

#: Fields of a reply that cross to the client. All others stay behind.
_CROSSING = frozenset({b"retry-after", b"retry-after-ms", b"x-should-retry"})
_CROSSING_PREFIXES = (b"x-ratelimit-", b"anthropic-ratelimit-")
#: A value that may cross.
_VALUE = re.compile(rb"[ -~]{0,255}")
#: ``audio/mpeg; rate=24000``: a media type and its parameters.
_CONTENT_TYPE = re.compile(rb"\s*(%b/%b)\s*(;.*)?" % ((rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}",) * 2))
#: Parameters that may cross.
_PARAMETERS = re.compile(rb";[ -~]{1,255}")


class RequestHeaders(Headers):
    """The header lines of one request. The caller has encoded them and knows that they are valid.

    Twisted's headers would check and spell each field again. These cannot be changed, and are
    parsed only if an agent other than gatewayd's own reads them.

    :param lines: each with the line end.
    :param key: the API key in them, which no error text may contain; "" if there is none.
    """

    __slots__ = ("key", "lines")

    def __init__(self, lines: bytes, key: str = "") -> None:
        self.lines = lines
        self.key = key

    @classmethod
    def of(cls, headers: Headers | None) -> RequestHeaders:
        """Encode Twisted's headers."""
        fields = () if headers is None else headers.getAllRawHeaders()
        return cls(header_lines((name, value) for name, values in fields for value in values))

    def with_fields(self, fields: Iterable[tuple[bytes, bytes]]) -> RequestHeaders:
        """These headers and further ones."""
        return RequestHeaders(self.lines + header_lines(fields), self.key)

    def _parsed(self) -> Headers:
        headers = Headers()
        for line in self.lines.splitlines():
            name, _, value = line.partition(b": ")
            headers.addRawHeader(name, value)
        return headers

    def getAllRawHeaders(self) -> Iterator[tuple[bytes, Sequence[bytes]]]:
        return self._parsed().getAllRawHeaders()

    def getRawHeaders(self, name: Any, default: Any = None) -> Any:
        return self._parsed().getRawHeaders(name, default)

    def hasHeader(self, name: Any) -> bool:
        return self._parsed().hasHeader(name)

    def __repr__(self) -> str:
        return "<RequestHeaders>"  # never shows the backend's key

    def copy(self) -> RequestHeaders:
        return self


def crossing(fields: dict[bytes, bytes]) -> tuple[str, str, tuple[tuple[bytes, bytes], ...]]:
    """What of a reply's header fields may cross to the client.

    :param fields: with names in lower case. There may be white space around the values.
    :returns: the media type in lower case; its parameters, with the ``;`` before them, or "" if
        they may not cross; the other fields.
    """
    media_type, parameters = _content_type(fields.get(b"content-type", b""))
    others: tuple[tuple[bytes, bytes], ...] = ()
    # Two passes in C, because most replies have none of these.
    if not _CROSSING.isdisjoint(fields) or b"-ratelimit-" in b" ".join(fields):
        others = tuple(
            (name, stripped)
            for name, value in fields.items()
            if (name in _CROSSING or name.startswith(_CROSSING_PREFIXES))
            and _VALUE.fullmatch(stripped := value.strip(b" \t"))
        )
    return media_type, parameters, others


@lru_cache(maxsize=64)
def _content_type(value: bytes) -> tuple[str, str]:
    found = _CONTENT_TYPE.fullmatch(value)
    if found is None:
        return "", ""
    parameters = (found[2] or b"").rstrip()
    safe = _PARAMETERS.fullmatch(parameters) is not None
    return found[1].decode("ascii").lower(), parameters.decode("ascii") if safe else ""
