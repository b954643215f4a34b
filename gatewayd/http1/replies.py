"""Parses one reply of a backend.

llhttp parses strictly. This module adds limits on the head, on interim replies and on framing; it
tells how the end of the body is known (chunks, length, end of the connection); and it refuses
content codings, because none is requested, and bytes after the reply.
"""

from __future__ import annotations

import re
from itertools import chain
from typing import Any

import httptools

from gatewayd.wire.errors import BadReply, UpstreamError

#: The most interim (1xx) replies before the final one.
MAX_INTERIM = 1000

_LARGE = "The head of the backend's reply is too large."
_ENDLESS = "The backend sent framing or trailers without end."

#: Fields that concern only the connection and the framing of the reply, or must not cross.
_ABOUT_CONNECTION = frozenset(
    (
        b"connection",
        b"content-encoding",
        b"content-length",
        b"keep-alive",
        b"set-cookie",
        b"transfer-encoding",
    )
)

_WITHOUT_BODY = frozenset({204, 304})

_KEEP_ALIVE = re.compile(rb"(timeout|max)\s*=\s*(\d{1,9})", re.IGNORECASE)


class ReplyParser:
    """Parses one reply. Call :meth:`feed`, then read the attributes.

    :param max_head: the largest head, in bytes. It is also the limit of consecutive bytes that do
        not belong to the body (chunk sizes, extensions, trailers): llhttp buffers a header field
        until its line ends.
    """

    def __init__(self, max_head: int) -> None:
        self._max_head = max_head
        self._interim = 0
        self._head_ended = False  # within the bytes of this call of feed
        self._overhead = 0  # bytes since the end of a head or the last byte of the body
        self._lines: list[tuple[bytes, bytes]] = []  # header lines, then trailers
        self._body: list[bytes] = []
        #: The status code; 0 until the head is complete.
        self.code = 0
        #: The first header field of each name, with names in lower case. There may be white space
        #: around a value. Those on framing, cookies and the connection are left out.
        self.fields: dict[bytes, bytes] = {}
        #: The further fields of these names.
        self.repeated: list[tuple[bytes, bytes]] = []
        #: The Content-Length, if there is one.
        self.length: int | None = None
        #: False if only the end of the connection ends the body.
        self.framed = False
        #: Whether the reply is complete, or has a problem.
        self.over = False
        self.complete = False
        #: Why the rest cannot be parsed.
        self.problem: UpstreamError | None = None
        #: Whether the connection can be used again, and what Keep-Alive says: for how many seconds
        #: it may be idle, and how many replies it may carry.
        self.keep_alive = False
        self.keep_alive_seconds: float | None = None
        self.keep_alive_replies: int | None = None
        self.on_body = self._body.append  # set first: the parser looks it up when it is created
        self._parser: Any = httptools.HttpResponseParser(self)

    @property
    def answered(self) -> bool:
        """Whether any byte was received. For a reply without a complete head."""
        return self._overhead > 0 or self._interim > 0

    def feed(self, data: bytes) -> bytes:
        """Parse received bytes. Returns the part of the body in them."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as e:
            self.switched(data[e.args[0] :])
        except httptools.HttpParserError as e:
            cause = e.__context__
            self._set_problem(
                cause
                if isinstance(cause, UpstreamError)
                else BadReply("The backend's reply is not valid HTTP.", detail=str(e))
            )
        body = self._body
        if not body:
            self._count_overhead(len(data))
            return b""
        self._overhead = 0
        received = body[0] if len(body) == 1 else b"".join(body)
        body.clear()
        return received

    def _count_overhead(self, size: int) -> None:
        """Limit the bytes of a head, of framing and of trailers."""
        if self._head_ended:
            self._head_ended, self._overhead = False, 0
            return
        self._overhead += size
        if self._overhead > self._max_head and self.problem is None:
            self._set_problem(BadReply(_ENDLESS if self.code else _LARGE))

    def switched(self, rest: bytes) -> None:
        """The backend has switched to another protocol, although none was asked for.

        :param rest: the bytes received after the head.
        """
        self._set_problem(BadReply("The backend switched to another protocol."))

    def close(self) -> None:
        """Break the reference cycle with llhttp's parser. Nothing more can be fed."""
        self._parser = None

    def _set_problem(self, problem: UpstreamError) -> None:
        if self.complete:  # the reply is good; the bytes after it make the connection useless
            self.keep_alive = False
        else:
            self.problem, self.over = problem, True

    # -- called by llhttp; an exception here is the context of the one that feed_data raises ------

    def on_message_begin(self) -> None:
        if self.complete:
            raise BadReply("The backend sent more than its reply.")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._lines.append((name, value))

    def on_headers_complete(self) -> None:
        self._head_ended = True
        code = self._parser.get_status_code()
        if code < 200:
            if code == 101:
                raise BadReply("The backend switched to another protocol.")
            self._interim += 1
            self._lines.clear()
            if self._interim > MAX_INTERIM:
                raise BadReply("The backend sent interim replies without end.")
            return
        self._sort_lines()
        if code in _WITHOUT_BODY:
            self.framed = True
        self.code = code

    def _sort_lines(self) -> None:
        """Read the fields of the head that is complete."""
        lines = self._lines
        if sum(map(len, chain.from_iterable(lines))) + 4 * len(lines) > self._max_head:
            raise BadReply(_LARGE)
        fields = self.fields
        for name, value in lines:
            name = name.lower()
            if name in _ABOUT_CONNECTION:
                # White space around a value is not part of it (RFC 9110, 5.5).
                self._read_about_connection(name, value.strip(b" \t"))
            elif name in fields:
                self.repeated.append((name, value))
            else:
                fields[name] = value
        lines.clear()

    def on_message_complete(self) -> None:
        if self.code:  # otherwise it was an interim reply
            self.complete = self.over = True
            self.keep_alive = self._parser.should_keep_alive()

    def _read_about_connection(self, name: bytes, value: bytes) -> None:
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

    def _read_keep_alive(self, value: bytes) -> None:
        for key, number in _KEEP_ALIVE.findall(value):
            if key.lower() == b"max":
                self.keep_alive_replies = int(number)
            else:
                self.keep_alive_seconds = float(number)
