"""Reads a chunked request body strictly.

Its end decides where the next request begins, so nothing is guessed: each line must be short and
end with CR LF, and each size must be a plain hexadecimal number. Extensions and trailers must be
valid, and are dropped. White space directly after a size is refused, because some servers take it
for the end of the line.

Source: RFC 9112, section 7.1.
"""

from __future__ import annotations

import re

from gatewayd.wire.errors import BadHTTP, HeadTooLarge, RequestTooLarge

#: The longest size line in bytes, extensions included.
LINE_BYTES = 1024

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = rb'"(?:[\t\x20!\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*"'
_EXTENSION = rb";[ \t]*%b(?:[ \t]*=[ \t]*(?:%b|%b))?" % (_TOKEN, _TOKEN, _QUOTED)
_SIZE = re.compile(rb"0*([0-9A-Fa-f]{1,15})(?:%b(?:[ \t]*%b)*)?" % (_EXTENSION, _EXTENSION))
_TRAILER = re.compile(_TOKEN + rb":[\t\x20-\x7e\x80-\xff]*")


class Chunked:
    """
    :param limit: the largest body, in bytes.
    :param trailers: the largest size of all trailers together, in bytes.
    """

    def __init__(self, limit: int, trailers: int) -> None:
        self.body = bytearray()
        self._limit = limit
        self._trailers = trailers
        self._remaining = 0  # bytes of the current chunk, with the CR LF after them
        self._last = False  # the last chunk was read; trailers follow

    def take(self, buffer: bytearray) -> bool:
        """Remove the bytes of the body from the buffer. Returns True if the body is complete.

        :raises BadHTTP: the body is not valid.
        :raises RequestTooLarge, HeadTooLarge: the body or its trailers exceed a limit.
        """
        while not self._last:
            if self._remaining:
                if not self._take_data(buffer):
                    return False
            elif (line := self._line(buffer, LINE_BYTES)) is None:
                return False
            else:
                self._begin_chunk(line)
        while (line := self._line(buffer, self._trailers)) is not None:
            if not line:
                return True
            self._trailers -= len(line) + 2
            if not _TRAILER.fullmatch(line):
                raise BadHTTP("The request's chunked body has an invalid trailer.")
        return False

    def _begin_chunk(self, line: bytes) -> None:
        match = _SIZE.fullmatch(line)
        if match is None:
            raise BadHTTP("The request's chunked body has an invalid chunk size.")
        size = int(match[1], 16)
        if len(self.body) + size > self._limit:
            raise RequestTooLarge(f"The request body is larger than {self._limit} bytes.")
        self._remaining, self._last = size + 2 if size else 0, not size

    def _take_data(self, buffer: bytearray) -> bool:
        data = max(0, self._remaining - 2)
        if data:
            part = buffer[:data]
            self.body += part
            del buffer[: len(part)]
            self._remaining -= len(part)
        if self._remaining > 2 or len(buffer) < 2:
            if self._remaining == 2 and bytes(buffer) not in (b"", b"\r"):
                raise BadHTTP("The request's chunked body has a chunk of the wrong size.")
            return False
        if not buffer.startswith(b"\r\n"):
            raise BadHTTP("The request's chunked body has a chunk of the wrong size.")
        del buffer[:2]
        self._remaining = 0
        return True

    def _line(self, buffer: bytearray, limit: int) -> bytes | None:
        """Remove a line from the buffer and return it without CR LF; None if it is incomplete."""
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
