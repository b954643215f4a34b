"""The event-stream parser against the WHATWG algorithm, for any segmentation."""

import itertools
import json
import re
import time
import tracemalloc
from collections.abc import Iterable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gatewayd.wire.sse import COMMENT, DONE, Event, EventTooLarge, Parser, encode

LIMIT = 10_000
BOM = b"\xef\xbb\xbf"

property_test = settings(deadline=None, max_examples=200)


def parse(segments: Iterable[bytes], limit: int = LIMIT) -> list[Event]:
    parser = Parser(limit)
    events = [event for segment in segments for event in parser.feed(segment)]
    return events + parser.close()


def reference(stream: bytes) -> list[Event]:
    """The WHATWG algorithm in its own words.

    Where it drops an unfinished last event, that is delivered; an event whose data is empty is not.
    """
    lines = re.split(rb"\r\n|\n|\r", stream.removeprefix(BOM) + b"\n\n")
    events = []
    data_buffer = event_type = b""
    for line in lines:
        if line == b"":
            data = data_buffer.removesuffix(b"\n")
            if data:
                events.append((event_type, data))
            data_buffer = event_type = b""
            continue
        if line.startswith(b":"):
            continue
        if b":" in line:
            field, value = line.split(b":", 1)
            if value.startswith(b" "):
                value = value[1:]
        else:
            field, value = line, b""
        if field == b"data":
            data_buffer += value + b"\n"
        elif field == b"event":
            event_type = value
    return events


def cut(stream: bytes, places: Iterable[int]) -> list[bytes]:
    bounds = [0, *sorted(min(place, len(stream)) for place in places), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(bounds)]


@st.composite
def segmentations(draw: st.DrawFn, stream: bytes) -> list[bytes]:
    """Whole, byte by byte, after each event, or anywhere; empty segments too."""
    if draw(st.booleans()):
        return cut(stream, draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    after_events = [match.end() for match in re.finditer(rb"\n\n", stream)]
    return cut(stream, draw(st.sampled_from([[], range(len(stream)), after_events])))


ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])
VALUES = st.one_of(
    st.sampled_from([b"", b" ", b'{"a": 1}', b"[DONE]", "ä€🎉".encode(), b"  two", b"a:b"]),
    st.text(alphabet="data: x€", max_size=8).map(str.encode),
)
DATA = st.builds(bytes.__add__, st.sampled_from([b"data: ", b"data:"]), VALUES)
LINES = st.one_of(
    DATA,
    DATA,
    st.just(b""),
    st.builds(
        bytes.__add__,
        st.sampled_from([b":", b": ", b"id: ", b"event: ", b"event:", b"retry: ", b"foo: "]),
        VALUES,
    ),
    st.sampled_from([b"data", b"event", b"dat", b" data: x", b"Data: x", b"database: x", BOM]),
)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    ends = draw(st.sampled_from([st.just(b"\n"), st.just(b"\r\n"), st.just(b"\r"), ENDS]))
    if draw(st.booleans()):  # what backends usually send
        blocks = draw(st.lists(st.lists(DATA, min_size=1, max_size=2), max_size=6))
        lines = [line for block in blocks for line in [*block, b""]]
    else:
        lines = draw(st.lists(LINES, max_size=20))
    mark = draw(st.sampled_from([b"", b"", BOM, BOM + BOM, BOM[:2]]))
    unfinished = draw(st.one_of(st.just(b""), LINES))
    return mark + b"".join(line + draw(ends) for line in lines) + unfinished


@st.composite
def segmented(draw: st.DrawFn) -> list[bytes]:
    return draw(segmentations(draw(streams())))


@property_test
@given(segmented())
@example([b"data: a\r", b"\n", b"\r\n"])
@example([b"data: a\r", b"", b"\ndata: b\n\n"])
@example([b"data: a\n\n", b"data: b\rdata: c\n\n"])
@example([b"data: a\n\n", BOM + b"data: b\n\n"])
@example([BOM[:1], BOM[1:2], BOM[2:] + b"data: a\n\n"])
@example([b"data: a\n\n", b"event: b\n", b"data: c\n\n"])
@example([b"data: a\n\n", b"data: b\r", b"\ndata: c\n\n"])
@example([b"data: a\n\n", b"data: b\n", b"data: c\n\n"])
@example([b"data: a\n\n", b"da", b"data: b\n\n"])
@example([b"data: a\n\n", b"data: b\n\ndata: \n\ndata: c\n\n"])
def test_any_segmentation_of_any_stream_gives_the_events_of_the_standard(
    segments: list[bytes],
) -> None:
    stream = b"".join(segments)
    assert parse(segments) == parse([stream]) == reference(stream)


