"""The head of a request: what llhttp accepts and another parser could read differently."""

import pytest

from gatewayd.http1.head import Fields, Framing, RequestLine
from gatewayd.wire.errors import (
    BadHTTP,
    ExpectationFailed,
    GatewayError,
    HeadTooLarge,
    RequestTooLarge,
)

GET = RequestLine(b"GET", b"/", b"1")
GET_1_0 = RequestLine(b"GET", b"/", b"0")


def framing(*headers: tuple[bytes, bytes], line: RequestLine = GET) -> Framing:
    """The framing of a request with these headers; with a valid Host unless they have one."""
    host = [] if any(name == b"host" for name, _ in headers) else [(b"host", b"localhost")]
    return Framing.of(line, Fields([*host, *headers]))


def refused(*headers: tuple[bytes, bytes], line: RequestLine = GET) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        framing(*headers, line=line)
    return caught.value


# -- the request line ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        (b"GET /healthz HTTP/1.1\r", (b"GET", b"/healthz", b"1")),
        (b"POST /v1/x?a=b%20c HTTP/1.0\r", (b"POST", b"/v1/x?a=b%20c", b"0")),
        (b"M-SEARCH * HTTP/1.1\r", (b"M-SEARCH", b"*", b"1")),
        (b"GET http://h/x HTTP/1.1\r", (b"GET", b"http://h/x", b"1")),
        (b"GET / HTTP/1.2\r", (b"GET", b"/", b"1")),
        (b"GET / HTTP/1.9\r", (b"GET", b"/", b"1")),
    ],
)
def test_a_request_line_has_three_parts(line: bytes, parts: tuple[bytes, bytes, bytes]) -> None:
    read = RequestLine.parse(line)
    assert (read.method, read.target, read.minor) == parts


@pytest.mark.parametrize(
    "line",
    [
        b"GET  /healthz HTTP/1.1\r",
        b"GET /healthz  HTTP/1.1\r",
        b"GET\t/healthz HTTP/1.1\r",
        b"GET /healthz\tHTTP/1.1\r",
        b" GET /healthz HTTP/1.1\r",
        b"GET /healthz HTTP/1.1 \r",
        b"GET /healthz HTTP/1.1",
        b"GET /healthz HTTP/1.1\r\r",
        b"GET /healthz\rX: y HTTP/1.1\r",
        b"GET /health\x00z HTTP/1.1\r",
        b"GET /health\x7fz HTTP/1.1\r",
        b"G(T /healthz HTTP/1.1\r",
        b" /healthz HTTP/1.1\r",
        b"GET /\xff HTTP/1.1\r",
        b"GET  HTTP/1.1\r",
        b"GET HTTP/1.1\r",
        b"GET /healthz\r",
        b"GET /a b HTTP/1.1\r",
        b"GET /healthz HTTP/2.0\r",
        b"GET /healthz HTTP/0.9\r",
        b"PRI * HTTP/2.0\r",
        b"GET /healthz HTTP/4294967295.255\r",
        b"GET /healthz HTTP/1.10\r",
        b"GET /healthz http/1.1\r",
        b"GET /healthz ICE/1.1\r",
        b"\r",
        b"",
    ],
)
def test_a_request_line_that_could_be_read_in_two_ways_is_refused(line: bytes) -> None:
    with pytest.raises(BadHTTP):
        RequestLine.parse(line)


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/", b"/"),
        (b"/v1/models", b"/v1/models"),
        (b"/v1/models?a=/b?c", b"/v1/models"),
        (b"/v1/x?u=http://h/healthz", b"/v1/x"),
        (b"//v1/models", b"//v1/models"),
        (b"/v1%2fmodels", b"/v1%2fmodels"),
        (b"/v1/../healthz", b"/v1/../healthz"),
        (b"/v1/models;x", b"/v1/models;x"),
        (b"http://h/v1/models?a", b"/v1/models"),
        (b"HTTPS://h:8/v1//models", b"/v1//models"),
        (b"http://h", b"/"),
        (b"http://h?a", b"/"),
        (b"http://h?a=/v1/models", b"/"),
        (b"ftp://h/healthz", b"ftp://h/healthz"),
        (b"*", b"*"),
    ],
)
def test_the_path_is_that_of_the_target_unchanged(target: bytes, path: bytes) -> None:
    assert RequestLine(b"GET", target, b"1").path == path


@pytest.mark.parametrize(
    ("method", "target"),
    [
        *(
            (b"GET", target)
            for target in (b"/", b"//", b"/*", b"http://h", b"HTTPS://h/", b"a+b://")
        ),
        *((b"OPTIONS", target) for target in (b"*", b"/", b"http://h")),
    ],
)
def test_a_target_is_a_path_or_a_url_or_the_whole_server(method: bytes, target: bytes) -> None:
    line = RequestLine(method, target, b"1")
    assert Framing.of(line, Fields([(b"Host", b"a")])).length == 0


@pytest.mark.parametrize(
    ("method", "target"),
    [
        *((b"GET", target) for target in (b"*", b"h:80", b"healthz", b"://h", b"?a", b"1a://h")),
        *((b"OPTIONS", target) for target in (b"**", b"*/", b"h:80")),
    ],
)
def test_any_other_target_is_refused(method: bytes, target: bytes) -> None:
    assert isinstance(refused(line=RequestLine(method, target, b"1")), BadHTTP)


@pytest.mark.parametrize("target", [b"h:80", b"/", b"*"])
def test_no_tunnel_is_opened(target: bytes) -> None:
    error = refused(line=RequestLine(b"CONNECT", target, b"1"))
    assert error.status == 405 and dict(error.headers)[b"allow"]


