"""Header fields sent to a backend, and those of its replies that cross to the client."""

from __future__ import annotations

import re

from twisted.web.http_headers import Headers

#: Fields of a reply that cross to the client. All others stay behind.
_CROSSING = frozenset({b"retry-after", b"retry-after-ms", b"x-should-retry"})
_CROSSING_PREFIX = b"x-ratelimit-"
#: A value that may cross.
_VALUE = re.compile(rb"[ -~]{0,255}")
#: ``audio/mpeg; rate=24000``: a media type and its parameters.
_CONTENT_TYPE = re.compile(
    rb"\s*(%b/%b)\s*(;.*)?" % ((rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}",) * 2)
)
#: Parameters that may cross.
_PARAMETERS = re.compile(rb";[ -~]{1,255}")


class UncheckedHeaders(Headers):
    """Twisted's headers, made from fields that are known to be valid.

    Twisted would check and spell each field again, which was a twentieth of a request's time.

    :param fields: their values by their names, spelled as Twisted does: ``Content-Type``.
    """

    __slots__ = ()

    def __init__(self, fields: dict[bytes, list[bytes]]) -> None:
        self._rawHeaders = fields

    def copy(self) -> UncheckedHeaders:
        """These headers: they are used for one message, and treq copies them for that message."""
        return self


def crossing(headers: Headers) -> tuple[str, str, tuple[tuple[bytes, bytes], ...]]:
    """What of a reply's headers may cross to the client.

    :returns: the media type in lower case; its parameters, with the ``;`` before them, or "" if
        they may not cross; the other fields, with names in lower case.
    """
    media_type = parameters = ""
    fields = []
    for name, values in headers.getAllRawHeaders():
        lower, value = name.lower(), values[0]
        if lower == b"content-type":
            media_type, parameters = _content_type(value)
        elif _crosses(lower) and _VALUE.fullmatch(value):
            fields.append((lower, value))
    return media_type, parameters, tuple(fields)


def _crosses(name: bytes) -> bool:
    return name in _CROSSING or name.startswith(_CROSSING_PREFIX)


def _content_type(value: bytes) -> tuple[str, str]:
    found = _CONTENT_TYPE.fullmatch(value)
    if found is None:
        return "", ""
    parameters = (found[2] or b"").rstrip()
    safe = _PARAMETERS.fullmatch(parameters) is not None
    return found[1].decode("ascii").lower(), parameters.decode("ascii") if safe else ""
