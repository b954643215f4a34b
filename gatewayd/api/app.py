"""The application: the table of routes, short handlers, and admission by the head of a request.

Requests for a backend go to :mod:`.dispatch`.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, TypeVar
from urllib.parse import unquote

import msgspec
from klein import Klein
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from gatewayd import __version__
from gatewayd.routing.catalog import Catalog
from gatewayd.routing.router import Router
from gatewayd.settings.model import Settings
from gatewayd.wire import models
from gatewayd.wire.call import Endpoint
from gatewayd.wire.endpoints import ENDPOINTS, TUNNELS
from gatewayd.wire.errors import Draining, Forbidden, ModelNotFound, UnknownURL
from gatewayd.wire.tunnels import TunnelEndpoint

from .dispatch import Dispatcher, path_not_allowed
from .handling import Answer
from .limits import Admission
from .metrics import MEDIA_TYPE
from .request import Request
from .routes import Routes
from .security import came_by_proxy, check_origin, is_local, preflight, verify_token
from .tunnels import Tunnels

#: Paths that say that this process serves: its own, and those of llama.cpp, vLLM and SageMaker.
HEALTH_PATHS = ("/healthz", "/health", "/v1/health", "/ping")

_Handler = TypeVar("_Handler", bound=Callable[..., Any])


def _get(app: Klein, *paths: str) -> Callable[[_Handler], _Handler]:
    """Klein's ``route``, which is not typed for handlers that return an :class:`Answer`."""

    def decorate(handler: _Handler) -> _Handler:
        for path in paths:
            route: Any = app.route(path, methods=["GET"], endpoint=path)
            route(handler)
        return handler

    return decorate


def _relayed(endpoint: Endpoint) -> Callable[..., Deferred[None]]:
    """The handler of an endpoint whose requests go to a backend."""

    def handler(api: API, request: Request, **variables: str) -> Deferred[None]:
        return api.dispatcher.dispatch(request, endpoint, variables)

    return handler


def _tunnelled(endpoint: TunnelEndpoint) -> Callable[[API, Request], Deferred[None]]:
    """The handler of an endpoint whose WebSockets are relayed to a backend."""

    def handler(api: API, request: Request) -> Deferred[None]:
        return api.tunnels.open(request, endpoint)

    return handler


def warnings(settings: Settings) -> list[str]:
    """Which paths backends declare although they are the gateway's own, a sentence each."""
    own = API.app.url_map.bind("gateway")
    found = []
    for backend in settings.backends:
        for path in backend.paths:
            if path == "/metrics" and settings.metrics.listen is not None:
                continue
            if not path.endswith("*") and own.allowed_methods(path):
                hint = " unless [metrics] listen is set" if path == "/metrics" else ""
                found.append(
                    f"[backend {backend.name}] paths: {path} is one of the gateway's own paths, so "
                    f"this entry has no effect{hint}"
                )
    return found


