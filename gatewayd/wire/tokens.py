"""The quick way of a token: an event that is like the one before but for its choices.

What stands around the choices of a stream's chunks (id, model, time) is the same in each.
:class:`Frames` learns it from a chunk that was read with care, and then knows one that differs in
nothing else by a few scans in C. It takes nothing for granted: whatever is unusual about an event
is left to the careful way.
"""

from __future__ import annotations

import re
from collections.abc import Collection

import msgspec

#: The longest payload to learn from. Others are rare, and looking at them takes time.
_LONGEST = 4096

_VALUE = rb'"[^"\\]*"\s*:\s*(?:"[^"\\]*"|[^"\\{}\[\],\s]+)\s*'
#: Members with plain values, from the beginning of an object and up to its end.
_BEFORE = re.compile(rb"\s*\{\s*(?:" + _VALUE + rb",\s*)*")
_AFTER = re.compile(rb"(?:\s*,\s*" + _VALUE + rb")*\s*\}\s*")


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    finish_reason: None = None


class _Token(msgspec.Struct, gc=False):
    """A chunk that finishes nothing, counts nothing and reports nothing."""

    choices: list[_Choice]
    usage: None = None
    error: None = None


_decode = msgspec.json.Decoder(_Token).decode


class Frames:
    """
    :param changed: the members that differ between a payload and what crosses for it.
    :param seen: the choices that there were before; the caller adds to them.
    """

    def __init__(self, changed: Collection[str], seen: Collection[int]) -> None:
        self._seen = seen
        self._names = [b'"%b"' % name.encode("ascii") for name in changed]
        self._before = b"\n"  # no line begins so: nothing is known yet
        self._after = self._new_before = self._new_after = b""

    def learn(self, payload: bytes, crossing: bytes) -> None:
        """See what surrounds the choices in a payload, and in what crosses for it."""
        known = payload.startswith(self._before[6:]) and payload.endswith(self._after)
        if self._new_before and known:
            return
        self._before, self._new_before = b"\n", b""
        if len(payload) > _LONGEST:
            return
        match = _BEFORE.match(payload)
        before = match[0] if match else b""
        after = payload[payload.rfind(b"]") + 1 :]
        if not _AFTER.fullmatch(after):
            after = b""
        middle = payload[len(before) : len(payload) - len(after)]
        if not middle or crossing.count(middle) != 1:
            return
        for name in self._names:  # once, and where it is the same in the next one
            if middle.count(name) or before.count(name) + after.count(name) != 1:
                return
        self._before, self._after = b"data: " + before, after
        new_before, _, new_after = crossing.partition(middle)
        self._new_before, self._new_after = b"data: " + new_before, new_after + b"\n\n"

    def frames(self, segment: bytes) -> list[bytes] | None:
        """What crosses for each event of a segment, if all are usual tokens; else None."""
        lines = segment.splitlines()
        if any(lines[1::2]) or len(lines) % 2 or not segment.endswith(b"\n"):
            return None  # not whole events of one line each
        before, after, seen = self._before, self._after, self._seen
        frames = []
        for line in lines[::2]:
            if not (line.startswith(before) and line.endswith(after)):
                return None
            for name in self._names:
                if line.count(name) != 1:
                    return None
            try:
                if not line.isascii():
                    line.decode("utf-8")
                token = _decode(line[6:])
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                return None
            if not token.choices:
                return None  # with usage, even null, it may be one that the client did not ask for
            for choice in token.choices:
                if choice.index not in seen:
                    return None
            middle = line[len(before) : len(line) - len(after)]
            frames.append(self._new_before + middle + self._new_after)
        return frames
