"""Follows the frames of a WebSocket in one direction, without reading any message.

The gateway must know three things to end a tunnel honestly: whether a Close frame has crossed,
whether a Close frame of its own may be inserted (only between two frames), and which bytes are
content (Ping and Pong frames are not). Headers of frames are enough for that. Of payloads only the
status code of a Close frame is read.

Masks, reserved bits and unknown operations are left to the two peers.

Source: RFC 6455, section 5.
"""

from __future__ import annotations

import os
from typing import NamedTuple

#: Status codes of Close frames (RFC 6455, section 7.4.1, and IANA's registry).
GOING_AWAY = 1001
PROTOCOL_ERROR = 1002
TOO_BIG = 1009
INTERNAL_ERROR = 1011
SERVICE_RESTART = 1012
BAD_GATEWAY = 1014

_CONTINUATION = 0
_CLOSE = 8
#: The lowest operation code of a control frame.
_CONTROL = 8
#: The largest payload of a control frame, in bytes.
_MAX_CONTROL = 125
_FIN = 0x80
_MASKED = 0x80


def _header_size(second: int) -> int:
    """The size of a header whose second byte is this one."""
    length = second & 0x7F
    extended = 0 if length <= _MAX_CONTROL else 2 if length == 126 else 8
    return 2 + extended + (4 if second & _MASKED else 0)


_HEADER_SIZES = [_header_size(second) for second in range(256)]


class FrameProblem(NamedTuple):
    """Why a frame cannot be relayed.

    :param message: a sentence for its sender.
    :param code: the status code of the Close frame for its sender.
    """

    message: str
    code: int


class FrameTracker:
    """One direction: bytes in, the bytes to relay out.

    The header of a frame is relayed only when it is complete. So what was relayed ends between two
    frames or within a payload, and never within a header.

    :param limit: the largest message in bytes, all its fragments together, as they are sent.
    """

    __slots__ = (
        "_close_payload",
        "_header",
        "_limit",
        "_mask",
        "_message",
        "_opcode",
        "_remaining",
        "close_code",
        "closed",
        "content",
        "problem",
    )

    def __init__(self, limit: int) -> None:
        #: Whether the last bytes fed had any of a message.
        self.content = False
        #: Whether a whole Close frame was relayed. Bytes after it are dropped.
        self.closed = False
        #: The status code of that frame; None if it had none.
        self.close_code: int | None = None
        #: Why nothing more can be relayed; None while all is well.
        self.problem: FrameProblem | None = None
        self._limit = limit
        self._header = b""  # of a frame, incomplete; not relayed
        self._remaining = 0  # bytes of the payload that have not come
        self._opcode = 0  # of the frame whose payload is coming
        self._message = 0  # bytes of the message so far, announced by its headers
        self._mask = b""
        self._close_payload = bytearray()

    @property
    def between_frames(self) -> bool:
        """Whether a frame may be inserted after the bytes that were returned."""
        return not self._remaining

    def feed(self, data: bytes) -> bytes:
        """Follow the next bytes and return those to relay.

        They end before a header that is incomplete, after a Close frame, and before a frame with a
        :attr:`problem`.
        """
        self.content = False
        if self._header:
            data, self._header = self._header + data, b""
        at, size = 0, len(data)
        while at < size and not self.closed and self.problem is None:
            if self._remaining:
                at = self._take_payload(data, at)
                continue
            end = at + _HEADER_SIZES[data[at + 1]] if at + 1 < size else at + 2
            if end > size:
                self._header = data[at:]
                break
            self._begin_frame(data, at, end)
            if self.problem is None:
                at = end
        return data if at == size else data[:at]

    def _take_payload(self, data: bytes, at: int) -> int:
        """Take what is here of a payload; return where it ends."""
        end = min(len(data), at + self._remaining)
        self._remaining -= end - at
        if self._opcode < _CONTROL:
            self.content = True
        elif self._opcode == _CLOSE:
            self._close_payload += data[at:end]
            if not self._remaining:
                self._closed()
        return end

    def _begin_frame(self, data: bytes, at: int, end: int) -> None:
        """Read the header between these places."""
        first, second = data[at], data[at + 1]
        opcode, length = first & 0x0F, second & 0x7F
        if length > _MAX_CONTROL:
            length = int.from_bytes(data[at + 2 : at + (4 if length == 126 else 10)], "big")
        if opcode >= _CONTROL:
            if length > _MAX_CONTROL or not first & _FIN:
                self.problem = FrameProblem("A control frame is not valid.", PROTOCOL_ERROR)
                return
        else:
            self._message = length + (self._message if opcode == _CONTINUATION else 0)
            if self._message > self._limit:
                message = f"A message is larger than {self._limit} bytes."
                self.problem = FrameProblem(message, TOO_BIG)
                return
        self._opcode, self._remaining = opcode, length
        if opcode == _CLOSE:
            self._mask = data[end - 4 : end] if second & _MASKED else b""
            if not length:
                self._closed()

    def _closed(self) -> None:
        self.closed = True
        code = bytes(self._close_payload[:2])
        if len(code) == 2:
            if self._mask:
                code = bytes((code[0] ^ self._mask[0], code[1] ^ self._mask[1]))
            self.close_code = int.from_bytes(code, "big")


def close_frame(code: int, reason: str, *, masked: bool) -> bytes:
    """A Close frame.

    :param reason: ASCII; what exceeds 123 characters is cut off.
    :param masked: as frames to a server must be.
    """
    payload = code.to_bytes(2, "big") + reason.encode("ascii")[: _MAX_CONTROL - 2]
    if not masked:
        return bytes((_FIN | _CLOSE, len(payload))) + payload
    mask = os.urandom(4)
    hidden = bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))
    return bytes((_FIN | _CLOSE, _MASKED | len(payload))) + mask + hidden