@property_test
@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=5))
def test_arbitrary_bytes_are_parsed_as_the_standard_says(stream: bytes, places: list[int]) -> None:
    assert parse(cut(stream, places)) == reference(stream)


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\n", [(b"", b"a")]),
        (b"data:a\r\n\r\n", [(b"", b"a")]),
        (b"data:  a\r\r", [(b"", b" a")]),
        (BOM + b"data: a\n\n", [(b"", b"a")]),
        (b"data: a\ndata: b\n\n", [(b"", b"a\nb")]),
        (b"event: error\ndata: a\nid: 1\nretry: 2\n\ndata: b\n\n", [(b"error", b"a"), (b"", b"b")]),
        (b": ping\n\n:\n\nevent: ping\n\ndata:\n\ndata\n\n", []),
        (b"data: a\n\ndata: b", [(b"", b"a"), (b"", b"b")]),
        (b"", []),
    ],
)
def test_a_stream_holds_these_events(stream: bytes, events: list[Event]) -> None:
    assert parse([stream]) == events


def test_an_event_is_delivered_with_the_byte_that_completes_it() -> None:
    parser = Parser(LIMIT)
    assert [parser.feed(bytes([byte])) for byte in b"data: a\n"] == [[]] * 8
    assert parser.feed(b"\n") == [(b"", b"a")]
    assert parser.feed(b"data: b\r\r") == [(b"", b"b")]
    assert parser.feed(b"\ndata: c\n\n") == [(b"", b"c")]


# -- limits --------------------------------------------------------------------------------------


def raises(segments: Iterable[bytes], limit: int) -> bool:
    try:
        parse(segments, limit)
    except EventTooLarge:
        return True
    return False


@st.composite
def events_of(draw: st.DrawFn, size: int) -> list[bytes]:
    """A small event and one whose data lines are ``size`` bytes together, in segments."""
    places = draw(st.lists(st.integers(0, size - 6), max_size=3))
    lines = cut(b"x" * (size - 6 * (len(places) + 1)), places) if len(places) < size // 12 else []
    event = [b"data: " + line for line in lines] or [b"data: " + b"x" * (size - 6)]
    assert sum(map(len, event)) == size
    end = draw(ENDS)
    return draw(segmentations(b"data:" + end + end + end.join(event) + end + end))


@property_test
@given(st.integers(6, 60).flatmap(lambda size: st.tuples(st.just(size), events_of(size))))
def test_an_event_of_exactly_the_limit_passes_and_one_byte_more_does_not(
    sized: tuple[int, list[bytes]],
) -> None:
    size, segments = sized
    assert not raises(segments, size)
    assert raises(segments, size - 1)


@property_test
@given(segmented(), st.integers(5, 30))
@example([b":" + b"x" * 30, b"\n"], 30)
@example([b"data: 3456789\nevent", b": a\n\n"], 15)
@example([b"data: 3456789\n:", b" a long comment\n\n"], 20)
def test_whether_an_event_is_too_large_does_not_depend_on_the_segmentation(
    segments: list[bytes], limit: int
) -> None:
    assert raises(segments, limit) == raises([b"".join(segments)], limit)


