"""The heads of requests and responses as they are written."""

from __future__ import annotations

from gatewayd.http1.writing import CONTINUE, header_lines, request_head, response_head


def test_a_response_head_keeps_the_order_and_the_spelling_of_its_fields() -> None:
    fields = ((b"content-type", b"text/plain"), (b"X-Request-ID", b"a"), (b"X-A", b""))
    expected = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nX-Request-ID: a\r\nX-A: \r\n\r\n"
    assert response_head(200, fields) == expected


def test_a_status_without_a_standard_phrase_is_an_error() -> None:
    assert response_head(503, ()) == b"HTTP/1.1 503 Service Unavailable\r\n\r\n"
    assert response_head(529, ()) == b"HTTP/1.1 529 Error\r\n\r\n"


def test_a_head_without_fields() -> None:
    assert CONTINUE == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert request_head(b"GET", b"/", b"") == b"GET / HTTP/1.1\r\n\r\n"


def test_a_request_head() -> None:
    lines = header_lines([(b"Host", b"gpu1"), (b"Content-Length", b"2")])
    head = request_head(b"POST", b"/v1/x", lines)
    assert head == b"POST /v1/x HTTP/1.1\r\nHost: gpu1\r\nContent-Length: 2\r\n\r\n"
