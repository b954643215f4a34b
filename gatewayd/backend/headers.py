"""Twisted's headers for those who know what they put there.

Checking and spelling each of a dozen fields anew was a twentieth of a request's time.
"""

from __future__ import annotations

from twisted.web.http_headers import Headers


class ReadyHeaders(Headers):
    """
    :param fields: their values by their names, spelled as Twisted does: ``Content-Type``.
    """

    __slots__ = ()

    def __init__(self, fields: dict[bytes, list[bytes]]) -> None:
        self._rawHeaders = fields

    def copy(self) -> ReadyHeaders:
        """Itself: they belong to one message, and who copies them (treq) means the same one."""
        return self
