"""Requests for a backend: their media type, the limits on them, and their relay.

The endpoints are the rows of :mod:`gatewayd.wire.endpoints`; :mod:`.app` makes a route of each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from msgspec import structs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from gatewayd.http1.head import list_of
from gatewayd.relaying.policy import Policy
from gatewayd.relaying.relay import Relay
from gatewayd.relaying.search import find
from gatewayd.routing.catalog import Catalog
from gatewayd.routing.made import maker_of
from gatewayd.routing.router import Candidate, Router
from gatewayd.routing.target import Target
from gatewayd.settings.model import RoutingSettings, Settings
from gatewayd.wire import affinity
from gatewayd.wire.call import Call, Endpoint, PathCall
from gatewayd.wire.dialects import OPENAI
from gatewayd.wire.endpoints import retrieval_of
from gatewayd.wire.errors import (
    Forbidden,
    GatewayError,
    MethodNotAllowed,
    UnsupportedMediaType,
)
from gatewayd.wire.paths import METHODS, Declared, UnreadCall, row_for

from .limits import Admission
from .request import Request

_NO_CODING = frozenset({b"", b"identity"})
_SECONDS = re.compile(rb"[0-9]{1,9}(\.[0-9]{1,9})?")

#: Headers in which the openai SDKs (Python, Node) say how many seconds they wait for an answer.
_TIMEOUT_HEADERS = (b"x-stainless-read-timeout", b"x-stainless-timeout")


class Dispatcher:
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
        self._declared = Declared({each.name: each.paths for each in settings.backends})
        self._router = router
        self._catalog = catalog
        self._admission = admission
        self._reactor = reactor
        routing = settings.routing
        self._policy = Policy(routing.attempts, routing.show_backend)
        self._fallbacks = dict(routing.fallback_models)
        self._affinity = routing.affinity
        self._affinity_user = routing.affinity_user
        self._session_headers = session_headers(routing)

    def dispatch(
        self, request: Request, endpoint: Endpoint, variables: Mapping[str, str]
    ) -> Deferred[None]:
        """Relay a request of this endpoint, or refuse it by raising a GatewayError.

        :param variables: the variable parts of its path, by name.

        The request counts as under way until the client has taken the reply, because a reply that
        waits in the transport holds memory.
        """
        # A web page can send other media types without a preflight request (CORS).
        content_type = endpoint.request.check_media_type(request.fields.get(b"content-type", ()))
        _check_coding(request)
        request.exchange.route = endpoint.path
        request.set_headers(
            self._admission.acquire(request.caller, self._settings.limits.in_flight)
        )
        request.release = partial(self._admission.release, request.caller)
        return self._relay(request, endpoint, content_type, variables)

    def _relay(
        self,
        request: Request,
        endpoint: Endpoint,
        content_type: bytes,
        variables: Mapping[str, str],
    ) -> Deferred[None]:
        exchange, caller, limits = request.exchange, request.caller, self._settings.limits
        call = endpoint.request.parse(endpoint, request.body, content_type, limits.json_depth)
        if isinstance(call, PathCall):
            call = call.located(variables, request.uri)
        exchange.model, exchange.stream = call.model, call.stream
        if endpoint.dialect is not OPENAI:
            request.use_dialect(endpoint.dialect)
            call = call.with_context(request.fields, request.uri)
        if call.uses_model and not caller.may_use(call.model):
            raise model_not_allowed()
        relay = Relay(
            request,
            call,
            limits,
            self._reactor,
            self._settings.timeouts.ping,
            _caller_timeout(request),
            self._policy_for(request),
        )
        if isinstance(call, PathCall):
            if isinstance(call, UnreadCall):
                return relay.run(self._declaring(call))
            return Deferred.fromCoroutine(self._relay_stored(request, call, relay))
        names = self._catalog.names
        candidates = self._router.route(
            call.model,
            lambda: filter(caller.may_use, names()),
            self._key_of(request, call),
        )
        if call.response_id is not None and (caller.models or len(candidates) > 1):
            maker = maker_of(call.response_id, self._router.targets)
            if caller.models and maker and maker.made.by_another(call.response_id, caller.name):
                raise model_not_allowed()
            if maker is not None:
                _put_first(maker, candidates)
        return relay.run(candidates)

    def _policy_for(self, request: Request) -> Policy:
        if not self._fallbacks:
            return self._policy
        return structs.replace(self._policy, fallback=partial(self._fall_back, request))

    def _fall_back(self, request: Request, call: Call) -> tuple[Call, Sequence[Candidate]] | None:
        """The same request for the model that is declared for longer prompts, if there is one."""
        model = self._fallbacks.get(call.model or "")
        if model is None or not request.caller.may_use(model):
            return None
        call = call.renamed(model)
        try:
            return call, self._router.route(model, key=self._key_of(request, call))
        except GatewayError:  # the error of the first model says more
            return None

    def _key_of(self, request: Request, call: Call) -> Callable[[], int | None] | None:
        return None if self._affinity == "off" else lambda: self._key(request, call)

    def _declaring(self, call: UnreadCall) -> list[Candidate]:
        """The backends that declare the path of a request.

        A deletion is sent to one of them only: another one would not delete the same thing.
        """
        _, names = self._declared.find(call.path) or ("", [])
        candidates = self._router.route_to(names)
        return candidates[:1] if call.method == "DELETE" else candidates

    def dispatch_unread(self, request: Request, path: str) -> Deferred[None] | None:
        """Relay a request for a path that backends declare; return None if none does.

        :param path: of the request, without ``root_path``.
        """
        found = self._declared.find(path)
        if found is None:
            return None
        entry, _ = found
        method = request.method.decode("ascii")
        if method not in METHODS:
            allow = ", ".join(sorted(METHODS))
            message = f"This URL takes {allow} only."
            raise MethodNotAllowed(message, headers=((b"allow", allow.encode("ascii")),))
        if request.caller.models and not request.caller.names_path(path):
            raise path_not_allowed()  # a body that is not read can name any model
        return self.dispatch(request, row_for(entry, method), {"path": path})

    async def _relay_stored(self, request: Request, call: Call, relay: Relay) -> None:
        """Relay a request for a stored response to the backend that has it.

        The limit of that backend does not count: the request may cancel the response.
        """
        targets, id, caller = self._router.targets, call.response_id or "", request.caller
        maker = maker_of(id, targets)
        if caller.models and (maker is None or not maker.made.by(id, caller.name)):
            raise model_not_allowed()
        if maker is None and len(targets) == 1:
            (maker,) = targets
        elif maker is None:
            exchange = request.exchange
            exchange.stop = partial(_stop_search, request)
            try:
                maker = await find(retrieval_of(id), targets, exchange, self._reactor)
            finally:
                exchange.stop = None
            maker.made.add(id, None)  # the request that made it is not known
        await relay.run([Candidate(maker)])

    def _key(self, request: Request, call: Call) -> int | None:
        """The key of the request's conversation (:mod:`gatewayd.wire.affinity`)."""
        key = session_key(request, self._session_headers)
        return call.key(self._affinity_user, self._affinity == "prompt") if key is None else key


