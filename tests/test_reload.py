"""A reload: what is built, what is kept, and that a failure changes nothing."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import attrs
import pytest
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.backend.openai import OpenAIBackend
from gatewayd.daemon.reload import BOUND, keep_bound
from gatewayd.daemon.service import GatewayService
from gatewayd.routing.evidence import ClientLeft
from gatewayd.routing.target import Target
from gatewayd.settings.declaring import Setting
from gatewayd.settings.load import load
from gatewayd.settings.model import BackendSettings, Settings
from tests.backendside import connected, reply
from tests.certificates import certificate
from tests.inifile import EVERY
from tests.memory import RAW_CHAT, ClientTransport, connect, fails
from tests.observing import FakeSystemd

DOCS = (Path(__file__).parent.parent / "docs" / "configuration.rst").read_text()


def backend(name: str, port: int, **more: object) -> str:
    lines = [f"[backend {name}]", f"url = http://127.0.0.1:{port}"]
    return "\n".join([*lines, *(f"{key} = {value}" for key, value in more.items()), ""])


class Reloads(SynchronousTestCase):
    """A daemon without sockets; its settings are a file."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.path = self.folder / "gatewayd.ini"
        self.reactor: Any = MemoryReactorClock()
        self.systemd = FakeSystemd()

    def serve(self, text: str) -> None:
        self.write(text)
        self.service = GatewayService(self.read(), self.read, self.reactor)
        self.service._systemd = self.systemd  # type: ignore[assignment]
        self.service.privilegedStartService()

    def write(self, text: str) -> None:
        self.path.write_text(text)
        self.path.chmod(0o600)

    def read(self) -> Settings:
        return load({}, path=str(self.path))

    def reload(self, text: str) -> None:
        self.write(text)
        self.service.reload()

    @property
    def targets(self) -> tuple[Target, ...]:
        return self.service.serving.api.router.targets

    def send(self, request: bytes) -> ClientTransport:
        """Send a request as a new client; return the client's end."""
        return connect(self.service.serving.site, request)

    def ask(self) -> bytes:
        """Send a chat; return what the backend is sent, behind the port that it was sent to."""
        self.send(RAW_CHAT)
        (_, port, factory, _, _) = self.reactor.tcpClients[-1]
        self.backend = connected(factory)
        sent: bytes = self.backend.value()
        return b"%d " % port + sent

    def answer(self) -> None:
        """Answer what :meth:`ask` sent, so that its connection is idle."""
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        body = b'{"object": "chat.completion", "choices": [{"index": 0, "message": '
        body += b'{"role": "assistant", "content": "x"}, "finish_reason": "stop"}]}'
        self.backend.protocol.dataReceived(head % len(body) + body)


class FailedReloads(Reloads):
    def fail_for(self, name: str) -> Any:
        """Make the constructor of the backend of this name fail."""
        make = OpenAIBackend.__init__

        def made(self: OpenAIBackend, own: BackendSettings, *rest: Any) -> None:
            if own.name == name:
                raise RuntimeError("no such cipher")
            make(self, own, *rest)

        return mock.patch.object(OpenAIBackend, "__init__", made)

    def test_a_reload_that_fails_half_way_changes_nothing_and_the_next_one_works(self) -> None:
        self.serve(backend("a", 1, api_key="key-of-a"))
        before = self.service.serving.settings, self.service.serving.api, self.targets
        with self.fail_for("bad"):
            self.reload(backend("b", 2, api_key="key-of-b") + backend("bad", 3))
        assert (self.service.serving.settings, self.service.serving.api, self.targets) == before
        assert self.ask().startswith(b"1 ")
        self.reload(backend("b", 2, api_key="key-of-b"))
        sent = self.ask()
        assert sent.startswith(b"2 ") and b"Bearer key-of-b" in sent

    def test_systemd_is_told_ready_and_that_the_reload_failed(self) -> None:
        self.serve(backend("a", 1))
        with self.fail_for("bad"):
            self.reload(backend("bad", 3))
        reloading, ready = self.systemd.told
        assert reloading == "RELOADING"
        assert ready.startswith("FAILED listens on ")
        self.reload(backend("b", 2))
        assert self.systemd.told[-1].startswith("READY listens on ")

    def test_an_unexpected_exception_while_reading_is_logged_and_changes_nothing(self) -> None:
        def broken() -> Settings:
            raise ZeroDivisionError

        self.serve(backend("a", 1))
        self.service._load = broken
        self.service.reload()
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1
        assert self.systemd.told[-1].startswith("FAILED listens on ")

    def test_an_exception_after_the_exchange_undoes_nothing_and_systemd_is_told_ready(self) -> None:
        self.serve(backend("a", 1))

        def fails() -> None:
            raise OSError("no file descriptor is left")

        self.targets[0].backend.close = fails  # type: ignore[method-assign]
        self.reload(backend("b", 2))
        assert len(self.flushLoggedErrors(OSError)) == 1
        assert self.systemd.told[-1].startswith("READY listens on ")
        assert self.ask().startswith(b"2 ")

    def test_the_limits_of_a_failed_reload_are_not_used(self) -> None:
        self.serve(backend("a", 1))
        with self.fail_for("bad"):
            self.reload("[limits]\nin_flight = 1\n" + backend("bad", 3))
        self.ask()
        assert self.ask().startswith(b"1 ")


