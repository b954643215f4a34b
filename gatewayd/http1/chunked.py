"""A chunked body of a request, read strictly.

Where it ends decides what is taken for the next request, so nothing is guessed: each line ends with
CR LF and is short, sizes are plain hexadecimal numbers. Extensions and trailers must have their
grammar's form, and are dropped. White space stands directly behind a size in no request: some
servers take it for the end of the line.

Source: RFC 9112, section 7.1.
"""

from __future__ import annotations

import re

from gatewayd.wire.errors import BadHTTP, HeadTooLarge, RequestTooLarge

#: The longest size line, extensions included.
LINE_BYTES = 1024

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = rb'"(?:[\t\x20!\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*"'
_EXTENSION = rb";[ \t]*%b(?:[ \t]*=[ \t]*(?:%b|%b))?" % (_TOKEN, _TOKEN, _QUOTED)
_SIZE = re.compile(rb"0*([0-9A-Fa-f]{1,15})(?:%b(?:[ \t]*%b)*)?" % (_EXTENSION, _EXTENSION))
_TRAILER = re.compile(_TOKEN + rb":[\t\x20-\x7e\x80-\xff]*")


class Chunked:
    """
    :param limit: the most bytes of the body.
    :param trailers: the most bytes of all trailers together.
    """

    def __init__(self, limit: int, trailers: int) -> None:
        self.body = bytearray()
        self._limit = limit
        self._trailers = trailers
        self._left = 0  # bytes to come of this chunk, with the CR LF behind them
        self._last = False

    def take(self, buffer: bytearray) -> bool:
        """Take what is here of the body off the buffer. True: it is whole.

        :raises BadHTTP: it is not one.
        :raises RequestTooLarge, HeadTooLarge: a limit is passed, or will be.
        """
        while not self._last:
            if self._left:
                if not self._take_data(buffer):
                    return False
            elif (line := self._line(buffer, LINE_BYTES)) is None:
                return False
            else:
                self._begin(line)
        while (line := self._line(buffer, self._trailers)) is not None:
            if not line:
                return True
            self._trailers -= len(line) + 2
            if not _TRAILER.fullmatch(line):
                raise BadHTTP("The request's chunked body has a trailer that is none.")
        return False

    def _begin(self, line: bytes) -> None:
        match = _SIZE.fullmatch(line)
        if match is None:
            raise BadHTTP("The request's chunked body has a size that is none.")
        size = int(match[1], 16)
        if len(self.body) + size > self._limit:
            raise RequestTooLarge(f"The request body is larger than {self._limit} bytes.")
        self._left, self._last = size + 2 if size else 0, not size

    def _take_data(self, buffer: bytearray) -> bool:
        data = max(0, self._left - 2)
        if data:
            part = buffer[:data]
            self.body += part
            del buffer[: len(part)]
            self._left -= len(part)
        if self._left > 2 or len(buffer) < 2:
            if self._left == 2 and bytes(buffer) not in (b"", b"\r"):
                raise BadHTTP("The request's chunked body has a chunk of another size.")
            return False
        if not buffer.startswith(b"\r\n"):
            raise BadHTTP("The request's chunked body has a chunk of another size.")
        del buffer[:2]
        self._left = 0
        return True

    def _line(self, buffer: bytearray, limit: int) -> bytes | None:
        """Take a line off the buffer, without its end; None if it is not all there."""
        end = buffer.find(b"\n", 0, limit + 2)
        if end < 0:
            if len(buffer) > limit + 1:
                error = HeadTooLarge if self._last else BadHTTP
                raise error("The request's chunked body has a line that is too long.")
            return None
        line = bytes(buffer[: end + 1])
        del buffer[: end + 1]
        if not line.endswith(b"\r\n"):
            raise BadHTTP("The request's chunked body has a line that does not end with CR LF.")
        return line[:-2]