@pytest.mark.parametrize("start", [b"data: ", b": ", b"id: ", b"", b"data: a\n\ndata: a\ndata: "])
@pytest.mark.parametrize("piece", [b"x", b"x" * 999])
def test_a_line_without_an_end_is_refused_at_the_limit(start: bytes, piece: bytes) -> None:
    parser = Parser(LIMIT)
    parser.feed(start)
    with pytest.raises(EventTooLarge):
        for _ in range(LIMIT // len(piece) + 1):
            parser.feed(piece)


def test_endless_data_lines_of_one_event_are_refused_at_the_limit() -> None:
    parser = Parser(LIMIT)
    with pytest.raises(EventTooLarge):
        for _ in range(LIMIT):
            parser.feed(b"data:\n")


def test_a_line_in_very_many_pieces_takes_linear_time() -> None:
    parser = Parser(200_000)
    began = time.process_time()
    for _ in range(200_000):
        parser.feed(b"x")
    with pytest.raises(EventTooLarge):
        parser.feed(b"x")
    # Joining or searching all bytes so far with each piece would touch 20 GB.
    assert time.process_time() - began < 3


def test_a_line_in_very_many_pieces_takes_the_memory_of_its_bytes() -> None:
    parser = Parser(10**6)
    tracemalloc.start()
    try:
        for i in range(30_000):
            parser.feed(b"%05d" % i)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * 150_000  # kept one by one, the pieces would need 1.3 MB


# -- progress ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "segment",
    [
        b"",
        b"\n",
        b"\r\n\r\n",
        COMMENT,
        b":",
        b": data: x\n\n",
        b"id: 1\n",
        b"event: data\n\n",
        b"retry: 5",
        b"foo",
        b"d: x",
        b"database: x",
        b"database: x\n",
        b"data",
        b"data:",
        b"data: ",
        b"data:   ",
        b"data:\n",
        b"data\n",
        b"data: \n\n",
        b"data: a\n\n",  # complete; the parser does not judge whether it is content
    ],
)
@pytest.mark.parametrize("before", [b"", b"data: a\n\n", b"data: a\n"])
def test_only_data_of_an_event_that_is_not_complete_is_progress(
    before: bytes, segment: bytes
) -> None:
    parser = Parser(LIMIT)
    parser.feed(before)
    parser.feed(segment)
    assert not parser.progress


@property_test
@given(
    st.lists(st.sampled_from([b":", b": x", b"id: 1", b"event: a", b"retry: 1", b""]))
    .map(lambda lines: b"\n".join([*lines, b""]))
    .flatmap(segmentations)
)
def test_comments_and_fields_are_no_progress_in_any_segmentation(segments: list[bytes]) -> None:
    parser = Parser(LIMIT)
    for segment in segments:
        parser.feed(segment)
        assert not parser.progress


@pytest.mark.parametrize("head", [[b"data: "], [b"data", b": "], [b"da", b"ta: "], [*b"data:"]])
@pytest.mark.parametrize("before", [b"", b": ping\n\n", b"data: a\n\n"])
def test_each_piece_of_data_is_progress_however_the_line_began(
    before: bytes, head: list[bytes | int]
) -> None:
    parser = Parser(LIMIT)
    parser.feed(before)
    for piece in head:
        parser.feed(piece if isinstance(piece, bytes) else bytes([piece]))
    for piece in (b"a", b"b", b"c"):
        parser.feed(piece)
        assert parser.progress


@pytest.mark.parametrize(
    "segment",
    [
        b"data: a",
        b"data:a\n: ping\n",
        b": ping\n\ndata: a",
        b"data: a\n\ndata: a",
        b"data:a\ndata:",
    ],
)
def test_data_among_comments_is_progress(segment: bytes) -> None:
    parser = Parser(LIMIT)
    for _ in range(2):
        parser.feed(segment)
        assert parser.progress
        parser.feed(b"\n\n" + COMMENT)
        parser.feed(COMMENT)
        assert not parser.progress


# -- the encoder ---------------------------------------------------------------------------------

PAYLOADS = st.binary(min_size=1, max_size=40).filter(lambda b: not re.search(rb"[\r\n]", b))
NAMES = st.text(alphabet="abc_-", max_size=8).map(str.encode)


@property_test
@given(st.lists(st.tuples(NAMES, PAYLOADS), max_size=5), st.lists(st.integers(0, 200), max_size=4))
def test_the_parser_reads_what_was_encoded(events: list[Event], places: list[int]) -> None:
    stream = b"".join(encode(payload, name) for name, payload in events)
    assert parse(cut(stream, places)) == events
    assert reference(stream) == events


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_json_on_several_lines_is_encoded_as_one(end: bytes) -> None:
    document = end.join([b"{", b'"a":', b"[1,", b"2]", b"}"])
    stream = encode(document)
    assert re.fullmatch(rb"data: [^\r\n]*\n\n", stream)
    [(_, payload)] = parse([stream])
    assert json.loads(payload) == {"a": [1, 2]}


def test_the_constant_frames_parse_as_a_comment_and_done() -> None:
    assert parse([COMMENT, DONE]) == [(b"", b"[DONE]")]
