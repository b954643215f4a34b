"""Answers as they are written."""

from __future__ import annotations

from tests.memory import echo_gateway


def test_head_has_headers_and_no_body() -> None:
    transport = echo_gateway().request("HEAD", "/v1/models")
    head, _, body = transport.value().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200") and b"Content-Length" in head and not body


def test_the_log_counts_the_bytes_that_were_sent() -> None:
    gateway = echo_gateway()
    for method, path in (("GET", "/healthz"), ("HEAD", "/healthz"), ("HEAD", "/nothing")):
        body = gateway.request(method, path).value().partition(b"\r\n\r\n")[2]
        assert gateway.ended[-1].bytes_out == len(body)
