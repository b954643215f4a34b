"""The gateway's own certificate."""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL

from gatewayd.api.tls import Certificate


def test_a_replaced_context_is_for_new_connections() -> None:
    first, second = SSL.Context(SSL.TLS_METHOD), SSL.Context(SSL.TLS_METHOD)
    certificate = Certificate(first)
    protocol: Any = None  # what it is made for does not matter
    before = certificate.serverConnectionForTLS(protocol)
    certificate.context = second
    assert certificate.serverConnectionForTLS(protocol).get_context() is second
    assert before.get_context() is first
