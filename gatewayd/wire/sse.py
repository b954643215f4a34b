"""Server-Sent Events: an incremental parser, and the encoder.

The parser follows the WHATWG algorithm: CR, LF and CRLF line ends, a byte order mark, comments,
several ``data`` lines. It adds what a gateway needs: a limit on one event, work that is linear in
the bytes for any segmentation, and a flag that data of an incomplete event came. Payloads stay
bytes; nothing is decoded.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

from __future__ import annotations

COMMENT = b": ping\n\n"
DONE = b"data: [DONE]\n\n"

#: An event's name (empty if it has none) and its data, the lines joined by LF.
Event = tuple[bytes, bytes]

_NEWLINE = (b"\n", b"\r")


class EventTooLarge(ValueError):
    """One event or one line is larger than the limit."""

    #: The events that were complete before it.
    events: tuple[Event, ...] = ()


def encode(payload: bytes, name: bytes = b"") -> bytes:
    """Frame one event. Line ends in the payload become spaces; JSON means the same with both."""
    if b"\n" in payload or b"\r" in payload:
        payload = payload.replace(b"\n", b" ").replace(b"\r", b" ")
    if name:
        return b"event: %b\ndata: %b\n\n" % (name, payload)
    return b"data: %b\n\n" % payload


class Parser:
    """Turns the bytes of an event stream into events.

    :param limit: the most bytes that one event may take.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._partial = bytearray()  # a line whose end has not come
        self._size = 0  # bytes of the data lines of the current event
        self._data: list[bytes] = []
        self._name = b""
        self._started = False
        self._after_cr = False
        #: Whether the last :meth:`feed` brought data of an event that is not complete yet.
        #: Comments, other fields, white space and empty ``data`` lines do not count.
        self.progress = False
        #: Whether the next byte begins an event.
        self.at_rest = False

    def feed(self, segment: bytes) -> list[Event]:
        """Parse the next bytes; return the events that they complete.

        :raises EventTooLarge: the parser must not be used after it.
        """
        self.progress = self.at_rest = False
        if self._after_cr and segment:
            segment = segment[segment.startswith(b"\n") :]
            self._after_cr = False
        if not self._started:
            segment = self._without_mark(segment)
        if b"\n" not in segment and b"\r" not in segment:
            self._keep(segment)
            return []
        self._after_cr = segment.endswith(b"\r")
        lines = segment.splitlines()
        rest = b"" if segment.endswith(_NEWLINE) else lines.pop()
        if self._partial:
            lines[0] = bytes(self._partial) + lines[0]
            self._partial.clear()
        events: list[Event] = []
        try:
            for line in lines:
                if (event := self._line(line)) is not None:
                    events.append(event)
            self._keep(rest)
        except EventTooLarge as e:
            e.events = tuple(events)
            raise
        self.at_rest = not (rest or self._data or self._name or self._after_cr)
        return events

    def close(self) -> list[Event]:
        """The stream ended. Return the event that lacks only its empty line, if there is one."""
        events = self.feed(b"\n\n")
        self._started = self.at_rest = False
        return events

    def _without_mark(self, segment: bytes) -> bytes:
        """Drop a byte order mark at the start of the stream, also if it comes in pieces."""
        head = bytes(self._partial) + segment
        if len(head) < 3 and b"\xef\xbb\xbf".startswith(head):
            self._partial.clear()
            self._keep(head)
            return b""
        self._started = True
        self._partial.clear()
        return head.removeprefix(b"\xef\xbb\xbf")

    def _keep(self, piece: bytes) -> None:
        if not piece:
            return
        self._partial += piece
        size = len(self._partial)
        if self._partial.startswith(b"data:"):
            if self._partial[max(len(b"data:"), size - len(piece)) :].strip():
                self.progress = True
            size += self._size
        if size > self._limit:
            raise EventTooLarge

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > self._limit:
            raise EventTooLarge

    def _line(self, line: bytes) -> Event | None:
        if not line:
            return self._dispatch()
        if len(line) > self._limit:
            raise EventTooLarge
        field, _, value = line.partition(b":")
        if field == b"data":
            if value.strip():
                self.progress = True
            self._grow(len(line))
            self._data.append(value.removeprefix(b" "))
        elif field == b"event":
            if len(value) > 128:
                raise EventTooLarge
            self._name = value.removeprefix(b" ")
        return None

    def _dispatch(self) -> Event | None:
        data, name = b"\n".join(self._data), self._name
        self._data.clear()
        self._name = b""
        self._size = 0
        self.progress = False
        return (name, data) if data else None
