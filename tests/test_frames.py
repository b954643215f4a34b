"""Frames are followed in any segmentation, and nothing but their boundaries is judged."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatewayd.http1.frames import FrameTracker, close_frame
from tests.websocket import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    close,
    frame,
    frames_in,
)

LIMIT = 1 << 20

SIZES = st.one_of(st.integers(0, 130), st.sampled_from([65535, 65536, 70000]))


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """Any frame but a Close frame."""
    opcode = draw(st.sampled_from([CONTINUATION, TEXT, BINARY, PING, PONG]))
    masked = draw(st.booleans())
    if opcode in (PING, PONG):
        return frame(opcode, draw(st.binary(max_size=125)), masked=masked)
    return frame(opcode, b"x" * draw(SIZES), fin=draw(st.booleans()), masked=masked)


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    """``data`` in segments that end at these places."""
    ends = sorted({place % (len(data) + 1) for place in places} | {len(data)})
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@given(st.lists(frames(), max_size=6), st.lists(st.integers(0, 1 << 30), max_size=12))
def test_all_bytes_are_relayed_in_any_segmentation(sent: list[bytes], places: list[int]) -> None:
    tracker, data, relayed = FrameTracker(LIMIT), b"".join(sent), b""
    boundaries = {0}
    for each in sent:
        boundaries.add(max(boundaries) + len(each))
    for segment in cut(data, places):
        relayed += tracker.feed(segment)
        assert data.startswith(relayed)
        assert tracker.between_frames is (len(relayed) in boundaries)
    assert relayed == data and tracker.problem is None and not tracker.closed


@given(
    st.lists(frames(), max_size=3),
    st.one_of(st.none(), st.integers(1000, 4999)),
    st.booleans(),
    st.binary(max_size=20),
    st.lists(st.integers(0, 1 << 30), max_size=12),
)
def test_nothing_follows_a_close_frame_whose_code_is_read(
    sent: list[bytes], code: int | None, masked: bool, after: bytes, places: list[int]
) -> None:
    whole = b"".join(sent) + close(code, b"why" if code else b"", masked=masked)
    tracker, relayed = FrameTracker(LIMIT), b""
    for segment in cut(whole + after, places):
        relayed += tracker.feed(segment)
        assert tracker.closed is (relayed == whole)
    assert relayed == whole and tracker.between_frames and tracker.close_code == code


@given(st.binary(max_size=400), st.lists(st.integers(0, 1 << 30), max_size=8))
def test_any_bytes_are_relayed_or_refused_alike_in_any_segmentation(
    data: bytes, places: list[int]
) -> None:
    whole, parts, relayed = FrameTracker(LIMIT), FrameTracker(LIMIT), b""
    at_once = whole.feed(data)
    for segment in cut(data, places):
        relayed += parts.feed(segment)
    assert relayed == at_once and data.startswith(relayed)
    for name in ("problem", "closed", "close_code", "between_frames"):
        assert getattr(parts, name) == getattr(whole, name)


@pytest.mark.parametrize(
    ("data", "content"),
    [
        (frame(TEXT, b"hi"), True),
        (frame(BINARY, b"hi", masked=True), True),
        (frame(CONTINUATION, b"x", fin=False), True),
        (frame(PING, b"x") + frame(TEXT, b"x"), True),
        (frame(TEXT, b"xyz")[:3], True),
        (frame(TEXT), False),
        (frame(TEXT, b"xyz")[:2], False),
        (frame(PING, b"x") + frame(PONG, b"x", masked=True), False),
        (close(), False),
    ],
)
def test_only_payloads_of_messages_are_content(data: bytes, content: bool) -> None:
    tracker = FrameTracker(LIMIT)
    tracker.feed(data)
    assert tracker.content is content


def test_what_was_content_before_is_not_content_now() -> None:
    tracker = FrameTracker(LIMIT)
    tracker.feed(frame(TEXT, b"x"))
    tracker.feed(frame(PING))
    assert not tracker.content


def test_the_fragments_of_a_message_count_together_and_control_frames_do_not() -> None:
    tracker = FrameTracker(10)
    parts = frame(TEXT, b"12345", fin=False), frame(PING, b"x" * 100), frame(CONTINUATION, b"67890")
    assert tracker.feed(b"".join(parts) + frame(BINARY, b"1234567890")) and tracker.problem is None
    last = frame(TEXT, b"1234567890", fin=False) + frame(CONTINUATION, b"1")
    assert tracker.feed(last) == last[:12]
    assert tracker.problem is not None and tracker.problem.code == 1009
    assert tracker.between_frames and tracker.feed(frame(PING)) == b""


@pytest.mark.parametrize(
    "data",
    [
        bytes((0x80 | PING, 126)) + (126).to_bytes(2, "big"),
        bytes((PING, 0)),
        bytes((CLOSE, 2)),
    ],
)
def test_a_control_frame_is_short_and_whole(data: bytes) -> None:
    tracker = FrameTracker(LIMIT)
    relayed = tracker.feed(frame(TEXT, b"x") + data)
    assert relayed == frame(TEXT, b"x") and tracker.problem is not None
    assert tracker.problem.code == 1002 and not tracker.closed


def test_a_length_of_64_bits_is_read_whole() -> None:
    tracker = FrameTracker(LIMIT)
    assert tracker.feed(bytes((0x82, 127)) + b"\xff" * 8) == b""
    assert tracker.problem is not None and tracker.problem.code == 1009


@pytest.mark.parametrize("masked", [False, True])
def test_a_close_frame_is_short_and_masked_for_servers(masked: bool) -> None:
    (made,) = frames_in(close_frame(1011, "r" * 200, masked=masked))
    assert made == (CLOSE, (1011).to_bytes(2, "big") + b"r" * 123, True, masked)
