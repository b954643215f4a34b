"""The routes: a table, and one short handler each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

import msgspec
from klein import Klein
from klein.resource import KleinResource
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from werkzeug.exceptions import MethodNotAllowed as NoSuchMethod
from werkzeug.exceptions import NotFound

from gatewayd.backend.interface import Backend
from gatewayd.config import Settings
from gatewayd.relay import Relay
from gatewayd.wire import models
from gatewayd.wire.chat import ChatRequest
from gatewayd.wire.errors import (
    Draining,
    Forbidden,
    GatewayError,
    Internal,
    MethodNotAllowed,
    ModelNotFound,
    UnknownURL,
    UnsupportedMediaType,
)

from .limits import Admission
from .request import Request
from .security import check_origin, preflight, verify_token

_log = Logger()

_JSON = re.compile(rb"application/json[ \t]*(;[!-~ \t]*)?", re.IGNORECASE)
_SECONDS = re.compile(rb"[0-9]{1,9}(\.[0-9]{1,9})?")

#: How long the openai SDKs will wait for an answer, in seconds: Python's and Node's spelling.
_PATIENCE = (b"x-stainless-read-timeout", b"x-stainless-timeout")


class API:
    """The handlers, and what they need.

    :param backends: in the order of preference.
    """

    app = Klein()
    app.url_map.merge_slashes = False
    app.url_map.redirect_defaults = False

    def __init__(
        self, settings: Settings, backends: Sequence[Backend], reactor: IReactorTime
    ) -> None:
        self.backends = backends
        self._settings = settings
        self._reactor = reactor
        self._admission = Admission(settings.limits.in_flight, reactor)
        self._health_path = f"{settings.gateway.root_path}/healthz".encode("ascii")
        self.draining = False

    def resource(self) -> KleinResource:
        return self.app.resource()

    def admit(self, request: Request) -> None:
        """Decide what a request's head is enough to decide, before its body is read."""
        headers = request.requestHeaders
        request.set_headers(check_origin(headers, self._settings.gateway.allowed_origins))
        asked = preflight(request.method, headers)
        if asked is not None:
            request.set_headers(asked)
            request.preflight = True
        elif request.path != self._health_path:
            request.caller = verify_token(headers, self._settings.tokens)
            request.exchange.caller = request.caller.name
            if self.draining:
                raise Draining

    # -- routes --------------------------------------------------------------------------------

    @app.route("/v1/chat/completions", methods=["POST"])
    async def chat(self, request: Request) -> None:
        exchange = request.exchange
        exchange.route = "/v1/chat/completions"
        _check_media_type(request)
        with self._admission.admitted(request.caller) as headers:
            request.set_headers(headers)
            chat = ChatRequest.parse(request.body, self._settings.limits.json_depth)
            exchange.model, exchange.stream = chat.model, chat.stream
            if not request.caller.may_use(chat.model):
                said = "This API key may not use this model."
                raise Forbidden(said, "model_not_allowed", "model")
            relay = Relay(
                request,
                chat,
                self._settings.limits,
                self._reactor,
                self._settings.timeouts.ping,
                _patience(request),
            )
            await relay.run(self.backends)

    @app.route("/v1/models", methods=["GET"])
    async def list_models(self, request: Request) -> None:
        request.exchange.route = "/v1/models"
        entries = await self._models(request)
        request.respond(200, models.encode_list(list(entries.values())))

    @app.route("/v1/models/<path:name>", methods=["GET"])
    async def retrieve_model(self, request: Request, name: str) -> None:
        request.exchange.route = "/v1/models/{id}"
        entry = (await self._models(request)).get(unquote(name))
        if entry is None:
            raise ModelNotFound("There is no such model.", param="model")
        request.respond(200, msgspec.json.encode(entry))

    @app.route("/healthz", methods=["GET"])
    def health(self, request: Request) -> None:
        request.exchange.route = "/healthz"
        status, word = (503, b"draining") if self.draining else (200, b"ok")
        request.respond(status, b'{"status": "%b"}' % word)

    # -- errors --------------------------------------------------------------------------------

    @app.handle_errors(GatewayError)  # type: ignore[arg-type]  # our Request, not any
    def failed(self, request: Request, failure: Any) -> None:
        request.fail(failure.value)

    @app.handle_errors(NotFound)  # type: ignore[arg-type]  # our Request, not any
    def no_such_url(self, request: Request, failure: Failure) -> None:
        request.fail(UnknownURL("There is nothing at this URL."))

    @app.handle_errors(NoSuchMethod)  # type: ignore[arg-type]  # our Request, not any
    def no_such_method(self, request: Request, failure: Any) -> None:
        allowed = ", ".join(sorted(failure.value.valid_methods or ()))
        request.fail(
            MethodNotAllowed(
                f"This URL takes {allowed} only.", headers=((b"allow", allowed.encode("ascii")),)
            )
        )

    @app.handle_errors(Exception)  # type: ignore[arg-type]  # our Request, not any
    def broken(self, request: Request, failure: Failure) -> None:
        _log.failure("handling {id} failed", failure, id=request.exchange.id)
        request.fail(Internal("The gateway met an internal error."))

    # ------------------------------------------------------------------------------------------

    async def _models(self, request: Request) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for backend in self.backends:
            request.exchange.backends.append(backend.name)
            for name, entry in (await backend.models(request.exchange.id)).items():
                if request.caller.may_use(name):
                    found.setdefault(name, entry)
        return found


def _check_media_type(request: Request) -> None:
    """A web page can send other types without asking first (CORS), so they are refused."""
    types = request.requestHeaders.getRawHeaders(b"content-type", [])
    if len(types) != 1 or not _JSON.fullmatch(types[0]):
        raise UnsupportedMediaType("Send JSON, with the header 'Content-Type: application/json'.")
    if request.requestHeaders.hasHeader(b"content-encoding"):
        raise UnsupportedMediaType("Send the body as it is, without a Content-Encoding.")


def _patience(request: Request) -> float:
    """How long the caller says that it waits, in seconds; 0 if it does not say."""
    for name in _PATIENCE:
        values = request.requestHeaders.getRawHeaders(name, [])
        if len(values) == 1 and _SECONDS.fullmatch(values[0]):
            return float(values[0])
    return 0.0