class KeptTargets(Reloads):
    def test_a_change_of_the_limits_keeps_every_target_with_its_requests(self) -> None:
        self.serve(backend("a", 1) + backend("b", 2))
        kept = self.targets
        self.ask()
        self.reload("[limits]\nreply = 1 KiB\njson_depth = 5\n" + backend("a", 1) + backend("b", 2))
        assert self.targets == kept
        assert sum(target.in_flight for target in self.targets) == 1

    def test_models_limits_and_clocks_change_in_place_and_the_connection_stays(self) -> None:
        self.serve(backend("a", 1))
        self.ask()
        self.answer()
        (target,) = self.targets
        text = backend("a", 1, models="m, n = real", in_flight=2, first_byte=3, count_usage="yes")
        self.reload(text)
        assert self.targets == (target,)
        assert target.models.names == ["m", "n"]
        assert target.models.real_name("n") == "real"
        assert target.backend.clocks.first_byte == 3
        before = len(self.reactor.tcpClients)
        target.begin()
        target.begin()
        assert target.full
        target.settle(0, ClientLeft())
        self.backend.clear()
        self.send(RAW_CHAT)
        assert self.backend.value().startswith(b"POST ")
        assert len(self.reactor.tcpClients) == before

    def test_the_connect_timeout_and_the_limit_of_a_head_reach_the_connections(self) -> None:
        self.serve(backend("a", 1))
        self.reload("[limits]\nrequest_head = 1 KiB\n" + backend("a", 1, connect=3))
        self.ask()
        self.backend.protocol.dataReceived(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 2000)
        assert self.backend.aborted
        client = self.send(RAW_CHAT)
        self.reactor.pump([2.9, 0.2, 0.1])
        assert client.value().startswith(b"HTTP/1.1 504 ")

    def test_the_limit_of_a_head_reaches_a_connection_that_is_used_again(self) -> None:
        self.serve(backend("a", 1))
        self.ask()
        self.answer()
        self.reload("[limits]\nrequest_head = 1 KiB\n" + backend("a", 1))
        client = self.send(RAW_CHAT)
        assert len(self.reactor.tcpClients) == 1
        self.backend.protocol.dataReceived(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 2000)
        assert client.value().startswith(b"HTTP/1.1 502 ")

    def test_another_order_moves_no_backend(self) -> None:
        self.serve(backend("a", 1, api_key="ka") + backend("b", 2, api_key="kb"))
        a, b = self.targets
        self.reload(backend("b", 2, api_key="kb") + backend("c", 3) + backend("a", 1, api_key="ka"))
        assert self.targets[0] is b and self.targets[2] is a

    def test_another_url_or_key_is_another_server(self) -> None:
        self.serve(backend("a", 1, api_key="ka"))
        for text in (backend("a", 2, api_key="ka"), backend("a", 2, api_key="kb")):
            before = self.targets
            self.reload(text)
            assert self.targets[0] is not before[0]

    def test_an_ejected_backend_stays_ejected(self) -> None:
        self.serve(backend("a", 1) + backend("b", 2))
        target = self.targets[0]
        for _ in range(9):
            fails(target.health, 0)
        assert not target.health.usable
        self.reload(backend("a", 1, models="m") + backend("b", 2))
        assert self.targets[0] is target and not target.health.usable

    def test_the_result_of_a_health_path_is_forgotten_when_the_path_is_removed(self) -> None:
        self.serve(backend("a", 1, health="/health") + backend("b", 2))
        target = self.targets[0]
        target.health.check_loading()
        assert not target.health.usable
        self.reload(backend("a", 1) + backend("b", 2))
        assert self.targets[0] is target and target.health.usable

    def test_the_echo_is_kept_and_takes_the_new_title(self) -> None:
        self.serve("")
        (target,) = self.targets
        self.reload("[gateway]\napi_title = other\n")
        assert self.targets == (target,)
        entries = self.successResultOf(target.backend.models("id"))
        assert entries["echo"]["owned_by"] == "other"

    def test_the_models_that_backends_have_listed_stay_known(self) -> None:
        self.serve("")
        self.send(b"GET /v1/models HTTP/1.1\r\nHost: g\r\n\r\n")
        assert self.service.serving.api.model_names() == ["echo"]
        self.reload("[timeouts]\nping = 1\n")
        assert self.service.serving.api.model_names() == ["echo"]

    def test_what_a_backend_has_listed_stays_known_and_is_asked_for_anew(self) -> None:
        self.serve(backend("a", 1, models="auto") + backend("b", 2, models="x"))
        self.service.serving.generation.discovery.check()
        connections = self.reactor.tcpClients
        assert [port for _, port, *_ in connections] == [1]
        server = connected(connections[0][2])
        assert server.value().startswith(b"GET /v1/models ")
        server.protocol.dataReceived(reply(b'{"data": [{"id": "listed"}]}'))
        sent = len(server.value())
        self.reload(backend("a", 1, models="auto, y = listed") + backend("b", 2, models="x"))
        (a, _) = self.targets
        assert a.models.real_name("listed") == a.models.real_name("y") == "listed"
        assert server.value()[sent:].startswith(b"GET /v1/models ")
        self.reload(backend("a", 1, models="y") + backend("b", 2, models="x"))
        assert server.aborted and a.models.real_name("listed") is None
        assert len(connections) == 1

    def test_a_second_backend_changes_what_the_first_without_models_serves_for_sure(self) -> None:
        self.serve(backend("a", 1))
        self.service.serving.generation.discovery.check()
        assert not self.reactor.tcpClients and self.targets[0].models.real_name("m") == "m"
        self.reload(backend("a", 1) + backend("b", 2))
        assert [port for _, port, *_ in self.reactor.tcpClients] == [1, 2]
        assert self.targets[0].models.real_name("m") is None
        self.reload(backend("a", 1))
        assert self.targets[0].models.real_name("m") == "m"

    def test_the_port_of_the_metrics_uses_the_new_settings_too(self) -> None:
        metrics = "[metrics]\nlisten = 127.0.0.1:9\n"
        self.serve(metrics)
        site = self.reactor.tcpServers[-1][1]
        self.reload(metrics + "[limits]\nconnections = 7\n[gateway]\napi_title = other\n")
        assert site.state.settings.limits.connections == 7
        assert b"\r\nServer: other\r\n" in site.state.response_head(200, {})


