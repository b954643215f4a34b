"""Requests for a WebSocket: their handshake, the limits on them, and their tunnel.

The endpoints are the rows of ``TUNNELS`` in :mod:`gatewayd.wire.endpoints`; :mod:`.app` makes a
route of each. A tunnel is one request: it counts as under way, here and at its backend, until it
has ended.
"""

from __future__ import annotations

from functools import partial

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from gatewayd.http1.handshake import Handshake, asks_for_websocket
from gatewayd.relaying.opening import Opening
from gatewayd.routing.catalog import Catalog
from gatewayd.routing.router import Router
from gatewayd.settings.model import Settings
from gatewayd.wire.endpoints import ENDPOINTS
from gatewayd.wire.errors import BadHTTP, Forbidden, MethodNotAllowed
from gatewayd.wire.tunnels import TunnelCall, TunnelEndpoint

from .dispatch import model_not_allowed, session_headers, session_key
from .limits import Admission
from .request import Request

#: Endpoints that have POST requests, too.
_WITH_POST = frozenset(endpoint.path for endpoint in ENDPOINTS)


class Tunnels:
    """
    :param catalog: gives the model names that an error about an unknown model may list.
    """

    def __init__(
        self,
        settings: Settings,
        router: Router,
        catalog: Catalog,
        admission: Admission,
        reactor: IReactorTime,
    ) -> None:
        self._settings = settings
        self._session_headers = session_headers(settings.routing)
        self._router = router
        self._catalog = catalog
        self._admission = admission
        self._reactor = reactor

    def open(self, request: Request, endpoint: TunnelEndpoint) -> Deferred[None]:
        """Relay a WebSocket of this endpoint, or refuse it by raising a GatewayError."""
        if endpoint.path in _WITH_POST and not asks_for_websocket(request.fields):
            raise MethodNotAllowed("This URL takes POST only.", headers=((b"allow", b"POST"),))
        request.exchange.route = endpoint.route
        handshake = Handshake.of(request.clientproto, request.fields)
        if request.method != b"GET" or request.body:
            raise BadHTTP("A WebSocket begins with a GET request without a body.")
        request.set_headers(
            self._admission.acquire(request.caller, self._settings.limits.in_flight)
        )
        request.release = partial(self._admission.release, request.caller)
        return self._open(request, endpoint, handshake)

    def _open(
        self, request: Request, endpoint: TunnelEndpoint, handshake: Handshake
    ) -> Deferred[None]:
        caller, limits = request.caller, self._settings.limits
        call = TunnelCall.parse(endpoint, request.uri.partition(b"?")[2])
        request.exchange.model = call.model
        if not caller.may_use(call.model):
            raise model_not_allowed()
        if endpoint.models_in_messages and caller.models:
            raise Forbidden(
                "This API key may use some models only, and the messages of this WebSocket, which"
                " the gateway does not read, could name any.",
                "model_not_allowed",
            )
        names = self._catalog.names
        candidates = self._router.route(
            call.model,
            lambda: filter(caller.may_use, names()),
            lambda: session_key(request, self._session_headers),
        )
        show = self._settings.routing.show_backend
        return Opening(request, call, handshake, limits, self._reactor, show).run(candidates)
