"""The protocols that the site offers to TLS."""

from __future__ import annotations

from pathlib import Path

import pytest
from twisted.web import http

from tests.wired import HEALTH, Wired


@pytest.mark.parametrize(
    ("offers", "agreed"),
    [
        *(((), None), (("http/1.1",), "http/1.1"), (("http/1.0",), "http/1.0")),
        (("h2", "http/1.0", "http/1.1"), "http/1.1"),
    ],
)
def test_tls_agrees_on_http_1(
    offers: tuple[str, ...], agreed: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTTP/2 is not offered, although Twisted would offer it if its parser were installed."""
    monkeypatch.setattr(http, "H2_ENABLED", True)
    with Wired(folder=tmp_path) as wired:
        client = wired.connect(tls=True, offers=offers)
        assert client.agreed == agreed
        client.send(HEALTH)
        assert client.read().startswith(b"HTTP/1.1 200 ")
