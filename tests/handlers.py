"""A gateway in memory with one route, whose handler the test writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from klein import Klein

from gatewayd.api.routes import Routes
from tests.memory import Gateway


def serving(handler: Callable[[Any], Any]) -> Gateway:
    """A gateway whose only route, ``/``, has this handler."""
    app = Klein()
    app.route("/", methods=["GET", "POST"])(handler)
    gateway = Gateway()
    gateway.site.replace(Routes(app, ""), gateway.api.admit)
    return gateway
