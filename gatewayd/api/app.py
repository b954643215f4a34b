"""The routes: a table, and one short handler each."""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, TypeVar, cast
from urllib.parse import unquote

import msgspec
from klein import Klein
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from gatewayd.relaying.relay import Relay
from gatewayd.routing.catalog import Catalog
from gatewayd.routing.router import Router
from gatewayd.settings.model import Settings
from gatewayd.wire import models
from gatewayd.wire.call import Endpoint
from gatewayd.wire.endpoints import ENDPOINTS
from gatewayd.wire.errors import (
    Draining,
    Forbidden,
    ModelNotFound,
    UnknownURL,
    UnsupportedMediaType,
)

from .handling import Answer
from .limits import Admission
from .metrics import MEDIA_TYPE
from .request import Request
from .routes import Routes
from .security import came_by_proxy, check_origin, is_local, preflight, verify_token

_SECONDS = re.compile(rb"[0-9]{1,9}(\.[0-9]{1,9})?")

#: How long the openai SDKs will wait for an answer, in seconds: Python's and Node's spelling.
_PATIENCE = (b"x-stainless-read-timeout", b"x-stainless-timeout")


_Handler = TypeVar("_Handler", bound=Callable[..., Any])


def _get(app: Klein, url: str) -> Callable[[_Handler], _Handler]:
    """Klein's ``route``, which is not typed for handlers that return an :class:`Answer`."""
    route: Any = app.route(url, methods=["GET"])
    return cast(Callable[[_Handler], _Handler], route)


def _relayed(endpoint: Endpoint) -> Callable[[API, Request], Deferred[None]]:
    """The handler of an endpoint whose requests go to a backend."""

    def handler(api: API, request: Request) -> Deferred[None]:
        return api._relay(request, endpoint)

    return handler


