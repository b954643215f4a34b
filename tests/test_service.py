"""The service as a whole: in which order its parts start and stop."""

from __future__ import annotations

import gc
import json
import os
import tempfile
from typing import Any

from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.daemon import reload_command, service
from gatewayd.daemon.drain import FLUSH_SECONDS
from gatewayd.daemon.service import GatewayService
from gatewayd.daemon.signals import Signals
from gatewayd.exchange import Exchange
from gatewayd.telemetry.metrics import LAG_SECONDS, PrometheusMetrics
from tests.backendside import connected
from tests.memory import RAW_CHAT, ClientTransport, connect, settings
from tests.observing import FakeSystemd, samples


class Services(SynchronousTestCase):
    def setUp(self) -> None:
        self.systemd = FakeSystemd(15.0)
        self.patch(service, "Systemd", lambda: self.systemd)
        self.patch(gc, "freeze", lambda: None)
        self.patch(gc, "set_threshold", lambda _: None)
        self.patch(Signals, "install", lambda _: None)
        self.reactor: Any = MemoryReactorClock()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.log = f"{folder.name}/access.log"
        given = settings(
            log_access=self.log, backend_a_url="http://127.0.0.1:1", timeouts_connect="600"
        )
        self.service = GatewayService(given, lambda: given, self.reactor)

    def connect(self, request: bytes = b"") -> ClientTransport:
        return connect(self.service.serving.site, request)


class Starts(Services):
    def test_making_the_service_opens_nothing(self) -> None:
        assert self.reactor.tcpServers == [] and self.reactor.getDelayedCalls() == []

    def test_twistd_opens_the_port_with_root_rights(self) -> None:
        self.service.privilegedStartService()
        assert [server[0] for server in self.reactor.tcpServers] == [8000]
        self.service.startService()
        assert len(self.reactor.tcpServers) == 1

    def test_a_stop_cancels_what_backends_are_asked(self) -> None:
        given = settings(backend_a_url="http://127.0.0.1:1", backend_a_models="auto")
        self.service = GatewayService(given, lambda: given, self.reactor)
        self.service.startService()
        server = connected(self.reactor.tcpClients[0][2])
        assert server.value().startswith(b"GET /v1/models ")
        self.service.stopService()
        assert server.aborted

    def test_twist_starts_the_service_without_a_privileged_start(self) -> None:
        self.service.startService()
        assert [server[0] for server in self.reactor.tcpServers] == [8000]

    def test_the_address_of_handed_over_sockets_replaces_the_one_of_the_settings(self) -> None:
        self.service._ports.host = "0.0.0.0"  # as if systemd had opened the sockets there
        self.service.privilegedStartService()
        assert self.service.serving.settings.gateway.listen == "0.0.0.0"
        with capturedLogs() as events:
            self.service.reload()
        assert self.service.serving.settings.gateway.listen == "0.0.0.0"
        assert not [event for event in events if "difference" in event]

    def test_systemd_is_told_when_the_loop_runs_and_then_regularly(self) -> None:
        self.reactor.running = False
        self.service.startService()
        assert self.systemd.told == []
        self.reactor.run()
        assert self.systemd.told == ["READY", "WATCHDOG"]
        self.reactor.advance(15)
        assert self.systemd.told == ["READY", "WATCHDOG", "WATCHDOG"]


class Stops(Services):
    def setUp(self) -> None:
        super().setUp()
        self.service.startService()
        self.reactor.run()

    def test_nothing_is_left_once_the_last_request_has_ended(self) -> None:
        client = self.connect(RAW_CHAT)
        stopped = self.service.stopService()
        self.systemd.told.clear()
        self.reactor.pump([1] * 20)
        assert self.systemd.told == ["WATCHDOG"]  # systemd would end a stop that is silent
        self.assertNoResult(stopped)
        client.leave()
        self.successResultOf(stopped)
        assert self.reactor.getDelayedCalls() == []

    def test_a_request_that_takes_too_long_is_logged_before_the_log_is_closed(self) -> None:
        self.connect(RAW_CHAT)
        stopped = self.service.stopService()
        self.reactor.pump([1] * 30 + [FLUSH_SECONDS])
        self.successResultOf(stopped)
        with open(self.log, encoding="utf-8") as log:
            assert [json.loads(line)["end"] for line in log] == ["drained"]

    def test_what_was_counted_is_in_the_metrics_after_each_second_and_at_the_stop(self) -> None:
        registry = self.service.metrics.registry

        def counted() -> float:
            return sum(samples(registry, "gatewayd_requests_total").values())

        for count in (1, 2):
            self.connect(RAW_CHAT).leave()
            assert counted() == count - 1
            self.reactor.advance(LAG_SECONDS)
            assert counted() == count
        late = self.connect(RAW_CHAT)
        stopped = self.service.stopService()
        late.leave()
        self.reactor.advance(0)
        self.successResultOf(stopped)
        assert counted() == 3

    def test_a_reload_during_a_stop_only_reopens_the_log_and_counts_as_failed(self) -> None:
        self.connect(RAW_CHAT)
        self.service.stopService()
        failed: list[bool] = []
        self.patch(reload_command, "answer", lambda **given: failed.append(given["failed"]))
        generation = self.service.serving.generation
        os.rename(self.log, self.log + ".1")
        self.service.reload()
        assert failed == [True] and self.service.serving.generation is generation
        assert os.path.exists(self.log)

    def test_backends_are_not_probed_during_a_stop(self) -> None:
        probes: list[float] = []
        prober = self.service.serving.generation.prober
        self.patch(prober, "check", lambda: probes.append(self.reactor.seconds()))
        self.reactor.advance(1)
        self.connect()
        self.service.stopService()
        self.reactor.pump([1] * 5)
        assert probes == [1]


class Recording(Services):
    def test_promise_1_a_fault_in_the_metrics_reaches_no_client(self) -> None:
        def fails(_: PrometheusMetrics, exchange: Exchange) -> None:
            raise OverflowError("a count of 400 digits")

        self.patch(PrometheusMetrics, "__call__", fails)
        client = self.connect(b"GET /healthz HTTP/1.1\r\nHost: g\r\n\r\n")
        assert client.value().startswith(b"HTTP/1.1 200 OK")
        assert len(self.flushLoggedErrors(OverflowError)) == 1
