"""The parser of one reply: what it finds in the bytes, and what it refuses."""

from __future__ import annotations

import pytest

from gatewayd.http1.replies import MAX_INTERIM, ReplyParser
from gatewayd.wire.errors import BadReply

OK = b"HTTP/1.1 200 OK\r\n"


def parsed(*pieces: bytes, max_head: int = 1000) -> tuple[ReplyParser, bytes]:
    """The parser after these pieces, and the body that it returned."""
    reply = ReplyParser(max_head)
    return reply, b"".join(map(reply.feed, pieces))


def test_the_head_and_the_body_of_a_reply_are_read() -> None:
    head = OK + b"Set-Cookie: a\r\nx-a: 1\r\nX-A: 2 \r\nConnection: x\r\nContent-Length: 3\r\n\r\n"
    reply, body = parsed(head, b"hi")
    assert (reply.code, reply.length, reply.framed, body) == (200, 3, True, b"hi")
    assert (reply.fields, reply.repeated) == ({b"x-a": b"1"}, [(b"x-a", b"2 ")])
    assert not reply.complete and reply.problem is None
    assert reply.feed(b"!") == b"!" and reply.complete and reply.keep_alive


@pytest.mark.parametrize(
    ("head", "framed", "complete"),
    [
        (b"Content-Length: 0\r\n", True, True),
        (b"Transfer-Encoding: chunked\r\n", True, False),
        (b"", False, False),
    ],
)
def test_how_the_end_of_a_body_is_known(head: bytes, framed: bool, complete: bool) -> None:
    reply, _ = parsed(OK + head + b"\r\n")
    assert (reply.framed, reply.complete) == (framed, complete)


def test_a_status_without_a_body() -> None:
    reply, _ = parsed(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert reply.framed and reply.complete


def test_keep_alive_is_read() -> None:
    reply, _ = parsed(OK + b"Keep-Alive: timeout=5, MAX = 7\r\nContent-Length: 0\r\n\r\n")
    assert (reply.keep_alive_seconds, reply.keep_alive_replies) == (5, 7)


def test_bytes_after_a_reply_end_its_connection_and_leave_the_reply_valid() -> None:
    reply, body = parsed(OK + b"Content-Length: 2\r\n\r\nhi" + OK)
    assert (body, reply.complete, reply.problem, reply.keep_alive) == (b"hi", True, None, False)


def test_interim_replies_are_dropped_up_to_a_limit() -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    reply, _ = parsed(*[interim] * MAX_INTERIM, OK + b"\r\n")
    assert (reply.code, reply.fields, reply.problem) == (200, {}, None)
    reply, _ = parsed(*[interim] * (MAX_INTERIM + 1))
    assert isinstance(reply.problem, BadReply)


@pytest.mark.parametrize("size", [990, 1010])
def test_the_limit_of_a_head_counts_its_fields(size: int) -> None:
    reply, _ = parsed(OK + b"X: " + b"a" * (size - 5) + b"\r\n\r\n")
    assert (reply.problem is None) == (size < 1000)


def test_body_before_a_broken_chunk_is_returned() -> None:
    reply, body = parsed(OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\nzz\r\n")
    assert body == b"hi" and isinstance(reply.problem, BadReply)
