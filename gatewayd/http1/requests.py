"""Parses the requests of one connection: bytes in, heads and bodies out, within limits.

A head is collected until its empty line, then llhttp parses it whole, unless the caller knows it. A
body is collected in memory. What is not valid raises a :class:`gatewayd.wire.errors.GatewayError`;
the bytes after it must not be parsed.
"""

from __future__ import annotations

from typing import Any

import httptools

from gatewayd.wire.errors import BadHTTP, HeadTooLarge, MethodNotAllowed, TargetTooLong

from .chunked import Chunked
from .head import ALLOW, Fields, RequestLine

_UNKNOWN_LINE = RequestLine(b"GET", b"", b"1")


class RequestParser:
    """Append received bytes to :attr:`buffer`, then take a head and a body in turns.

    A head that :meth:`take_head` returns is either given to :meth:`parse` or was parsed before.
    """

    __slots__ = (
        "_body",
        "_chunked",
        "_headers",
        "_parsed",
        "_parser",
        "_remaining",
        "buffer",
        "line",
    )

    def __init__(self) -> None:
        self.buffer = b""
        #: The request line of the current head, once it is complete.
        self.line = _UNKNOWN_LINE
        self._headers: list[tuple[bytes, bytes]] = []
        self._parser: Any = None
        self._parsed = False  # whether llhttp has parsed the current head
        self._body = bytearray()
        self._remaining = 0  # bytes of the body that were not received
        self._chunked: Chunked | None = None  # if the body is chunked

    @property
    def gathered(self) -> int:
        """Bytes in memory of a body that is not complete."""
        return len(self._body if self._chunked is None else self._chunked.body)

    def clear(self) -> None:
        """Drop all received bytes."""
        self.buffer = b""
        self._body = bytearray()
        self._chunked = None

    def close(self) -> None:
        """Break the reference cycle with llhttp's parser. Nothing more can be parsed."""
        self._parser = None

    def take_head(self, limit: int) -> bytes | None:
        """Remove a head from the buffer, with its empty line; None if more bytes are needed.

        :param limit: the largest head, in bytes.
        """
        self.line, self._parsed = _UNKNOWN_LINE, False  # not those of the previous request
        buffer = self.buffer
        if buffer.startswith(b"\r\n"):  # some old clients send an empty line after a body
            buffer = self.buffer = buffer[2:]
        end = buffer.find(b"\r\n\r\n", 0, limit + 4) + 4
        if 4 <= end <= limit:
            self.buffer = buffer[end:]
            return buffer[:end]
        self._parse_line(buffer[: limit + 2])
        if self.line is _UNKNOWN_LINE and len(buffer) > limit:
            raise TargetTooLong(f"The request line is longer than {limit} bytes.")
        if len(buffer) > limit:
            raise HeadTooLarge(f"The request's head is longer than {limit} bytes.")
        return None

    def parse(self, head: bytes) -> Fields:
        """Parse a head that :meth:`take_head` has returned."""
        minor_at = self._parse_line(head) - 2
        if head[minor_at] > ord("1"):  # llhttp does not know HTTP/1.2 and later
            head = head[:minor_at] + b"1" + head[minor_at + 1 :]
        self._feed(head)
        self._parsed = True
        fields = Fields(self._headers)
        self._headers.clear()  # free the memory: the connection may be idle for long
        return fields

    def expect_body(self, length: int | None, limit: int, line_limit: int) -> None:
        """Parse a body next.

        :param length: in bytes; None if the body is chunked.
        :param limit: the largest chunked body, in bytes.
        :param line_limit: the largest size of its trailers, in bytes.
        """
        if length is None:
            self._chunked = Chunked(limit, line_limit)
            self._parser = None  # llhttp would expect the chunks
        else:
            self._remaining = length

    def body(self) -> bytes | None:
        """Remove the bytes of the body from the buffer. Returns the body if it is complete."""
        buffer = self.buffer
        if self._chunked is not None:
            rest = bytearray(buffer)
            complete = self._chunked.take(rest)
            self.buffer = bytes(rest)
            if not complete:
                return None
            body, self._chunked = bytes(self._chunked.body), None
            return body
        data, self.buffer = buffer[: self._remaining], buffer[self._remaining :]
        if self._parsed and self._parser is not None:
            self._parser.feed_data(data)  # llhttp counts the bytes until the next head
        self._remaining -= len(data)
        if not self._remaining and not self._body:
            return data  # received in one piece, as most bodies are
        self._body += data
        if self._remaining:
            return None
        body, self._body = bytes(self._body), bytearray()
        return body

    def _parse_line(self, head: bytes) -> int:
        """Parse the request line if it is complete. Returns where it ends; -1 if it does not.

        llhttp accepts some request lines that another parser would read differently.
        """
        end = head.find(b"\n")
        if end >= 0:
            self.line = RequestLine.parse(head[:end])
        return end

    def _feed(self, head: bytes) -> None:
        if self._parser is None:
            self._parser = httptools.HttpRequestParser(self)
        self._headers.clear()
        try:
            self._parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            # A server may ignore a request to upgrade. llhttp would take the body for data of the
            # new protocol, so it is not fed the body; the next request has a new parser.
            self._parser = None
        except httptools.HttpParserInvalidMethodError:
            raise MethodNotAllowed("This method is not known.", headers=ALLOW) from None
        except httptools.HttpParserError as e:
            raise BadHTTP(f"The request is not valid HTTP: {e}.") from None

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by llhttp."""
        self._headers.append((name, value))
