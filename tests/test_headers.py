"""Which header fields of a reply cross to the client."""

from __future__ import annotations

import pytest

from gatewayd.backend.headers import RequestHeaders, crossing
from gatewayd.http1.replies import ReplyParser
from tests.backendside import GatewayWorld, reply
from tests.memory import Answer


def test_the_fields_of_a_request_can_be_read_and_are_not_shown() -> None:
    headers = RequestHeaders(b"Accept: a: b\r\nAuthorization: Bearer secret\r\n")
    assert dict(headers.getAllRawHeaders()) == {
        b"Accept": [b"a: b"],
        b"Authorization": [b"Bearer secret"],
    }
    assert headers.getRawHeaders(b"accept") == [b"a: b"] and headers.hasHeader("Authorization")
    assert headers.copy() is headers
    assert "secret" not in repr(headers)


def test_only_listed_fields_cross() -> None:
    limit = (b"anthropic-ratelimit-requests-remaining", b"9")
    fields = {b"retry-after": b"1\t", b"server": b"x", b"content-type": b"A/B; c "}
    fields |= {b"request-id": b"theirs", b"anthropic-organization-id": b"x", limit[0]: limit[1]}
    assert crossing(fields) == ("a/b", "; c", ((b"retry-after", b"1"), limit))
    assert crossing({limit[0]: limit[1]}) == ("", "", (limit,))


def test_fields_are_added_behind_those_that_were_encoded() -> None:
    headers = RequestHeaders(b"A: 1\r\n")
    more = headers.with_fields([(b"B", b"2"), (b"B", b"3")])
    assert (headers.lines, more.lines) == (b"A: 1\r\n", b"A: 1\r\nB: 2\r\nB: 3\r\n")


@pytest.mark.parametrize("first", [b"", b"\xff"])
def test_only_the_first_field_of_a_name_counts(first: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nX-RateLimit-A: %b\r\n" % (first, first)
    parser = ReplyParser(1000)
    parser.feed(head + b"content-type: a/b\r\nx-ratelimit-a: 1\r\n\r\n")
    crosses = ((b"x-ratelimit-a", first),) if not first else ()
    assert crossing(parser.fields) == ("", "", crosses)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (b"audio/mpeg; rate=24000", "audio/mpeg; rate=24000"),
        (b"Audio/L16;rate=24000;channels=1", "audio/l16;rate=24000;channels=1"),
        (b"text/plain; charset=utf-8", "text/plain; charset=utf-8"),
        (b'audio/x; a="b;c"', 'audio/x; a="b;c"'),
        (b"audio/mpeg", "audio/mpeg"),
        (b"audio/mpeg ;", "audio/mpeg"),
        (b"audio/mpeg; a=\xff", "audio/mpeg"),
        (b"audio/mpeg; a=\tb", "audio/mpeg"),
        (b"audio/mpeg; a=" + b"b" * 300, "audio/mpeg"),
        (b"audio/mpeg, text/html", None),
        (b"audio/\xe9", None),
        (b"audio", None),
        (b"text/html; charset=utf-8", None),
        (b"a/" + b"b" * 300, None),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_content_type_crosses_with_its_parameters(theirs: bytes, ours: str | None) -> None:
    world = GatewayWorld()
    client = world.speech()
    world.accept().protocol.dataReceived(reply(b"sound", theirs))
    if ours is None:
        assert Answer(client).code == "upstream_bad_response"
    else:
        assert Answer(client).header("content-type") == ours
        assert Answer(client).body == b"sound"


@pytest.mark.parametrize("value", [b"\xff", b"a\tb", b"9" * 300])
def test_a_value_that_is_long_or_not_printable_does_not_cross(value: bytes) -> None:
    world = GatewayWorld()
    client = world.speech()
    more = b"X-RateLimit-Odd: %b\r\nX-RateLimit-Limit: 5\r\n" % value
    answer = reply(b"sound", b"audio/mpeg").replace(b"\r\n", b"\r\n" + more, 1)
    world.accept().protocol.dataReceived(answer)
    assert Answer(client).header("x-ratelimit-limit") == "5"
    assert Answer(client).header("x-ratelimit-odd") is None
