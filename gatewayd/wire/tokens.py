"""The fast path of a token: an event that differs from an earlier one in its text alone.

Most chunks of a stream differ only in their text. :class:`FastPath` remembers the bytes before and
after the text of chunks that were decoded and judged. An event that has the same bytes around
another text has the same members at the same depth. So it belongs to the same choice, and it does
not finish a choice, count tokens or report an error. A few scans in C find this out. Every other
event must be decoded.
"""

from __future__ import annotations

import re

#: The most bytes of a payload to learn from. Longer ones are rare, and searching them costs time.
_LONGEST = 4096

#: The most kinds of chunks to remember: one for each choice, and one more while a model reasons.
_MOST = 8

#: The members that carry text, up to the first character of it. An empty text does not match.
_TEXT = re.compile(rb'"(?:content|text|reasoning|reasoning_content|arguments)"\s*:\s*"(?!")')

#: The inside of a JSON string, at least one character. The quantifiers are possessive, so that a
#: long text that does not match is scanned once only.
_INSIDE = re.compile(rb'(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))++')


class FastPath:
    """What was learned from the chunks of one stream."""

    def __init__(self) -> None:
        # The bytes before and after the text: in the backend's line, and in the frame to send.
        self._known: list[tuple[bytes, bytes, bytes, bytes]] = []

    def learn(self, payload: bytes, crossing: bytes) -> None:
        """Remember the bytes around the text in a payload, and in the payload to send for it.

        :param payload: a chunk with text that does not finish a choice, count tokens or report an
            error.
        :param crossing: what the client is sent for it.
        """
        if len(payload) > _LONGEST or (received := _around(payload)) is None:
            return
        before, after = b"data: " + received[0], received[1]
        for kind in self._known:
            if kind[0] == before and kind[1] == after:
                return
        if (sent := _around(crossing)) is not None:
            kind = (before, after, b"data: " + sent[0], sent[1] + b"\n\n")
            self._known = [kind, *self._known[: _MOST - 1]]

    def frames(self, segment: bytes) -> list[bytes] | None:
        """The frame to send for each event of a segment; None unless each is of a known kind."""
        lines = segment.splitlines()
        if any(lines[1::2]) or len(lines) % 2 or not segment.endswith(b"\n"):
            return None  # some event is incomplete, or is not one line
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
    """The bytes before and after the text of a chunk; None unless it has exactly one text."""
    begin = _TEXT.search(document)
    if begin is None or _TEXT.search(document, begin.end()):
        return None
    text = _INSIDE.match(document, begin.end())
    return (document[: begin.end()], document[text.end() :]) if text else None
