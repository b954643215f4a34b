"""TLS to a backend: what the log says of a failure. Handshakes are in the integration tests."""

from __future__ import annotations

import pytest
from OpenSSL import SSL
from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure

from gatewayd.backend.tls import ClientTLS


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (SSL.Error([("SSL routines", "", "wrong version number")]), "wrong version number"),
        (SSL.Error([("a", "", "one"), ("b", "", "two")]), "one, two"),
        (SSL.Error([]), "Error([])"),
        (SSL.Error(), "Error()"),
        (SSL.SysCallError(-1, "Unexpected EOF"), "SysCallError(-1, 'Unexpected EOF')"),
        (SSL.ZeroReturnError(), "ZeroReturnError()"),
        (ConnectionLost(), "ConnectionLost: Connection to the other side was lost in a non-clean"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_every_openssl_error_has_a_reason_in_words(problem: Exception, said: str) -> None:
    assert ClientTLS.handshake_problem(Failure(problem), None).startswith(said)


@pytest.mark.parametrize("host", ["llama_server", "gpu1.lan", "127.0.0.1", "::1", "localhost"])
def test_a_certificate_can_be_for_each_of_these_hosts(host: str) -> None:
    ClientTLS(host, [])
