"""Requests that two parsers could read differently, on real sockets.

Each is followed by another request in the same bytes, which must never be answered or logged, and
must never reach a backend.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import attrs
import pytest

from tests.faultbackend import FaultBackend
from tests.integration.client import Client
from tests.integration.gateways import FastGateway
from tests.integration.raw import (
    BODY,
    CLOSE,
    SMUGGLED,
    RawAnswers,
    chat,
    check_refused,
    chunked,
    get,
    post,
    request,
    send_raw,
)

BAD = "400 bad_http"
LARGE = "431 request_too_large"
BAD_OR_LARGE = "400|413|431 bad_http|request_too_large"
MAX_HEAD = 16 * 1024
CHUNKED = b"Transfer-Encoding: chunked"


@attrs.frozen
class Row:
    """
    :param expected: ``STATUS CODE`` of the refusal.
    """

    id: str
    data: bytes = attrs.field(repr=False)
    expected: str = BAD


def length(id: str, *values: bytes, expected: str = BAD) -> Row:
    """A request with these values of Content-Length."""
    lines = [b"Content-Length: " + value for value in values]
    return Row(id, post(*lines, body=BODY), expected)


def coding(id: str, *lines: bytes) -> Row:
    """A request with these lines; chunked if they contain Transfer-Encoding: chunked."""
    return Row(id, post(*lines, body=chunked(BODY)))


def header(id: str, line: bytes) -> Row:
    return Row(id, get(b"/v1/models", line))


def line(id: str, line: bytes) -> Row:
    return Row(id, request(line))


def body(id: str, data: bytes, expected: str = BAD) -> Row:
    """A request whose chunked body has these bytes."""
    return Row(id, post(CHUNKED, body=data), expected)


def padded(size: int) -> bytes:
    """A head of this many bytes."""
    return get(b"/healthz", b"X-A: " + b"a" * (size - len(get(b"/healthz", b"X-A: "))))


def host(id: str, *hosts: bytes) -> Row:
    return Row(id, get(b"/v1/models", *(b"Host: " + value for value in hosts), host=b""))


def target(id: str, target: bytes) -> Row:
    return Row(id, get(target, CLOSE), "404 unknown_url")


ROWS = [
    Row("framings-length-first", post(b"Content-Length: 27", CHUNKED, body=chunked(BODY))),
    Row("framings-coding-first", post(CHUNKED, b"Content-Length: 27", body=chunked(BODY))),
    Row("framings-right-length", post(b"Content-Length: 0", CHUNKED, body=chunked(BODY))),
    Row("framings-1.0", post(CHUNKED, body=chunked(BODY)).replace(b"HTTP/1.1", b"HTTP/1.0")),
    length("lengths-same", b"48", b"48"),
    length("lengths-different", b"48", b"5"),
    length("lengths-list-same", b"48, 48"),
    length("lengths-list-different", b"48,5"),
    length("length-plus", b"+48"),
    length("length-minus", b"-48"),
    length("length-hex", b"0x1b"),
    length("length-underscore", b"4_8"),
    length("length-exponent", b"1e1"),
    length("length-space", b"4 8"),
    length("length-empty", b""),
    length("length-superscript", b"\xb2"),
    length("length-comma", b"48,"),
    length("length-point", b"48.0"),
    length("length-5000-digits", b"9" * 5000, expected=BAD_OR_LARGE),
    length("length-5000-zeros", b"0" * 5000 + b"48", expected=BAD_OR_LARGE),
    length("length-past-64-bits", b"18446744073709551664", expected=BAD_OR_LARGE),
    coding("coding-gzip-chunked", b"Transfer-Encoding: gzip, chunked"),
    coding("coding-chunked-chunked", b"Transfer-Encoding: chunked, chunked"),
    coding("coding-twice", CHUNKED, CHUNKED),
    coding("coding-xchunked", b"Transfer-Encoding: xchunked"),
    coding("coding-comma-first", b"Transfer-Encoding: ,chunked"),
    coding("coding-comma-last", b"Transfer-Encoding: chunked,"),
    coding("coding-vertical-tab", b"Transfer-Encoding: \x0bchunked"),
    coding("coding-nbsp", b"Transfer-Encoding: chunked\xa0"),
    coding("coding-empty", b"Transfer-Encoding: "),
    coding("coding-identity", b"Transfer-Encoding: identity"),
    coding("coding-parameter", b"Transfer-Encoding: chunked;q=1"),
    coding("coding-quoted", b'Transfer-Encoding: "chunked"'),
    coding("coding-chunked-gzip", CHUNKED, b"Transfer-Encoding: gzip"),
    header("header-coding-space", b"Transfer-Encoding : chunked"),
    header("header-length-tab", b"Content-Length\t: 5"),
    header("header-space-in-name", b"X A: v"),
    header("header-no-name", b": v"),
    header("header-no-colon", b"X-A"),
    header("header-latin-1", b"X\xefA: v"),
    header("header-nul", b"X\0A: v"),
    header("header-leading-space", b" X-A: v"),
    header("header-brackets", b"X(A): v"),
    header("header-fold", b"X-A: a\r\n b"),
    header("header-fold-tab", b"X-A: a\r\n\tb"),
    header("header-fold-of-coding", b"Transfer-Encoding:\r\n chunked"),
    Row("header-fold-first", request(b"GET /v1/models HTTP/1.1", host=b" X-A: b\r\nHost: gateway")),
    header("value-nul", b"X-A: a\0b"),
    header("value-bare-cr", b"X-A: a\rb"),
    header("value-bare-lf", b"X-A: a\nX-B: b"),
    header("value-cr-cr-lf", b"X-A: a\r"),
    header("value-01", b"X-A: a\x01b"),
    header("value-escape", b"X-A: a\x1b[31mb"),
    header("value-7f", b"X-A: a\x7fb"),
    Row("line-ends-bare-lf", get(b"/v1/models").replace(b"\r\n", b"\n")),
    Row("line-ends-last-line-only", get(b"/v1/models")[:-2] + b"\n"),
    line("line-two-spaces", b"GET  /healthz HTTP/1.1"),
    line("line-tab", b"GET\t/healthz HTTP/1.1"),
    line("line-leading-space", b" GET /healthz HTTP/1.1"),
    line("line-trailing-space", b"GET /healthz HTTP/1.1 "),
    line("line-method", b"G(T /healthz HTTP/1.1"),
    line("line-lower-case-version", b"GET /healthz http/1.1"),
    line("line-ff", b"GET /\xff HTTP/1.1"),
    line("line-nul", b"GET /\0 HTTP/1.1"),
    line("line-empty-target", b"GET  HTTP/1.1"),
    line("line-no-target", b"GET HTTP/1.1"),
    line("http-2.1", b"GET /healthz HTTP/2.1"),
    Row("line-http-2.0-preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    line("line-http-0.9", b"GET /healthz HTTP/0.9"),
    line("line-no-version", b"GET /healthz"),
    line("line-large-version", b"GET /healthz HTTP/4294967295.255"),
    Row("line-tls", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(99) + b"\r\n\r\n"),
    body("chunk-xx-behind-data", b"5\r\nhelloXX\r\n0\r\n\r\n"),
    body("chunk-lf-behind-data", b"5\r\nhello\n0\r\n\r\n"),
    body("chunk-extra-crlf", b"5\r\nhello\r\n\r\n0\r\n\r\n"),
    body("chunk-lf-in-extension", b"5;a=b\nc\r\nhello\r\n0\r\n\r\n"),
    body("chunk-cr-in-extension", b"5;a=b\rc\r\nhello\r\n0\r\n\r\n"),
    body("chunk-long-size-line", b"0" * 1024 + b"5\r\nhello\r\n0\r\n\r\n"),
    body("extension-without-name", b"5;\r\nhello\r\n0\r\n\r\n"),
    body("extension-that-is-no-token", b"5;bad[=x\r\nhello\r\n0\r\n\r\n"),
    body("chunk-long-extension", b"5;" + b"a" * 1023 + b"\r\nhello\r\n0\r\n\r\n"),
    body("chunk-no-size", b"\r\nhello\r\n0\r\n\r\n"),
    body("chunk-minus", b"-5\r\nhello\r\n0\r\n\r\n"),
    body("chunk-hex-prefix", b"0x5\r\nhello\r\n0\r\n\r\n"),
    body("chunk-space-behind-size", b"5 \r\nhello\r\n0\r\n\r\n"),
    body("chunk-space-before-size", b" 5\r\nhello\r\n0\r\n\r\n"),
    body("chunk-past-64-bits", b"10000000000000005\r\nhello\r\n0\r\n\r\n"),
    body("chunk-size-line-by-lf", b"5\nhello\r\n0\r\n\r\n"),
    body("chunk-last-chunk-by-lf", b"5\r\nhello\r\n0\n\n"),
    body("chunk-folded-trailer", b"5\r\nhello\r\n0\r\nX: a\r\n b\r\n\r\n"),
    body("chunk-nul-in-trailer", b"5\r\nhello\r\n0\r\nX: a\0b\r\n\r\n"),
    body("large-trailers", b"0\r\n" + b"X: %b\r\n" % (b"a" * 4000) * 5 + b"\r\n", BAD_OR_LARGE),
    Row("large-501-headers", get(b"/healthz", *(b"X-%d: a" % i for i in range(501))), LARGE),
    Row("large-long-header", padded(17_000), LARGE),
    Row("large-head-too-long-by-1", padded(MAX_HEAD + 1), LARGE),
    Row("large-head-without-end", padded(20_000)[:-2], LARGE),
    Row("large-long-target", get(b"/" + b"a" * 17_000), "414 request_too_large"),
    host("host-none"),
    host("host-same", b"gateway", b"gateway"),
    host("host-different", b"gateway", b"evil"),
    host("host-path", b"a b/.."),
    host("host-open-bracket", b"[::1"),
    host("host-bytes", b"\xff\xfe"),
    host("host-fragment", b"localhost/#@evil"),
    host("host-fragment-behind-port", b"localhost:4000/#@x"),
    host("host-user", b"user@gateway"),
    host("host-comma", b"gateway, evil"),
    host("host-long", b"a" * 300),
    host("host-port", b"gateway:99999999"),
    target("target-double-slash", b"//v1/chat/completions"),
    target("target-encoded-slash", b"/v1%2fmodels"),
    target("target-dots", b"/v1/../healthz"),
    target("target-nul", b"/v1/models%00"),
    target("target-parameter", b"/v1/models;x"),
    target("target-ff", b"/%ff"),
    target("target-trailing-slashes", b"/v1/models//"),
    target("target-other-host", b"http://evil.example/"),
    target("target-scheme-less", b"//evil.example/healthz"),
    target("target-upper-case", b"/HEALTHZ"),
    target("target-encoded-letter", b"/%68ealthz"),
    target("target-backslash", b"/v1\\models"),
    line("target-authority", b"GET gateway:80 HTTP/1.1"),
    line("whole-server", b"GET * HTTP/1.1"),
    Row("tunnel", request(b"CONNECT gateway:80 HTTP/1.1"), "405 method_not_allowed"),
]  # fmt: skip


@pytest.fixture(scope="module")
def gateway(gateway: FastGateway) -> Iterator[FastGateway]:
    yield gateway
    assert "smuggled" not in gateway.lines()
    assert "/smuggled" not in gateway.output


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_an_ambiguous_request(gateway: FastGateway, sim: FaultBackend, row: Row) -> None:
    sim.reset()
    # The first byte of the body may arrive alone, and the rest later.
    half = row.data.find(b"\r\n\r\n") + 5
    for pieces in [[row.data + SMUGGLED], [row.data[:half], row.data[half:], SMUGGLED]]:
        received = send_raw(gateway.port, *pieces)
        check_refused(gateway, received.answer, row.expected)
        assert received.answer.header("connection") == ["close"]
        assert received.answer.header("location") == []
        assert received.answer.surplus == b""
    assert sim.records == []


LAST = b"Content-Length: %d" % len(BODY)
REST = chunked(BODY[43:])
TRAILERS = b"0\r\nContent-Length: 5\r\nHost: evil\r\nX-Evil: trailer\r\n\r\n"
GOOD = {
    "good-length": [post(LAST, CLOSE, body=BODY)],
    "good-chunked": [post(CHUNKED, CLOSE, body=chunked(BODY, 7))],
    "good-extensions": [post(CHUNKED, CLOSE, body=chunked(BODY, 9, b';a=b;c="d e";f'))],
    "good-upper-case": [post(b"Transfer-Encoding: CHUNKED", CLOSE, body=chunked(BODY))],
    "good-upper-case-size": [post(CHUNKED, CLOSE, body=b"2B\r\n%b\r\n" % BODY[:43] + REST)],
    "good-padded-size": [post(CHUNKED, CLOSE, body=b"00000030\r\n%b\r\n000\r\n\r\n" % BODY)],
    "good-trailers": [post(CHUNKED, CLOSE, body=b"30\r\n%b\r\n" % BODY + TRAILERS)],
    "good-bytes": [bytes([byte]) for byte in post(CHUNKED, CLOSE, body=chunked(BODY, 1))],
    "good-byte-chunks": [post(CHUNKED, CLOSE), *(b"1\r\n%c\r\n" % byte for byte in BODY), TRAILERS],
    "good-leading-crlf": [b"\r\n" + post(LAST, CLOSE, body=BODY)],
    "good-absolute-target": [chat().replace(b"POST ", b"POST http://evil.example")],
    "good-query": [chat().replace(b" HTTP", b"?a=/healthz HTTP")],
    "good-http-1.0": [chat().replace(b"HTTP/1.1\r\nHost: gateway", b"HTTP/1.0")],
    "good-500-headers": [chat(BODY, *(b"X-%d: a" % i for i in range(496)))],
}  # fmt: skip


@pytest.mark.parametrize("id", GOOD)
def test_an_unusual_form_that_is_valid(gateway: FastGateway, sim: FaultBackend, id: str) -> None:
    """In every form the backend receives the body with one Content-Length."""
    received = send_raw(gateway.port, *GOOD[id])
    assert received.answer.status == 200
    (record,) = sim.records_for(*received.answer.header("x-request-id"))
    assert record.body_sha256 == hashlib.sha256(BODY).hexdigest()
    assert record.violations == [] and b"evil" not in record.head.lower()
    assert record.header("content-length") == [f"{len(BODY)}"]


def test_bytes_after_a_last_request_are_not_read(gateway: FastGateway, sim: FaultBackend) -> None:
    """A request that says ``close``."""
    for data in (post(LAST, CLOSE, body=BODY), post(CHUNKED, CLOSE, body=chunked(BODY))):
        received = send_raw(gateway.port, data + SMUGGLED)
        assert (received.answer.status, received.ended) == (200, "closed")


def test_an_error_is_not_taken_for_the_answer_to_the_request_before(gateway: FastGateway) -> None:
    """The answer has a body even after a HEAD, and the log line has no method."""
    with Client(gateway.port) as client:
        client.sock.sendall(request(b"HEAD /healthz HTTP/1.1"))
        assert client.sock.recv(9999).endswith(b"\r\n\r\n")
        client.sock.sendall(request(b"GET  /healthz HTTP/1.1"))
        check_refused(gateway, client.answer(""), BAD)


def test_pipelined_requests_are_answered_in_their_order(gateway: FastGateway) -> None:
    slow = b'{"messages":[{"role":"user","content":"fault:slow-first-byte:1"}]}'
    received: RawAnswers = send_raw(
        gateway.port,
        post(b"Content-Length: %d" % len(slow), b"X-Request-ID: first", body=slow)
        + get(b"/healthz", b"X-Request-ID: second")
        + post(LAST, CLOSE, b"X-Request-ID: third", body=BODY)
        + SMUGGLED,
    )
    first, second, third = received.answers
    assert [first.status, second.status, third.status] == [200] * 3
    ids = [answer.header("x-request-id") for answer in received.answers]
    assert ids == [["first"], ["second"], ["third"]]
    assert first.json()["id"] == "first" and third.json()["id"] == "third"
    assert second.json() == {"status": "ok"}
