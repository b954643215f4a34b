"""A chunked body in any pieces; sizes, line ends and limits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatewayd.http1.chunked import LINE_BYTES, Chunked
from gatewayd.wire.errors import BadHTTP, HeadTooLarge, RequestTooLarge

BEHIND = b"GET / HTTP/1.1\r\n"


def read(data: bytes, every: int = 0) -> tuple[bytes, bytes]:
    """Read in pieces. Returns the body, and the bytes after it in the last piece."""
    chunked, buffer = Chunked(1000, 500), bytearray()
    every = every or len(data)
    for at in range(0, len(data), every):
        buffer += data[at : at + every]
        if chunked.take(buffer):
            return bytes(chunked.body), bytes(buffer) + data[at + every :]
    raise EOFError


@given(
    parts=st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    zeros=st.integers(0, 9),
    upper=st.booleans(),
    extension=st.sampled_from(
        [b"", b";a", b';a=b;c="d e"', b"; a = b ;\tc", b';a="\\"\xff;=\t";b=""', b";a" * 300]
    ),
    trailers=st.sampled_from([b"", b"A: b\r\n", b"Content-Length: 5\r\nHost:evil\r\n"]),
    every=st.integers(1, 60),
)
def test_a_body_is_read_in_any_pieces(
    parts: list[bytes], zeros: int, upper: bool, extension: bytes, trailers: bytes, every: int
) -> None:
    form = b"%X" if upper else b"%x"
    lines = [
        b"0" * zeros + form % len(part) + extension + b"\r\n" + part + b"\r\n" for part in parts
    ]
    data = b"".join(lines) + b"0" * zeros + b"0" + extension + b"\r\n" + trailers + b"\r\n"
    assert read(data + BEHIND, every) == (b"".join(parts), BEHIND)


@pytest.mark.parametrize("every", [1, 2, 0])
@pytest.mark.parametrize(
    "data",
    [
        *(b"\r\n", b"-5\r\n", b"+5\r\n", b"0x5\r\n", b"5 \r\n", b" 5\r\n", b"5 ;a\r\n", b"5\n"),
        *(b"g\r\n", b"5\rx\r\n", b"5;a\rb\r\n", b"5;a\nb\r\n", b"5;\0\r\n", b"5,5\r\n", b"5\r\r\n"),
        *(b"5;\r\n", b"5;;a\r\n", b"5;a;\r\n", b"5;a=\r\n", b"5;=b\r\n", b"5;bad[=x\r\n"),
        *(b"5;a b\r\n", b'5;a="b\r\n', b'5;a="b"c\r\n', b'5;"a"=b\r\n', b"5;a \r\n"),
        *(b"5;\xff\r\n", b"5;a" + b" " * 990 + b"!\r\n"),
        *(b"_5\r\n", b"5\r\nhelloXX\r\n", b"5\r\nhello\n0\r\n", b"5\r\nhello\r0\r\n"),
        *(b"5\r\nhello\r\n\r\n0\r\n", b"0\n\r\n", b"0\r\n\n", b"0\r\nA\r\n\r\n"),
        *(b"0\r\n A: b\r\n\r\n", b"0\r\nA: b\r\n c\r\n\r\n", b"0\r\nA: \0\r\n\r\n"),
        *(b"0\r\nA : b\r\n\r\n", b"0\r\nA: b\nB: c\r\n\r\n", b"1" + b"0" * 15 + b"\r\n"),
        *(b"0" * LINE_BYTES + b"5\r\n", b"5;" + b"a" * (LINE_BYTES - 1) + b"\r\n"),
    ],
    ids=repr,
)
def test_what_could_be_read_in_two_ways_is_refused(data: bytes, every: int) -> None:
    with pytest.raises(BadHTTP):
        read(data + b"\r\n" + b"a" * LINE_BYTES, every)


def test_a_chunk_size_is_checked_before_its_data_arrives() -> None:
    assert read(b"3e8\r\n" + b"a" * 1000 + b"\r\n0\r\n\r\n")[0] == b"a" * 1000
    with pytest.raises(RequestTooLarge):
        read(b"3e9\r\n")
    with pytest.raises(RequestTooLarge):
        read(b"3e8\r\n" + b"a" * 1000 + b"\r\n1\r\n")


@pytest.mark.parametrize("every", [1, 0])
def test_trailers_have_a_limit(every: int) -> None:
    assert read(b"0\r\n" + b"A: bcde\r\n" * 55 + b"\r\n", every) == (b"", b"")
    for trailers in (b"A: bcde\r\n" * 60, b"A: " + b"b" * 600):
        with pytest.raises(HeadTooLarge):
            read(b"0\r\n" + trailers, every)
