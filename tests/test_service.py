"""The service as a whole: what it tells its log and its metrics when an exchange ends."""

from __future__ import annotations

import json

from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.daemon.service import GatewayService
from gatewayd.exchange import Exchange
from tests.memory import settings

REQUEST = b'{"messages": [{"role": "user", "content": "hi"}]}'


class RecordingFaults(SynchronousTestCase):
    """A fault in what records an end must reach neither the client nor the other recorder."""

    def setUp(self) -> None:
        self.service = GatewayService(settings(), settings, Clock())

    def answer(self) -> bytes:
        channel = self.service.site.buildProtocol(None)
        transport = StringTransport()
        channel.makeConnection(transport)
        channel.dataReceived(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(REQUEST) + REQUEST
        )
        written: bytes = transport.value()
        return written

    def test_promise_1_a_fault_in_the_metrics_reaches_no_client(self) -> None:
        def fails(exchange: Exchange) -> None:
            raise OverflowError("a count of 400 digits")

        written: list[Exchange] = []
        self.service.metrics = fails  # type: ignore[assignment]
        self.service._access_log = written.append  # type: ignore[assignment]
        head, _, body = self.answer().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert json.loads(body)["choices"][0]["message"]["content"] == "Echo: hi"
        assert [exchange.end for exchange in written] == ["complete"]
        assert len(self.flushLoggedErrors(OverflowError)) == 1

    def test_a_fault_in_the_access_log_reaches_neither_client_nor_metrics(self) -> None:
        def fails(exchange: Exchange) -> None:
            raise UnicodeEncodeError("utf-8", "\ud800", 0, 1, "half a pair")

        self.service._access_log = fails  # type: ignore[assignment]
        assert self.answer().startswith(b"HTTP/1.1 200 OK")
        counted = b'gatewayd_ends_total{backend="echo",end="complete"} 1.0'
        assert counted in self.service.metrics.text()
        assert len(self.flushLoggedErrors(UnicodeEncodeError)) == 1
