"""What a client sends: bytes in, heads and bodies out, within limits.

A head is gathered until its empty line and given to llhttp whole; a body is gathered in memory.
What cannot be read for certain raises a :class:`gatewayd.wire.errors.GatewayError`, and nothing
behind it is to be read.
"""

from __future__ import annotations

from typing import Any

import httptools

from gatewayd.wire.errors import BadHTTP, HeadTooLarge, MethodNotAllowed, TargetTooLong

from .chunked import Chunked
from .head import ALLOW, Fields, RequestLine

_UNKNOWN_LINE = RequestLine(b"GET", b"", b"1")


class Incoming:
    """The bytes of one connection: heads and bodies in turns."""

    __slots__ = ("_body", "_body_left", "_chunked", "_headers", "_parser", "buffer", "line")

    def __init__(self) -> None:
        self.buffer = bytearray()
        #: The request line of the head that is being read, as soon as that is known.
        self.line = _UNKNOWN_LINE
        self._headers: list[tuple[bytes, bytes]] = []
        self._parser: Any = None
        self._body = bytearray()
        self._body_left = 0  # bytes to come
        self._chunked: Chunked | None = None  # reads the body, if it is chunked

    @property
    def gathered(self) -> int:
        """Bytes of a body that is not whole yet."""
        return len(self._body if self._chunked is None else self._chunked.body)

    def clear(self) -> None:
        """Let go of all that came: nothing of it is wanted any more."""
        self.buffer.clear()
        self._body = bytearray()
        self._chunked = None

    def close(self) -> None:
        """Nothing more will be read. The parser holds this, and this holds it."""
        self._parser = None

    def head(self, limit: int) -> Fields | None:
        """Take a head off the buffer; None: more bytes are needed.

        :param limit: the most bytes it may have.
        """
        self.line = _UNKNOWN_LINE  # no longer that of the request before
        buffer = self.buffer
        if buffer.startswith(b"\r\n"):
            del buffer[:2]  # some old clients end a body with one too many
        end = buffer.find(b"\r\n\r\n", 0, limit + 4) + 4
        # llhttp lets some request lines pass that another parser would read differently.
        line, newline, _ = bytes(buffer[: end if end > 3 else limit + 2]).partition(b"\n")
        if newline:
            self.line = RequestLine.parse(line)
        elif len(line) > limit:
            raise TargetTooLong(f"The request line is longer than {limit} bytes.")
        if end > limit or (end < 4 and len(buffer) > limit):
            raise HeadTooLarge(f"The request's head is longer than {limit} bytes.")
        if end < 4:
            return None
        head = bytes(buffer[:end])
        del buffer[:end]
        if line[-2:-1] > b"1":  # llhttp knows no later version
            head = line[:-2] + b"1" + head[len(line) - 1 :]
        self._parse(head)
        fields = Fields(self._headers)
        self._headers.clear()  # a connection may be idle for long
        return fields

    def expect_body(self, length: int | None, limit: int, line_limit: int) -> None:
        """A body follows.

        :param length: its bytes; None where it is chunked.
        :param limit: the most bytes it may have, if it is; ``line_limit`` the same for its lines.
        """
        if length is None:
            self._chunked = Chunked(limit, line_limit)
            self._parser = None  # it would read the body, too
        else:
            self._body_left = length

    def body(self) -> bytes | None:
        """Take what is here of the body off the buffer; return it when it is whole, else None."""
        if self._chunked is not None:
            if not self._chunked.take(self.buffer):
                return None
            body, self._chunked = bytes(self._chunked.body), None
            return body
        data = bytes(self.buffer[: self._body_left])
        del self.buffer[: len(data)]
        if self._parser is not None:
            self._parser.feed_data(data)  # it counts along
        self._body_left -= len(data)
        if not self._body_left and not self._body:
            return data  # it came at once, as most do
        self._body += data
        if self._body_left:
            return None
        body, self._body = bytes(self._body), bytearray()
        return body

    def _parse(self, head: bytes) -> None:
        """Give a head to llhttp."""
        if self._parser is None:
            self._parser = httptools.HttpRequestParser(self)
        self._headers.clear()
        try:
            self._parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            # A server may ignore that wish. llhttp would take the body for the new protocol's, so
            # the body is counted here and the parser made anew for the next request.
            self._parser = None
        except httptools.HttpParserInvalidMethodError:
            raise MethodNotAllowed("This method is not known.", headers=ALLOW) from None
        except httptools.HttpParserError as e:
            raise BadHTTP(f"The request is not valid HTTP: {e}.") from None

    def on_header(self, name: bytes, value: bytes) -> None:
        """llhttp calls this while it is fed."""
        self._headers.append((name, value))
