"""Checks the head of a request, and refuses what two parsers could read differently.

llhttp parses the head strictly. This module adds what llhttp is lenient about (request lines,
transfer codings) and what it does not check (``Host``, ``Expect``).

Source: RFC 9112.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from gatewayd.wire.errors import (
    BadHTTP,
    ExpectationFailed,
    HeadTooLarge,
    MethodNotAllowed,
    RequestTooLarge,
)

_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) HTTP/1\.([0-9])\r")
_URL = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://.*")
_HOST = re.compile(rb"(?:[A-Za-z0-9._~-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_LENGTH = re.compile(rb"[0-9]{1,18}")
#: The header of the answer to an unknown method, or to ``CONNECT``.
ALLOW = ((b"allow", b"GET, HEAD, POST, OPTIONS"),)
#: The most header lines of a request. It is Twisted's limit; other servers take 100.
MAX_HEADERS = 500


class Fields(dict[bytes, list[bytes]]):
    """All values of each header field, by its lower-case name, in the order of the names.

    A lookup runs no Python code, and a request needs many. llhttp has checked names and values.
    Spaces and tabs around a value are not part of it (RFC 9110, 5.5); no other character counts as
    white space.
    """

    __slots__ = ()

    def __init__(self, pairs: Iterable[tuple[bytes, bytes]] = ()) -> None:
        for name, value in pairs:
            name, value = name.lower(), value.strip(b" \t")
            if name in self:
                self[name].append(value)
            else:
                self[name] = [value]


class RequestLine(msgspec.Struct, frozen=True):
    method: bytes
    target: bytes
    minor: bytes  # of HTTP/1.x: b"0" or b"1". A later version is read as 1.1 (RFC 9110, 2.5)

    @classmethod
    def parse(cls, line: bytes) -> RequestLine:
        """Parse a request line.

        :param line: with its CR, without its LF.
        """
        match = _REQUEST_LINE.fullmatch(line)
        if match is None:
            raise BadHTTP("The request line is not 'METHOD target HTTP/1.1' and CR LF.")
        method, target, minor = match.groups()
        return cls(method, target, min(minor, b"1"))

    def check_target(self) -> None:
        """Check that the target has a form that the method allows (RFC 9112, 3.2).

        :raises BadHTTP, MethodNotAllowed: it has not.
        """
        if self.method == b"CONNECT":
            raise MethodNotAllowed("This server opens no tunnels.", headers=ALLOW)
        if self.method == b"OPTIONS" and self.target == b"*":
            return
        if not self.target.startswith(b"/") and not _URL.fullmatch(self.target):
            raise BadHTTP("The request's target is neither a path nor a URL.")

    @property
    def path(self) -> bytes:
        """The path of the target as it was received, without query, scheme and authority."""
        if not self.target.startswith(b"/"):
            scheme, separator, rest = self.target.partition(b"://")
            if separator and scheme.lower() in (b"http", b"https"):
                _, slash, rest = rest.partition(b"?")[0].partition(b"/")
                return slash + rest or b"/"
        return self.target.partition(b"?")[0]


class Framing(msgspec.Struct, frozen=True):
    """How a request's body is framed, and whether its connection can be used again.

    :param length: of the body, in bytes; None if the body is chunked.
    :param persistent: whether the client allows another request on the connection.
    :param wants_continue: whether the client waits for ``100 Continue`` before it sends the body.
    """

    length: int | None
    persistent: bool
    wants_continue: bool

    @classmethod
    def of(cls, line: RequestLine, fields: Fields) -> Framing:
        """Read the framing from a head.

        :raises BadHTTP, ExpectationFailed, HeadTooLarge, MethodNotAllowed, RequestTooLarge: the
            request cannot be accepted.
        """
        line.check_target()
        if sum(map(len, fields.values())) > MAX_HEADERS:
            raise HeadTooLarge(f"The request has more than {MAX_HEADERS} headers.")
        values = fields.get
        hosts = values(b"host")
        if hosts is None:
            if line.minor == b"1":
                raise BadHTTP("The request must have exactly one Host header.")
        elif len(hosts) > 1:
            raise BadHTTP("The request must have exactly one Host header.")
        elif hosts[0] and not _HOST.fullmatch(hosts[0]):
            raise BadHTTP("The Host header is not a host name or address with an optional port.")
        codings, lengths = values(b"transfer-encoding"), values(b"content-length")
        if codings and [c.lower() for c in codings] != [b"chunked"]:
            raise BadHTTP("The only supported transfer coding is a single 'chunked'.")
        if codings and (lengths or line.minor == b"0"):
            raise BadHTTP("A chunked body requires HTTP/1.1 and excludes a Content-Length.")
        if lengths and not _LENGTH.fullmatch(lengths[0]):
            raise RequestTooLarge("The request body is too large.")
        expectations = values(b"expect")
        if expectations and [e.lower() for e in expectations] != [b"100-continue"]:
            raise ExpectationFailed("The only supported expectation is '100-continue'.")
        options = values(b"connection")
        closes = options is not None and b"close" in list_of(options)
        return cls(
            length=None if codings else int(lengths[0]) if lengths else 0,
            persistent=line.minor == b"1" and not closes,
            wants_continue=bool(expectations) and line.minor == b"1",
        )


def list_of(values: Iterable[bytes]) -> list[bytes]:
    """The elements, in lower case, of a field that is a list with commas.

    :param values: all values of the field.
    """
    return [element.strip(b" \t") for element in b",".join(values).lower().split(b",")]
