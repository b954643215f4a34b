"""Writes the heads of requests and responses.

Names and values are written as given: the caller has checked that they hold no line break.

Source: RFC 9112.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus

_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %b" % (status.value, status.phrase.encode("ascii"))
    for status in HTTPStatus
}


def header_lines(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Header lines, each with its line end.

    :param fields: name and value of each, in order.
    """
    return b"".join([b"%b: %b\r\n" % field for field in fields])


def request_head(method: bytes, target: bytes, lines: bytes) -> bytes:
    """The head of a request, with the empty line at its end.

    :param lines: the header lines, each with its line end.
    """
    return b"%b %b HTTP/1.1\r\n%b\r\n" % (method, target, lines)


def response_head(status: int, fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The head of a response, with the empty line at its end.

    :param fields: name and value of each header line, in order.
    """
    return whole_head(response_start(status, ()), fields)


def response_start(status: int, fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The first lines of the head of a response, for :func:`whole_head`."""
    line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d Error" % status
    return b"\r\n".join((line, *map(b": ".join, fields)))


def whole_head(start: bytes, fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A head, with the empty line at its end, from its first lines and the other fields."""
    return b"\r\n".join((start, *map(b": ".join, fields), b"\r\n"))


#: Asks the client to send the body that its request announced.
CONTINUE = response_head(100, ())
