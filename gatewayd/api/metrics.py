"""The page of metrics on a port of its own."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from gatewayd.settings.model import Settings
from gatewayd.wire.errors import GatewayError, UnknownURL

from .request import Request
from .site import Site

#: How many connections the port of the metrics accepts.
CONNECTIONS = 16

MEDIA_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


class MetricsPage(Resource):
    """Answers ``/metrics`` and nothing else.

    :param text: makes the page.
    """

    isLeaf = True

    def __init__(self, text: Callable[[], bytes]) -> None:
        super().__init__()
        self._text = text

    def render(self, request: Request) -> int:
        request.exchange.route = "/metrics"
        if request.path == b"/metrics" and request.method in (b"GET", b"HEAD"):
            try:
                request.respond(200, self._text(), media_type=MEDIA_TYPE)
            except GatewayError as error:
                request.fail(error)
        else:
            request.fail(UnknownURL("There is only /metrics here."))
        return NOT_DONE_YET


def metrics_site(
    text: Callable[[], bytes], settings: Settings, reactor: IReactorTime
) -> Site:
    """The site on that port; its exchanges are neither logged nor counted.

    :param text: makes the page.
    """
    page = MetricsPage(text)
    return Site(page, settings, reactor, lambda _: None, lambda _: None, CONNECTIONS)