# -- white space ---------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [b"", b" ", b"\t "])
@pytest.mark.parametrize("behind", [b"", b" ", b"\t", b" \t  "])
def test_spaces_and_tabs_around_a_value_are_not_part_of_it(before: bytes, behind: bytes) -> None:
    def padded(name: bytes, value: bytes) -> tuple[bytes, bytes]:
        return name, before + value + behind

    host, expect = padded(b"host", b"a:80"), padded(b"Expect", b"100-continue")
    length, close = padded(b"Content-Length", b"5"), padded(b"Connection", b"close")
    assert framing(host, length, expect, close) == Framing(5, persistent=False, wants_continue=True)
    assert framing(padded(b"Transfer-Encoding", b"chunked")).length is None
    assert Fields([padded(b"X-A", b"b c")])[b"x-a"] == [b"b c"]


@pytest.mark.parametrize("odd", [b"\x0b", b"\x0c", b"\xa0", b"\x85", b"\r", b"\0"])
def test_nothing_else_is_white_space(odd: bytes) -> None:
    """Other parsers strip these characters. This one refuses them."""
    for value in (odd + b"chunked", b"chunked" + odd):
        assert isinstance(refused((b"transfer-encoding", value)), BadHTTP)
    for value in (odd + b"5", b"5" + odd, b"27 27"):
        assert isinstance(refused((b"content-length", value)), RequestTooLarge)
    assert isinstance(refused((b"expect", b"100-continue" + odd)), ExpectationFailed)
    assert framing((b"connection", odd + b"close")).persistent


# -- Host ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [b"localhost", b"a.example:8000", b"127.0.0.1:80", b"[::1]", b"[fe80::1]:8000", b"a_b", b""],
)
def test_a_host_is_a_name_or_address_with_an_optional_port(host: bytes) -> None:
    assert framing((b"host", host)) == Framing(0, persistent=True, wants_continue=False)


@pytest.mark.parametrize(
    "host",
    [
        b"a b/..",
        b"[::1",
        b"::1",
        b"[]",
        b"\xff\xfe",
        b"localhost/#@evil",
        b"localhost:4000/#@x",
        b"user@localhost",
        b"localhost:",
        b"localhost:x",
        b"localhost:123456",
        b"a,b",
        b"a" * 300,
        b"a\x00",
    ],
)
def test_any_other_host_is_refused(host: bytes) -> None:
    assert isinstance(refused((b"host", host)), BadHTTP)


def test_http_1_1_needs_exactly_one_host() -> None:
    with pytest.raises(BadHTTP):
        Framing.of(GET, Fields())
    assert isinstance(refused((b"host", b"a"), (b"host", b"a")), BadHTTP)
    assert isinstance(refused((b"host", b"a"), (b"host", b"b"), line=GET_1_0), BadHTTP)
    assert Framing.of(GET_1_0, Fields()).length == 0


# -- the body's frame ----------------------------------------------------------------------------


def test_a_body_has_a_length_or_is_chunked_or_is_absent() -> None:
    assert framing((b"content-length", b"27")).length == 27
    assert framing((b"content-length", b"0027")).length == 27
    assert framing((b"transfer-encoding", b"Chunked")).length is None
    assert framing().length == 0


@pytest.mark.parametrize(
    "coding",
    [
        b"gzip, chunked",
        b"chunked, chunked",
        b"xchunked",
        b",chunked",
        b"chunked,",
        b"\x0bchunked",
        b"chunked\xa0",
        b"chunked;q=1",
        b"identity",
        b"gzip",
        b"",
    ],
)
def test_any_transfer_coding_but_chunked_is_refused(coding: bytes) -> None:
    assert isinstance(refused((b"transfer-encoding", coding)), BadHTTP)


def test_chunked_comes_once_without_a_length_and_in_http_1_1() -> None:
    chunked, length = (b"transfer-encoding", b"chunked"), (b"content-length", b"27")
    assert isinstance(refused(chunked, chunked), BadHTTP)
    assert isinstance(refused(chunked, length), BadHTTP)
    assert isinstance(refused(length, chunked), BadHTTP)
    assert isinstance(refused(chunked, line=GET_1_0), BadHTTP)


def test_a_length_of_very_many_digits_is_too_large() -> None:
    assert isinstance(refused((b"content-length", b"9" * 5000)), RequestTooLarge)
    assert framing((b"content-length", b"9" * 18)).length == 10**18 - 1


def test_a_head_may_have_500_header_lines() -> None:
    many = [(b"x-%d" % i, b"") for i in range(250)] + [(b"x-a", b"")] * 249
    assert framing(*many).length == 0
    assert isinstance(refused(*many, (b"x-b", b"")), HeadTooLarge)


# -- the connection ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "persistent"),
    [
        ([], True),
        ([b"keep-alive"], True),
        ([b"X-Close"], True),
        ([b"close"], False),
        ([b"Close, X"], False),
        ([b"X ,\tCLOSE"], False),
        ([b"keep-alive", b"close"], False),
    ],
)
def test_a_connection_is_kept_unless_the_client_says_close(
    values: list[bytes], persistent: bool
) -> None:
    headers = [(b"connection", value) for value in values]
    assert framing(*headers).persistent is persistent
    assert not framing(*headers, line=GET_1_0).persistent


def test_a_client_can_wait_for_100_continue() -> None:
    expect, length = (b"expect", b"100-Continue"), (b"content-length", b"5")
    assert framing(expect, length).wants_continue
    assert not framing(length).wants_continue
    assert not framing(expect, length, line=GET_1_0).wants_continue


@pytest.mark.parametrize("value", [b"200-ok", b"100-continue, x", b""])
def test_any_other_expectation_fails(value: bytes) -> None:
    assert isinstance(refused((b"expect", value)), ExpectationFailed)
    assert isinstance(refused((b"expect", b"100-continue"), (b"expect", value)), ExpectationFailed)