class Warned(Reloads):
    def warnings_of(self, do: Callable[[], object]) -> list[str]:
        with capturedLogs() as events:
            do()
        return [formatEvent(event) for event in events if event["log_level"] is LogLevel.warn]

    def test_a_reload_without_tokens_warns_about_the_address_that_is_bound(self) -> None:
        token = f"[token a]\nsha256 = {'ab' * 32}\n"
        self.serve("[gateway]\nlisten = 0.0.0.0\n" + token)
        assert self.warnings_of(lambda: self.reload("[gateway]\nlisten = 0.0.0.0\n" + token)) == []
        bound, dangerous = self.warnings_of(lambda: self.reload(""))
        assert "[gateway] listen stays 0.0.0.0 until a restart" in bound
        assert "0.0.0.0 is not a loopback address and there are no tokens" in dangerous

    def test_an_address_that_is_only_in_the_file_causes_no_warning(self) -> None:
        self.serve("")
        (bound,) = self.warnings_of(lambda: self.reload("[gateway]\nlisten = 0.0.0.0\n"))
        assert "[gateway] listen stays 127.0.0.1 until a restart" in bound

    def test_an_expired_certificate_is_logged_at_every_reload(self) -> None:
        crt, key = certificate(self.folder, "own", days=-1)
        Path(key).chmod(0o600)
        text = f"[gateway]\ntls_certificate = {crt}\ntls_key = {key}\n"
        self.serve(text)
        for _ in range(2):
            (expired,) = self.warnings_of(lambda: self.reload(text))
            assert "[gateway] tls_certificate: expired on " in expired


class RenewedFiles(Reloads):
    """A file with new content under the same name is a change."""

    def test_another_tls_ca_under_the_same_path_makes_a_new_target(self) -> None:
        one, _ = certificate(self.folder, "one")
        two, _ = certificate(self.folder, "two")
        trusted = self.folder / "ca.pem"
        trusted.write_bytes(Path(one).read_bytes())
        text = f"[backend a]\nurl = https://127.0.0.1:1\ntls_ca = {trusted}\n"
        self.serve(text)
        (target,) = self.targets
        self.reload(text)
        assert self.targets == (target,)
        trusted.write_bytes(Path(two).read_bytes())
        self.reload(text)
        assert self.targets != (target,)

    def test_another_key_in_the_same_file_is_sent_from_then_on(self) -> None:
        key = self.folder / "key"
        key.write_text("first\n")
        key.chmod(0o600)
        text = backend("a", 1, api_key_file=key)
        self.serve(text)
        assert b"Bearer first\r\n" in self.ask()
        key.write_text("second\n")
        self.reload(text)
        assert b"Bearer second\r\n" in self.ask()


# -- what is bound at the start ------------------------------------------------------------------


def test_the_documentation_lists_what_stays_until_a_restart() -> None:
    listed = DOCS.partition("Until a restart these stay")[2].partition("A backend whose")[0]
    found = set(re.findall(r"``\[(\w+)\] (\w+)``", listed))
    bound = {(section, key) for section, keys in BOUND.items() for key in keys}
    assert found == bound | {("gateway", "tls_certificate")}


@pytest.mark.parametrize(("section", "key", "setting"), EVERY)
def test_every_other_setting_changes_with_a_reload(
    section: str, key: str, setting: Setting
) -> None:
    if section.endswith(" NAME"):
        return  # a backend or token is taken over as a whole
    other = attrs.evolve(getattr(Settings(), section), **{key: object()})
    kept, differences = keep_bound(Settings(), attrs.evolve(Settings(), **{section: other}))
    stays = key in BOUND.get(section, ()) or key == "tls_certificate"
    assert (kept == Settings()) == stays == bool(differences)
