"""The head of an HTTP/1.1 request: what two parsers could read differently is refused here.

llhttp has parsed it already, strictly. Left for this module are the points on which llhttp is
lenient (request lines, transfer codings) or silent (``Host``, ``Expect``).

Source: RFC 9112.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import attrs

from gatewayd.wire.errors import (
    BadHTTP,
    ExpectationFailed,
    HeadTooLarge,
    MethodNotAllowed,
    RequestTooLarge,
)

_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) HTTP/1\.([0-9])\r")
_TARGET = re.compile(rb"/.*|[A-Za-z][A-Za-z0-9+.-]*://.*")
_HOST = re.compile(rb"(?:[A-Za-z0-9._~-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_LENGTH = re.compile(rb"[0-9]{1,18}")
#: What a request of an unknown method, or for a tunnel, is told.
ALLOW = ((b"allow", b"GET, HEAD, POST, OPTIONS"),)
#: Header lines of a request. Twisted's own limit; other servers take 100.
MAX_HEADERS = 500


class Fields:
    """Header fields by lower-case name, in the order in which they came.

    The part of Twisted's ``Headers`` that is used here, and ten times as quick: names and values
    were checked by llhttp. Spaces and tabs around a value are no part of it (RFC 9110, 5.5), and
    no other character is taken for white space.
    """

    __slots__ = ("_values",)

    def __init__(self, pairs: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self._values: dict[bytes, list[bytes]] = {}
        for name, value in pairs:
            name, value = name.lower(), value.strip(b" \t")
            if name in self._values:
                self._values[name].append(value)
            else:
                self._values[name] = [value]

    def all(self, name: bytes) -> list[bytes]:
        """Every value of a field, by its lower-case name."""
        return self._values.get(name, [])

    def __len__(self) -> int:
        """How many lines there were."""
        return sum(map(len, self._values.values()))

    def __contains__(self, name: bytes) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[bytes]:
        """Each name once, in lower case."""
        return iter(self._values)


@attrs.frozen
class RequestLine:
    method: bytes
    target: bytes
    minor: bytes  # of HTTP/1.x: b"0" or b"1", which a later one is read as (RFC 9110, 2.5)

    @classmethod
    def parse(cls, line: bytes) -> RequestLine:
        """Read a line up to and without its LF."""
        match = _REQUEST_LINE.fullmatch(line)
        if match is None:
            raise BadHTTP("The request line is not 'METHOD target HTTP/1.1' and CR LF.")
        method, target, minor = match.groups()
        return cls(method, target, min(minor, b"1"))

    def check_target(self) -> None:
        """Refuse a target whose form the method cannot have (RFC 9112, 3.2).

        :raises BadHTTP, MethodNotAllowed: it is not one to go on with.
        """
        if self.method == b"CONNECT":
            raise MethodNotAllowed("This server opens no tunnels.", headers=ALLOW)
        if self.method == b"OPTIONS" and self.target == b"*":
            return
        if not _TARGET.fullmatch(self.target):
            raise BadHTTP("The request's target is neither a path nor a URL.")

    @property
    def path(self) -> bytes:
        """The target's path, as it came; without query, scheme and authority."""
        scheme, separator, rest = self.target.partition(b"://")
        if separator and scheme.lower() in (b"http", b"https"):
            _, slash, rest = rest.partition(b"?")[0].partition(b"/")
            return slash + rest or b"/"
        return self.target.partition(b"?")[0]


@attrs.frozen
class Framing:
    """How a request's body is framed and what becomes of its connection.

    :param length: bytes of the body; None where it is chunked.
    """

    length: int | None
    persistent: bool
    wants_continue: bool

    @classmethod
    def of(cls, line: RequestLine, fields: Fields) -> Framing:
        """Judge a head.

        :raises BadHTTP, ExpectationFailed, HeadTooLarge, MethodNotAllowed, RequestTooLarge: it is
            not one to go on with.
        """
        line.check_target()
        values = fields.all
        if len(fields) > MAX_HEADERS:
            raise HeadTooLarge(f"The request has more than {MAX_HEADERS} headers.")
        hosts = values(b"host")
        if len(hosts) > 1 or (line.minor == b"1" and not hosts):
            raise BadHTTP("The request must have exactly one Host header.")
        if hosts and hosts[0] and not _HOST.fullmatch(hosts[0]):
            raise BadHTTP("The Host header is not a host name or address with an optional port.")
        codings, lengths = values(b"transfer-encoding"), values(b"content-length")
        if codings and [c.lower() for c in codings] != [b"chunked"]:
            raise BadHTTP("The only transfer coding that is understood is one 'chunked'.")
        if codings and (lengths or line.minor == b"0"):
            raise BadHTTP("A chunked body comes in HTTP/1.1 and without a Content-Length.")
        if lengths and not _LENGTH.fullmatch(lengths[0]):
            raise RequestTooLarge("The request body is too large.")
        expectations = values(b"expect")
        if expectations and [e.lower() for e in expectations] != [b"100-continue"]:
            raise ExpectationFailed("The only expectation that is understood is '100-continue'.")
        options = b",".join(values(b"connection")).lower()
        closes = options != b"keep-alive" and b"close" in (
            option.strip(b" \t") for option in options.split(b",")
        )
        return cls(
            length=None if codings else int(lengths[0]) if lengths else 0,
            persistent=line.minor == b"1" and not closes,
            wants_continue=bool(expectations) and line.minor == b"1",
        )
