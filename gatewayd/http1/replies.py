"""One reply as a backend sends it: llhttp, and what it leaves open.

llhttp parses, strictly. Added here: limits on the head and on interim replies, framing told apart
(chunked, length, until close), codings refused because none was asked for, surplus bytes.
"""

from __future__ import annotations

import re
from typing import Any

import httptools

from gatewayd.wire.errors import BadReply, UpstreamError

#: Interim (1xx) replies before the real one. Each costs work and says nothing.
MAX_INTERIM = 1000

_LARGE = "The head of the backend's reply is too large."
_ENDLESS = "The backend sent framing or trailers without end."

_KEEP_ALIVE = re.compile(rb"(timeout|max)\s*=\s*(\d{1,9})", re.IGNORECASE)


class ReplyParser:
    """Reads one reply; :meth:`feed` it, then look at what is known.

    :param max_head: the most bytes that its head may take; also the most in a row that are no body
        (sizes of chunks, their extensions, trailers). llhttp gathers a field until its line ends.
    """

    def __init__(self, max_head: int) -> None:
        self._max_head = max_head
        self._lines_size = self._interim = 0
        self._head_ended = False  # within what is fed
        self._empty = 0  # bytes since a head ended or since the last byte of the body
        self._lines: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._begun = False
        #: Whether any byte came.
        self.answered = False
        #: Of the head; 0 until it is complete.
        self.code = 0
        #: Values by name, as in ``Content-Type``; without those of framing, cookies, connection.
        self.fields: dict[bytes, list[bytes]] = {}
        #: Bytes of the body, where a Content-Length says so.
        self.length: int | None = None
        #: Whether something but the connection's end says where the body ends.
        self.framed = False
        self.complete = False
        #: Why it cannot be read any further.
        self.problem: UpstreamError | None = None
        #: Whether the connection can take another request, and what was said about that.
        self.keep_alive = False
        self.keep_alive_seconds: float | None = None
        self.keep_alive_replies: int | None = None
        self.on_body = self._body.append  # before the parser is made: it looks for that once
        self._parser: Any = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> bytes:
        """Take what came; return the bytes of the body in it."""
        self.answered = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._wrong(BadReply("The backend switched to another protocol."))
        except httptools.HttpParserError as e:
            cause = e.__context__
            self._wrong(
                cause
                if isinstance(cause, UpstreamError)
                else BadReply("The backend's reply is not valid HTTP.", detail=str(e))
            )
        body = self._body
        if not body:
            self._count_empty(len(data))
            return b""
        self._empty = 0
        received = body[0] if len(body) == 1 else b"".join(body)
        body.clear()
        return received

    def _count_empty(self, size: int) -> None:
        """Bytes came and none of the body: of a head, or of framing and trailers."""
        if self._head_ended:
            self._head_ended, self._empty = False, 0
            return
        self._empty += size
        if self._empty > self._max_head and self.problem is None:
            self._wrong(BadReply(_ENDLESS if self.code else _LARGE))

    def close(self) -> None:
        """Nothing more will be read. The parser holds this, and this holds it."""
        self._parser = None

    def _wrong(self, problem: UpstreamError) -> None:
        if self.complete:  # what follows a whole reply is nobody's; whose it is next is not known
            self.keep_alive = False
        else:
            self.problem = problem

    # -- llhttp calls these while it is fed; what they raise comes out of feed_data ----------

    def on_message_begin(self) -> None:
        if self._begun and self.complete:
            raise BadReply("The backend sent more than its reply.")
        self._begun = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.code:  # else it is a trailer: nothing here reads those
            self._lines.append((name.lower(), value.strip(b" \t")))  # no part of it: RFC 9110, 5.5
            self._lines_size += len(name) + len(value) + 4

    def on_headers_complete(self) -> None:
        self._head_ended = True
        code = self._parser.get_status_code()
        if code == 101:
            raise BadReply("The backend switched to another protocol.")
        if code < 200:
            self._interim += 1
            self._lines.clear()
            if self._interim > MAX_INTERIM:
                raise BadReply("The backend sent interim replies without end.")
            self._lines_size = 0
            return
        if self._lines_size > self._max_head:
            raise BadReply(_LARGE)
        self._read_head()
        if code in (204, 304):
            self.framed = True
        self.code = code

    def on_message_complete(self) -> None:
        if self.code:  # else it was an interim reply
            self.complete = True
            self.keep_alive = self._parser.should_keep_alive()

    # ----------------------------------------------------------------------------------------

    def _read_head(self) -> None:
        fields = self.fields
        for name, value in self._lines:
            if name == b"content-length":
                self.length = int(value)
                self.framed = True
            elif name == b"transfer-encoding":
                if value.lower() != b"chunked":
                    raise BadReply("The backend used an unknown transfer coding.")
                self.framed = True
            elif name == b"content-encoding":
                if value.lower() != b"identity":
                    raise BadReply("The backend used a content coding that was not asked for.")
            elif name == b"keep-alive":
                self._read_keep_alive(value)
            elif name not in (b"set-cookie", b"connection"):
                fields.setdefault(name.title(), []).append(value)

    def _read_keep_alive(self, value: bytes) -> None:
        for key, number in _KEEP_ALIVE.findall(value):
            if key.lower() == b"max":
                self.keep_alive_replies = int(number)
            else:
                self.keep_alive_seconds = float(number)