class API:
    """The handlers, and what they need.

    :param metrics: makes the page of metrics.
    :param before: the API that this one replaces; what it counts is counted on.
    """

    app = Klein()
    app.url_map.merge_slashes = False
    app.url_map.redirect_defaults = False

    def __init__(
        self,
        settings: Settings,
        router: Router,
        reactor: IReactorTime,
        metrics: Callable[[], bytes],
        before: API | None = None,
    ) -> None:
        self.settings = settings
        self.router = router
        #: Whether the gateway is shutting down, so that new requests are refused.
        self.draining = False
        self._reactor = reactor
        self._metrics = metrics
        self._says_who = settings.routing.show_backend or bool(settings.routing.fallback_models)
        self._catalog = Catalog(router, reactor)
        self._admission: Admission = before._admission if before else Admission(reactor)
        self.dispatcher = Dispatcher(settings, router, self._catalog, self._admission, reactor)
        self.tunnels = Tunnels(settings, router, self._catalog, self._admission, reactor)
        root = settings.gateway.root_path.encode("ascii")
        public = (*HEALTH_PATHS, "/readyz")
        self._public_paths = {root + path.encode("ascii") for path in public}
        self._metrics_path = root + b"/metrics"
        self._on_loopback = ip_address(settings.gateway.listen).is_loopback

    def replaced(self, settings: Settings, router: Router) -> API:
        """The API for other settings, which counts on; this one is not changed."""
        return API(settings, router, self._reactor, self._metrics, self)

    def model_names(self) -> list[str]:
        """The known models: those of the settings and those of lists fetched from backends."""
        return self._catalog.names()

    def resource(self) -> Routes:
        """The resource that answers requests."""
        bound: Klein = self.app.__get__(self, type(self))  # as Klein's app.resource() binds it
        root_path = self.settings.gateway.root_path
        return Routes(bound, root_path, self.dispatcher.dispatch_unread)

    def admit(self, request: Request) -> None:
        """Decide what a request's head is enough to decide, before its body is read.

        The result depends on the head, the settings and :attr:`draining` alone: it is remembered
        for requests with the same head (:mod:`.known`).

        :raises GatewayError: the request is refused.
        """
        fields = request.fields
        allowed = self.settings.gateway.allowed_origins
        request.set_headers(check_origin(fields, allowed, self._says_who))
        preflight_headers = preflight(request.method, fields)
        if preflight_headers is not None:
            request.set_headers(preflight_headers)
            request.preflight = True
        elif not self._is_public(request):
            request.caller = verify_token(fields, self.settings.tokens)
            request.exchange.caller = request.caller.name
            if request.caller.paths:
                self._check_path(request)
            if self.draining:
                raise Draining

    def _check_path(self, request: Request) -> None:
        """
        :raises Forbidden: the caller is limited to paths, and this is none of them.
        """
        path = request.path.decode("ascii").removeprefix(self.settings.gateway.root_path)
        if not request.caller.may_call(path):
            raise path_not_allowed()

    def _is_public(self, request: Request) -> bool:
        """Whether everybody may send this request, without a token."""
        if request.path == self._metrics_path and self.settings.metrics.listen is None:
            return self._on_loopback and is_local(request.fields)
        return request.path in self._public_paths

    # -- routes --------------------------------------------------------------------------------

    for _endpoint in ENDPOINTS:
        for _path in (_endpoint.path, *_endpoint.aliases):
            _name = f"{_endpoint.method} {_path}"
            _rule = _path.replace("{", "<").replace("}", ">")
            app.route(_rule, methods=[_endpoint.method], endpoint=_name)(_relayed(_endpoint))

    for _tunnel in TUNNELS:
        _handler = _tunnelled(_tunnel)
        app.route(_tunnel.path, methods=["GET"], endpoint=f"tunnel {_tunnel.path}")(_handler)

    @_get(app, "/v1/models", "/models")
    async def list_models(self, request: Request) -> Answer:
        request.exchange.route = "/v1/models"
        entries = await self._visible_models(request)
        return Answer(200, models.encode_list(list(entries.values())))

    @_get(app, "/v1/models/<path:name>")
    async def retrieve_model(self, request: Request, name: str) -> Answer:
        request.exchange.route = "/v1/models/{id}"
        entry = (await self._visible_models(request)).get(unquote(name))
        if entry is None:
            raise ModelNotFound("There is no such model.", param="model")
        return Answer(200, msgspec.json.encode(entry))

    @_get(app, *HEALTH_PATHS)
    def health(self, request: Request) -> Answer:
        """Liveness: this process serves."""
        request.exchange.route = "/healthz"
        return _status(503, b"draining") if self.draining else _status(200, b"ok")

    @_get(app, "/readyz")
    def ready(self, request: Request) -> Answer:
        """Readiness: new requests are accepted, and a backend can take them."""
        request.exchange.route = "/readyz"
        if self.draining:
            return _status(503, b"draining")
        return _status(200, b"ok") if self.router.ready() else _status(503, b"no backend")

    @_get(app, "/version")
    def version(self, request: Request) -> Answer:
        request.exchange.route = "/version"
        return Answer(200, msgspec.json.encode({"version": __version__}))

    @_get(app, "/metrics")
    def show_metrics(self, request: Request) -> Answer | Deferred[None]:
        if self.settings.metrics.listen is not None:
            relayed = self.dispatcher.dispatch_unread(request, "/metrics")
            if relayed is not None:
                return relayed
            raise UnknownURL("The metrics have a port of their own.")
        if not (self.settings.tokens or self._shows_metrics_to_all(request)):
            message = "The metrics are not for requests that came through a proxy."
            raise Forbidden(message, "metrics_not_local")
        request.exchange.route = "/metrics"
        return Answer(200, self._metrics(), MEDIA_TYPE)

    # ------------------------------------------------------------------------------------------

    def _shows_metrics_to_all(self, request: Request) -> bool:
        """Without tokens, a proxy must not make public what only this machine or network sees."""
        if self._on_loopback:
            return is_local(request.fields)
        return not came_by_proxy(request.fields)

    async def _visible_models(self, request: Request) -> dict[str, Any]:
        found = await self._catalog.models(request.exchange.id)
        return {name: entry for name, entry in found.items() if request.caller.may_use(name)}


def _status(code: int, word: bytes) -> Answer:
    return Answer(code, b'{"status": "%b"}' % word)
