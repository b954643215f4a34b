"""The quick way of a token: an event that differs from an earlier one in one string alone.

The chunks of a stream are alike but for the text that they carry. :class:`Frames` learns what
stands before and after the text of a chunk that was read with care. An event with the same bytes
around another text has the same members at the same depth, belongs to the same choice, and neither
finishes, counts nor reports anything. A few scans in C find that out. Every other event is left to
the careful way.
"""

from __future__ import annotations

import re

#: The longest payload to learn from. Others are rare, and looking at them takes time.
_LONGEST = 4096

#: How many kinds of chunks are known at a time: one for each choice, another while a model thinks.
_MOST = 8

#: The members that carry text, up to the first character; where there is none, nothing is learned.
_TEXT = re.compile(rb'"(?:content|text|reasoning|reasoning_content|arguments)"\s*:\s*"(?!")')

#: What may stand in a JSON string, at least one character. Possessive quantifiers: a long text
#: that does not fit is looked at once.
_INSIDE = re.compile(rb'(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))++')


class Frames:
    """What is known of the chunks of one stream."""

    def __init__(self) -> None:
        # The bytes before and after the text, in an event's line and in the frame that crosses.
        self._known: list[tuple[bytes, bytes, bytes, bytes]] = []

    def learn(self, payload: bytes, crossing: bytes) -> None:
        """Remember what surrounds the text in a payload, and in what crosses for it.

        :param payload: a chunk with text that finishes, counts and reports nothing.
        """
        if len(payload) > _LONGEST or (came := _around(payload)) is None:
            return
        before, after = b"data: " + came[0], came[1]
        for kind in self._known:
            if kind[0] == before and kind[1] == after:
                return
        if (goes := _around(crossing)) is not None:
            kind = (before, after, b"data: " + goes[0], goes[1] + b"\n\n")
            self._known = [kind, *self._known[: _MOST - 1]]

    def frames(self, segment: bytes) -> list[bytes] | None:
        """What crosses for each event of a segment, if all are usual tokens; else None."""
        lines = segment.splitlines()
        if any(lines[1::2]) or len(lines) % 2 or not segment.endswith(b"\n"):
            return None  # not whole events of one line each
        if not segment.isascii():
            try:
                segment.decode("utf-8")
            except UnicodeDecodeError:
                return None
        frames = []
        for line in lines[::2]:
            for before, after, new_before, new_after in self._known:
                if line.startswith(before) and line.endswith(after):
                    text = _INSIDE.fullmatch(line, len(before), len(line) - len(after))
                    if text is not None:
                        frames.append(new_before + text[0] + new_after)
                        break
            else:
                return None
        return frames


def _around(document: bytes) -> tuple[bytes, bytes] | None:
    """What stands before and after the text of a chunk; None where it has none, or several."""
    begin = _TEXT.search(document)
    if begin is None or _TEXT.search(document, begin.end()):
        return None
    text = _INSIDE.match(document, begin.end())
    return (document[: begin.end()], document[text.end() :]) if text else None
