"""An event stream read into steps, without a relay."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatewayd.relaying.events import Events
from gatewayd.relaying.receiver import Progress, Step, Whole
from gatewayd.wire.choices import ChatReader
from gatewayd.wire.errors import BackendFailed, BadReply, Truncated
from gatewayd.wire.events import EventReader
from gatewayd.wire.sse import DONE
from tests.memory import chunk

LIMIT = 10_000


def events(limit: int = LIMIT, choices: int = 1) -> Events:
    return Events(ChatReader(None, False, choices, 64), limit)


def framed(*payloads: bytes) -> bytes:
    return b"".join(b"data: %b\n\n" % payload for payload in payloads)


STREAM = (chunk("a"), chunk("b"), chunk(finish="stop"))


def test_each_event_is_framed_again() -> None:
    receiver = events()
    step = receiver.feed(b": comment\r\nid: 1\r\ndata:" + chunk("a") + b"\r\n\r\n")
    assert step == Step(framed(chunk("a")), 1, Progress.CONTENT)


def test_done_ends_a_finished_stream_and_nothing_follows_it() -> None:
    step = events().feed(framed(*STREAM, b"[DONE]", b"[DONE]", b"x"))
    assert step == Step(framed(*STREAM) + DONE, 3, Progress.CONTENT, outcome=Whole())


@pytest.mark.parametrize("exact", [True, False])
def test_a_finished_stream_without_done_gets_it_at_its_end(exact: bool) -> None:
    receiver = events()
    assert receiver.feed(framed(*STREAM)).outcome is None
    assert receiver.close(exact) == Step(DONE, outcome=Whole())


def test_an_event_that_lacks_only_its_empty_line_is_complete_at_the_end() -> None:
    receiver = events()
    assert receiver.feed(framed(*STREAM)[:-1]).events == 2
    step = receiver.close(True)
    assert step == Step(framed(STREAM[-1]) + DONE, 1, Progress.CONTENT, outcome=Whole())


def test_done_with_a_choice_open_is_a_truncated_stream() -> None:
    step = events().feed(framed(chunk("a"), b"[DONE]"))
    assert step.frames == framed(chunk("a")) and isinstance(step.outcome, Truncated)


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_an_end_with_a_choice_open_or_none_is_an_error(begun: bool, exact: bool) -> None:
    receiver = events()
    if begun:
        receiver.feed(framed(chunk("a")))
    step = receiver.close(exact)
    assert step.frames == b""
    assert isinstance(step.outcome, BadReply if exact and not begun else Truncated)


def test_without_framing_as_many_choices_must_be_finished_as_were_asked_for() -> None:
    for exact, kind in ((True, Whole), (False, Truncated)):
        receiver = events(choices=2)
        receiver.feed(framed(*STREAM))
        assert isinstance(receiver.close(exact).outcome, kind)


def test_an_error_in_the_stream_ends_it_after_the_events_before_it() -> None:
    step = events().feed(framed(chunk("a"), b'{"error":{"message":"no","code":400}}', chunk("b")))
    assert (step.frames, step.events) == (framed(chunk("a")), 1)
    assert isinstance(step.outcome, BackendFailed) and step.outcome.status == 400


@pytest.mark.parametrize("begun", [False, True])
def test_an_event_past_the_limit_ends_the_stream(begun: bool) -> None:
    receiver = events()
    if begun:
        receiver.feed(framed(chunk("a"), chunk("b")))
    step = receiver.feed(framed(chunk("c")) + b"data: " + b"x" * LIMIT)
    assert step.frames == framed(chunk("c")) and isinstance(step.outcome, BadReply)


# -- progress ------------------------------------------------------------------------------------


def test_progress_tells_content_from_what_has_none() -> None:
    receiver = events()
    assert receiver.feed(b": comment\n\n") == Step()
    assert receiver.feed(b"data:") == Step()
    assert receiver.feed(b' {"choices":') == Step(partial=True)
    assert receiver.feed(b"[]}\n\n").progress is Progress.EMPTY_EVENT
    assert receiver.feed(framed(b"null")) == Step(progress=Progress.EMPTY_EVENT)
    assert receiver.feed(framed(chunk("a"))).progress is Progress.CONTENT
    step = receiver.feed(framed(chunk("b")) + b"data: {")
    assert step.progress is Progress.CONTENT and step.partial


# -- the fast path -------------------------------------------------------------------------------


def test_the_fast_path_opens_with_an_event_that_crossed_and_closes_within_one() -> None:
    receiver = events()
    assert receiver.fast is None
    receiver.feed(framed(chunk("a")))
    assert receiver.fast is not None and receiver.fast_limit == LIMIT
    assert receiver.fast(framed(chunk("b"), chunk("c"))) == [framed(chunk(t)) for t in "bc"]
    assert receiver.fast(framed(chunk(finish="stop"))) is None
    receiver.feed(framed(chunk("d"))[:20])
    assert receiver.fast is None
    receiver.feed(framed(chunk("d"))[20:])
    assert receiver.fast is not None


def test_the_fast_path_stays_closed_while_nothing_crossed() -> None:
    receiver = events()
    receiver.feed(framed(b"null"))
    assert receiver.fast is None


# -- streams whose events have types -------------------------------------------------------------


def messages() -> Events:
    return Events(EventReader(frozenset({"message_stop"}), 64, None), LIMIT)


def test_the_last_type_ends_a_stream_and_event_names_are_relayed() -> None:
    start = b'event: message_start\ndata: {"type":"message_start"}\n\n'
    stop = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    step = messages().feed(start + stop + start)
    assert step == Step(start + stop, 2, Progress.CONTENT, outcome=Whole())
    receiver = messages()
    receiver.feed(start)
    assert isinstance(receiver.close(True).outcome, Truncated)


# -- any segmentation ----------------------------------------------------------------------------

WHOLE = framed(*STREAM, b"[DONE]")


@given(st.lists(st.integers(0, len(WHOLE)), max_size=6))
def test_segmentation_changes_no_byte(cuts: list[int]) -> None:
    receiver, frames, edges = events(), b"", sorted({0, *cuts, len(WHOLE)})
    for start, stop in itertools.pairwise(edges):
        fast = receiver.fast(WHOLE[start:stop]) if receiver.fast else None
        if fast:
            frames += b"".join(fast)
            continue
        step = receiver.feed(WHOLE[start:stop])
        frames += step.frames
        if step.outcome is not None:
            assert step.outcome == Whole()
            break
    else:
        raise AssertionError("the stream has no end")
    assert frames == WHOLE
