"""The sites of a serving process, and the exchange of the generation that answers behind them."""

from __future__ import annotations

from pathlib import Path

from twisted.internet.testing import MemoryReactorClock

from gatewayd.daemon.generation import Generation, build
from gatewayd.daemon.serving import Serving
from gatewayd.settings.load import load
from tests.certificates import certificate
from tests.memory import connect

MODELS = b"GET /v1/models HTTP/1.1\r\nHost: g\r\n\r\n"


def serve(
    reactor: MemoryReactorClock, before: Generation | None = None, **values: str
) -> Generation:
    environ = {f"GATEWAYD_{name.upper()}": value for name, value in values.items()}
    return build(load(environ), reactor, bytes, before)


def test_a_connection_stays_and_its_next_request_meets_the_new_generation() -> None:
    reactor = MemoryReactorClock()
    first = serve(reactor, gateway_api_title="one", limits_connections="1")
    serving = Serving(first, lambda _: None, lambda: b"", reactor)
    client = connect(serving.site)
    client.protocol.dataReceived(MODELS)
    assert b"Server: one" in client.value()
    client.clear()
    second = serve(reactor, first, gateway_api_title="two", limits_connections="2")
    serving.use(second)
    client.protocol.dataReceived(MODELS)
    assert b"Server: two" in client.value()
    assert serving.settings is second.settings and serving.api is second.api
    assert serving.metrics_site is not None
    assert serving.metrics_site.state.settings is second.settings
    other = connect(serving.site)
    other.protocol.dataReceived(MODELS)
    assert other.value().startswith(b"HTTP/1.1 200 ")


def test_a_renewed_certificate_is_used_and_the_site_keeps_its_context_object(
    tmp_path: Path,
) -> None:
    reactor = MemoryReactorClock()
    made: list[Generation] = []
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        chain, key = certificate(tmp_path / name, name)
        values = {"gateway_tls_certificate": chain, "gateway_tls_key": key}
        made.append(serve(reactor, made[0] if made else None, **values))
    serving = Serving(made[0], lambda _: None, None, reactor)
    held, renewed = serving.certificate, made[1].certificate
    assert held is not None and renewed is not None and held is made[0].certificate
    serving.use(made[1])
    assert serving.certificate is held and held.context is renewed.context


def test_the_snapshot_shows_connections_and_backends() -> None:
    reactor = MemoryReactorClock()
    generation = serve(reactor, backend_a_url="http://127.0.0.1:1", backend_a_models="m, llama-*")
    serving = Serving(generation, lambda _: None, None, reactor)
    connect(serving.site)
    shown = serving.snapshot()
    assert (shown.connections, shown.in_flight) == (1, 0)
    assert shown.backends["a"].usable and shown.backends["a"].in_flight == 0
    assert list(shown.models) == ["m"] and list(shown.globs) == ["llama-*"]
