"""The page of metrics on a port of its own."""

from __future__ import annotations

import pytest

from gatewayd.api.metrics import CONNECTIONS, MetricsPage, metrics_site
from gatewayd.wire.errors import Internal
from tests.memory import Answer, Gateway


def page(text: bytes = b"# EOF\n") -> Gateway:
    """A gateway that serves nothing but the page."""
    gateway = Gateway()
    gateway.site.replace(MetricsPage(lambda: text), lambda request: None)
    return gateway


def test_the_page_is_the_given_text() -> None:
    answer = Answer(page().request("GET", "/metrics"))
    assert (answer.status, answer.body) == (200, b"# EOF\n")
    assert answer.header("content-type") == "text/plain; version=0.0.4; charset=utf-8"


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/metrics"), ("GET", "/"), ("GET", "/v1/models")]
)
def test_any_other_path_or_method_is_a_404(method: str, path: str) -> None:
    answer = Answer(page().request(method, path))
    assert (answer.status, answer.code) == (404, "unknown_url")


def test_a_page_that_cannot_be_made_is_an_error() -> None:
    def text() -> bytes:
        raise Internal("The metrics of the workers cannot be read.")

    gateway = Gateway()
    gateway.site.replace(MetricsPage(text), lambda request: None)
    assert Answer(gateway.request("GET", "/metrics")).status == 500


def test_the_port_takes_few_connections() -> None:
    gateway = Gateway()
    gateway.site = metrics_site(lambda: b"", gateway.settings, gateway.clock)
    clients = [gateway.connect() for _ in range(CONNECTIONS + 1)]
    assert [client.value()[:12] for client in clients if client.value()] == [b"HTTP/1.1 503"]