class API:
    """The handlers, and what they need."""

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
        self.draining = False
        self._reactor = reactor
        self._metrics = metrics
        if before is None:
            self._catalog, self._admission = Catalog(router, reactor), Admission(reactor)
        else:
            self._catalog = Catalog(router, reactor, before._catalog)
            self._admission = before._admission
        root = settings.gateway.root_path.encode("ascii")
        self._open = {root + b"/healthz", root + b"/readyz"}
        self._metrics_path = root + b"/metrics"
        self._on_loopback = ip_address(settings.gateway.listen).is_loopback

    def replaced(self, settings: Settings, router: Router) -> API:
        """The same with other settings. What is counted is counted on; this one stays as it is."""
        return API(settings, router, self._reactor, self._metrics, self)

    def model_names(self) -> list[str]:
        """The models that are known now: the settings' and those of lists that were fetched."""
        return self._catalog.names()

    def resource(self) -> Routes:
        """The resource that answers requests."""
        # Klein's own app.resource() would make its own kind of resource of the bound app.
        return Routes(self.app.__get__(self, type(self)), self.settings.gateway.root_path)

    def admit(self, request: Request) -> None:
        """Decide what a request's head is enough to decide, before its body is read."""
        fields = request.fields
        request.set_headers(check_origin(fields, self.settings.gateway.allowed_origins))
        asked = preflight(request.method, fields)
        if asked is not None:
            request.set_headers(asked)
            request.preflight = True
        elif not self._is_open(request):
            request.caller = verify_token(fields, self.settings.tokens)
            request.exchange.caller = request.caller.name
            if self.draining:
                raise Draining

    def _is_open(self, request: Request) -> bool:
        """Whether this is for everybody, without a token."""
        if request.path == self._metrics_path:
            return self._on_loopback and is_local(request.fields)
        return request.path in self._open

    # -- routes --------------------------------------------------------------------------------

    for _endpoint in ENDPOINTS:
        app.route(_endpoint.path, methods=["POST"], endpoint=_endpoint.path)(_relayed(_endpoint))

    @_get(app, "/v1/models")
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

    @_get(app, "/healthz")
    def health(self, request: Request) -> Answer:
        """Liveness: this process serves."""
        request.exchange.route = "/healthz"
        status, word = (503, b"draining") if self.draining else (200, b"ok")
        return Answer(status, b'{"status": "%b"}' % word)

    @_get(app, "/readyz")
    def ready(self, request: Request) -> Answer:
        """Readiness: new requests are welcome and have somewhere to go."""
        request.exchange.route = "/readyz"
        if self.draining:
            status, word = 503, b"draining"
        elif not self.router.ready():
            status, word = 503, b"no backend"
        else:
            status, word = 200, b"ok"
        return Answer(status, b'{"status": "%b"}' % word)

    @_get(app, "/metrics")
    def show_metrics(self, request: Request) -> Answer:
        if self.settings.metrics.listen is not None:
            raise UnknownURL("The metrics have a port of their own.")
        if not (self.settings.tokens or self._shows_metrics_to_all(request)):
            said = "The metrics are not for requests that came through a proxy."
            raise Forbidden(said, "metrics_not_local")
        request.exchange.route = "/metrics"
        return Answer(200, self._metrics(), MEDIA_TYPE)

    # ------------------------------------------------------------------------------------------

    def _shows_metrics_to_all(self, request: Request) -> bool:
        """Where there are no tokens: a proxy must not make public what only this machine sees."""
        if self._on_loopback:
            return is_local(request.fields)
        return not came_by_proxy(request.fields)

    def _relay(self, request: Request, endpoint: Endpoint) -> Deferred[None]:
        """May it, and then relay it; while it is under way it takes up its caller's share.

        That is until the client has taken the reply: one that waits in the transport holds memory.
        """
        # A web page can send other types without asking first (CORS), so they are refused.
        content_type = endpoint.request.check_media_type(request.fields.all(b"content-type"))
        _check_coding(request)
        request.exchange.route = endpoint.path
        request.set_headers(self._admission.acquire(request.caller, self.settings.limits.in_flight))
        try:
            relayed = self._admitted(request, endpoint, content_type)
        except BaseException:
            self._admission.release(request.caller)
            raise
        return relayed.addBoth(self._left, request)

    def _admitted(
        self, request: Request, endpoint: Endpoint, content_type: bytes
    ) -> Deferred[None]:
        """What is it, where does it go, and what comes back."""
        exchange, caller, depth = request.exchange, request.caller, self.settings.limits.json_depth
        call = endpoint.request.parse(endpoint, request.body, content_type, depth)
        exchange.model, exchange.stream = call.model, call.stream
        if not caller.may_use(call.model):
            said = "This API key may not use this model."
            raise Forbidden(said, "model_not_allowed", "model")
        relay = Relay(
            request,
            call,
            self.settings.limits,
            self._reactor,
            self.settings.timeouts.ping,
            _patience(request),
        )
        names = self._catalog.names
        return relay.run(self.router.route(call.model, lambda: filter(caller.may_use, names())))

    def _left(self, result: Any, request: Request) -> Any:
        request.when_taken(lambda: self._admission.release(request.caller))
        return result

    async def _visible_models(self, request: Request) -> dict[str, Any]:
        found = await self._catalog.models(request.exchange.id)
        return {n: entry for n, entry in found.items() if request.caller.may_use(n)}


def _check_coding(request: Request) -> None:
    codings = b",".join(request.fields.all(b"content-encoding")).lower().split(b",")
    if any(coding.strip(b" \t") not in (b"", b"identity") for coding in codings):
        raise UnsupportedMediaType("Send the body as it is, without a Content-Encoding.")


def _patience(request: Request) -> float:
    """How long the caller says that it waits, in seconds; 0 if it does not say."""
    for name in _PATIENCE:
        values = request.fields.all(name)
        if len(values) == 1 and _SECONDS.fullmatch(values[0]):
            return float(values[0])
    return 0.0
