"""The receiver of event streams: parses events, has the reader judge each, frames them again."""

from __future__ import annotations

from collections.abc import Sequence

from gatewayd.wire import sse
from gatewayd.wire.call import Reader
from gatewayd.wire.errors import BadReply, GatewayError, Truncated

from .receiver import CONTENT, EMPTY_EVENT, NONE, Receiver, Step, Whole, judged


class Events(Receiver):
    """An event stream.

    Once an event has crossed, a segment that begins with an event may take the fast path, as
    nearly all segments do.

    :param limit: the most bytes that one event may take.
    """

    def __init__(self, reader: Reader, limit: int) -> None:
        self._reader = reader
        self._parser = sse.Parser(limit)
        self._crossed = False
        self.fast_limit = limit

    def feed(self, data: bytes) -> Step:
        parser = self._parser
        try:
            step = self._take(parser.feed(data), parser.progress)
        except sse.EventTooLarge as e:
            step = self._take(e.events, True)
            if step.outcome is None:
                step = step._replace(outcome=_too_large())
        self.fast = self._reader.frames if self._crossed and parser.at_rest else None
        return step

    def close(self, exact: bool) -> Step:
        try:
            events = self._parser.close()
        except sse.EventTooLarge:
            return Step(outcome=_too_large())
        step = self._take(events, False)
        if step.outcome is not None:
            return step
        outcome = self._judge(done=False, framed=exact)
        return step._replace(frames=step.frames + self._done_after(outcome), outcome=outcome)

    def _take(self, events: Sequence[sse.Event], partial: bool) -> Step:
        """Judge and frame complete events, up to the one that ends the stream.

        :param partial: whether data of a further event has come.
        """
        reader, frames, content = self._reader, [], False
        outcome: Whole | GatewayError | None = None
        for name, payload in events:
            if reader.ends_with_done and payload.lstrip().startswith(b"[DONE]"):
                outcome = self._judge(done=True)
                break
            try:
                crossing = reader.read_event(name, payload)
            except GatewayError as problem:
                outcome = problem
                break
            content = content or reader.content
            if crossing is not None:
                frames.append(sse.encode(crossing, b"" if reader.ends_with_done else name))
            if not reader.ends_with_done and reader.is_complete(done=False, framed=False):
                outcome = self._judge(done=True)
                break
        count = len(frames)
        self._crossed = self._crossed or count > 0
        progress = CONTENT if content else EMPTY_EVENT if events else NONE
        joined = frames[0] if count == 1 else b"".join(frames)
        return Step(joined + self._done_after(outcome), count, progress, partial, outcome)

    def _judge(self, done: bool, framed: bool = True) -> Whole | GatewayError:
        """Whether the stream, which has ended, is whole.

        :param done: whether the backend marked the end with an event.
        :param framed: whether the body's framing marked the end; it does not matter if ``done``.
        """
        if not self._reader.started:
            return judged(BadReply("The backend's stream ended without an event."), framed)
        if not self._reader.is_complete(done, framed):
            return Truncated("The backend ended the stream before the reply was finished.")
        return Whole()

    def _done_after(self, outcome: Whole | GatewayError | None) -> bytes:
        """``[DONE]`` if the stream was whole and its kind ends with that event, else nothing."""
        return sse.DONE if self._reader.ends_with_done and isinstance(outcome, Whole) else b""


def _too_large() -> BadReply:
    return BadReply("The backend sent an event that is too large.")