def session_headers(routing: RoutingSettings) -> list[bytes]:
    """The names of the headers that name a session, in lower case; none if affinity is off."""
    if routing.affinity == "off":
        return []
    return [name.lower().encode("ascii") for name in routing.affinity_header]


def session_key(request: Request, headers: Sequence[bytes]) -> int | None:
    """The key of the session that a header of the request names; None if there is none.

    :param headers: those of :func:`session_headers`.
    """
    for name in headers:
        values = request.fields.get(name)
        if values is not None and len(values) == 1:
            key = affinity.of_session(values[0])
            if key is not None:
                return key
    return None


def _stop_search(request: Request, problem: GatewayError) -> None:
    request.fail(problem)
    if request.handling is not None:
        request.handling.cancel()


def _put_first(target: Target, candidates: list[Candidate]) -> None:
    """Have this target asked first if it may be asked now; the others stay in order."""
    candidates.sort(key=lambda each: not (each.target is target and each.available))


def path_not_allowed() -> Forbidden:
    return Forbidden("This API key may not use this path.", "path_not_allowed")


def model_not_allowed() -> Forbidden:
    return Forbidden("This API key may not use this model.", "model_not_allowed", "model")


def _check_coding(request: Request) -> None:
    values = request.fields.get(b"content-encoding")
    if values is not None and not _NO_CODING.issuperset(list_of(values)):
        raise UnsupportedMediaType("Send the body as it is, without a Content-Encoding.")


def _caller_timeout(request: Request) -> float:
    """How many seconds the client waits for an answer; 0 if it does not say."""
    for name in _TIMEOUT_HEADERS:
        values = request.fields.get(name)
        if values is not None and len(values) == 1 and _SECONDS.fullmatch(values[0]):
            return float(values[0])
    return 0.0
