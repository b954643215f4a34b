"""The parser of a connection's requests: heads and bodies in turns, within limits."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatewayd.http1.head import Fields
from gatewayd.http1.requests import RequestParser
from gatewayd.wire.errors import BadHTTP, HeadTooLarge, MethodNotAllowed, TargetTooLong

HEAD = b"POST /v1/x HTTP/1.1\r\nHost: a\r\nX-A: 1\r\nx-a: 2\r\n\r\n"
LIMIT = 1000


def parser(data: bytes) -> RequestParser:
    made = RequestParser()
    made.buffer += data
    return made


def head_of(requests: RequestParser) -> Fields | None:
    """Take a head off the buffer and parse it, if it is complete."""
    raw = requests.take_head(LIMIT)
    return None if raw is None else requests.parse(raw)


def test_a_head_is_removed_from_the_buffer_when_it_is_complete() -> None:
    requests = parser(HEAD[:-1])
    assert head_of(requests) is None
    assert requests.line.target == b"/v1/x"
    requests.buffer += HEAD[-1:] + b"more"
    fields = head_of(requests)
    assert fields is not None and fields[b"x-a"] == [b"1", b"2"]
    assert requests.buffer == b"more"


@given(cuts=st.lists(st.integers(0, 140), max_size=8))
def test_bodies_and_heads_may_arrive_in_any_pieces(cuts: list[int]) -> None:
    requests, heads, bodies, in_body = RequestParser(), 0, [], False
    data = (HEAD.replace(b"X-A: 1", b"Content-Length: 4") + b"body") * 2
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    for start, stop in itertools.pairwise(edges):
        requests.buffer += data[start:stop]
        while True:
            if not in_body:
                if head_of(requests) is None:
                    break
                heads += 1
                requests.expect_body(4, LIMIT, LIMIT)
            body = requests.body()
            in_body = body is None
            if body is None:
                break
            bodies.append(body)
    assert (heads, bodies) == (2, [b"body", b"body"])


def test_a_chunked_body_is_followed_by_the_next_head() -> None:
    requests = parser(HEAD.replace(b"X-A: 1", b"Transfer-Encoding: chunked"))
    assert head_of(requests) is not None
    requests.expect_body(None, LIMIT, LIMIT)
    requests.buffer += b"2\r\nhi\r\n"
    assert requests.body() is None and requests.gathered == 2
    requests.buffer += b"0\r\n\r\n" + HEAD
    assert requests.body() == b"hi"
    assert head_of(requests) is not None


def test_a_request_to_upgrade_is_read_as_any_other() -> None:
    upgrade = HEAD.replace(b"X-A: 1", b"Connection: upgrade\r\nUpgrade: h2c")
    requests = parser(upgrade.replace(b"x-a: 2", b"Content-Length: 2") + b"hi" + HEAD)
    assert head_of(requests) is not None
    requests.expect_body(2, LIMIT, LIMIT)
    assert requests.body() == b"hi"
    assert head_of(requests) is not None


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"GET /" + b"a" * LIMIT, TargetTooLong),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * LIMIT, HeadTooLarge),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * LIMIT + b"\r\n\r\n", HeadTooLarge),
        (b"GET / HTTP/1.1\nHost: a\r\n\r\n", BadHTTP),
        (b"GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", BadHTTP),
        (b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n", MethodNotAllowed),
    ],
    ids=["line too long", "head too long", "complete and too long", "bare LF", "folded", "method"],
)
def test_what_is_not_valid_is_refused(data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        head_of(parser(data))


def test_a_later_version_is_read_as_1_1_and_an_empty_line_before_a_head_is_skipped() -> None:
    requests = parser(b"\r\n" + HEAD.replace(b"1.1", b"1.7"))
    assert head_of(requests) is not None and requests.line.minor == b"1"
