"""The page of metrics on a port of its own."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from gatewayd.settings.model import Settings
from gatewayd.wire.errors import UnknownURL

from .handling import Answer, handle
from .request import Request
from .site import Site

#: How many connections the port of the metrics accepts.
CONNECTIONS = 16

MEDIA_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


class MetricsPage(Resource):
    """Answers ``/metrics`` and nothing else.

    :param text: makes the page.
    """

    def __init__(self, text: Callable[[], bytes]) -> None:
        super().__init__()
        self._text = text

    def render(self, request: Request) -> int:
        handle(request, self._answer)
        return NOT_DONE_YET

    def _answer(self, request: Request) -> Answer:
        request.exchange.route = "/metrics"
        if request.path != b"/metrics" or request.method not in (b"GET", b"HEAD"):
            raise UnknownURL("There is only /metrics here.")
        return Answer(200, self._text(), MEDIA_TYPE)


def metrics_site(text: Callable[[], bytes], settings: Settings, reactor: IReactorTime) -> Site:
    """The site of that port. Its exchanges are neither logged nor counted.

    :param text: makes the page.
    """
    page = MetricsPage(text)
    return Site(page, settings, reactor, lambda _: None, lambda _: None, CONNECTIONS)
