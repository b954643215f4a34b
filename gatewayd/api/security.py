"""The caller of a request: its token, its web page, and the models that it may use.

The head of the request decides, before the body is read: first its ``Origin``, so that a page that
may not call learns nothing else, then its token.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

import msgspec

from gatewayd.http1.handshake import presented_key
from gatewayd.http1.head import Fields
from gatewayd.settings.model import TokenSettings
from gatewayd.wire.endpoints import first_name
from gatewayd.wire.errors import Forbidden, Unauthorized
from gatewayd.wire.paths import entry_for

_BEARER = re.compile(rb"bearer +([!-~]+)", re.IGNORECASE)
_HEADER_NAMES = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z, \t-]{1,4096}")
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

#: Headers that proxies add, and so do all that begin with ``x-forwarded-``.
_PROXIES = (
    b"forwarded",
    b"via",
    b"x-real-ip",
    b"x-envoy-external-address",
    b"cf-connecting-ip",
    b"true-client-ip",
)

#: Headers of an answer that a web page may read.
_EXPOSED = b"X-Request-ID, Retry-After, X-Should-Retry, X-RateLimit-Limit-Requests, " + (
    b"X-RateLimit-Remaining-Requests, X-RateLimit-Reset-Requests"
)
#: Those of them that say who has answered.
_WHO = b", X-Gatewayd-Backend, X-Gatewayd-Model"


class Caller(msgspec.Struct, frozen=True):
    """Who sent a request.

    :param name: of the token; None if no tokens are configured, so that everybody may call.
    :param models: globs of the models that the caller may use; empty for all.
    :param in_flight: how many of the caller's requests may be under way; None for no limit.
    :param requests_per_minute: None for no limit.
    :param paths: entries of the paths that the caller may use (:mod:`gatewayd.wire.paths`); empty
        for all.
    """

    name: str | None = None
    models: tuple[str, ...] = ()
    in_flight: int | None = None
    requests_per_minute: int | None = None
    paths: tuple[str, ...] = ()

    def may_call(self, path: str) -> bool:
        """Whether the caller may use a path.

        :param path: as it came, without ``root_path``. The first name of an endpoint stands for its
            other names, too.
        """
        return not self.paths or self.names_path(path)

    def names_path(self, path: str) -> bool:
        """Whether the caller's ``paths`` name this one."""
        names = {path, first_name(path)}
        return any(entry_for(name, self.paths) is not None for name in names)

    def may_use(self, model: str | None) -> bool:
        """Whether the caller may use a model. None is no model: the gateway would choose any."""
        if not self.models:
            return True
        return model is not None and any(fnmatchcase(model, glob) for glob in self.models)


ANYONE = Caller()


def verify_token(fields: Fields, tokens: Sequence[TokenSettings]) -> Caller:
    """Find the caller by ``Authorization: Bearer TOKEN`` or, without that, ``x-api-key``.

    A browser can set neither on a WebSocket, so there a subprotocol may hold the token.

    Every configured token is compared, also after a match, so that the time tells nothing.

    :raises Unauthorized: the request has no token, or none that is configured.
    """
    if not tokens:
        return ANYONE
    digest = hashlib.sha256(_presented(fields)).digest()
    found: TokenSettings | None = None
    for token in tokens:
        if hmac.compare_digest(token.sha256, digest):
            found = token
    if found is None:
        raise Unauthorized("The API key is not one of this gateway's.", "invalid_api_key")
    return Caller(found.name, found.models, found.in_flight, found.requests_per_minute, found.paths)


def _presented(fields: Fields) -> bytes:
    values = fields.get(b"authorization")
    if values is None:
        keys = fields.get(b"x-api-key", ())
        if len(keys) == 1 and keys[0]:
            return keys[0]
        if (key := presented_key(fields)) is not None:
            return key
    elif len(values) == 1 and (match := _BEARER.fullmatch(values[0])):
        return match[1]
    raise Unauthorized(
        "An API key is needed: send one header 'Authorization: Bearer KEY'.", "missing_api_key"
    )


def check_origin(
    fields: Fields, allowed: Sequence[str], says_who: bool = False
) -> Sequence[tuple[bytes, bytes]]:
    """Judge the ``Origin`` of a request; return the headers that its answer needs.

    A request without one comes from no web page. Pages of this machine may call, and so may those
    in ``allowed``.

    :param says_who: whether an answer may name the backend and the model.
    :raises Forbidden: the page may not call.
    """
    values = fields.get(b"origin")
    if values is None:
        return ()
    origin = values[0].decode("latin-1").lower()
    if len(values) > 1 or not (origin in allowed or "*" in allowed or _is_loopback(origin)):
        raise Forbidden("Pages of this origin may not call this gateway.", "origin_not_allowed")
    return [
        (b"access-control-allow-origin", values[0]),
        (b"access-control-expose-headers", _EXPOSED + _WHO if says_who else _EXPOSED),
        (b"vary", b"Origin"),
    ]


def preflight(method: bytes, fields: Fields) -> list[tuple[bytes, bytes]] | None:
    """The headers that answer a CORS preflight request; None if this is none."""
    if method != b"OPTIONS" or b"access-control-request-method" not in fields:
        return None
    headers = [
        (b"access-control-allow-methods", b"GET, POST, PUT, PATCH, DELETE"),
        (b"access-control-max-age", b"600"),
    ]
    wanted = fields.get(b"access-control-request-headers", [b""])[0]
    if _HEADER_NAMES.fullmatch(wanted):
        headers.append((b"access-control-allow-headers", wanted))
    return headers


def came_by_proxy(fields: Fields) -> bool:
    """Whether headers show that a proxy forwarded a request. Not every proxy adds one of them."""
    return any(name in _PROXIES or name.startswith(b"x-forwarded-") for name in fields)


def is_local(fields: Fields) -> bool:
    """Whether a request on a loopback address came from a client on this machine.

    A proxy on this machine connects from a loopback address as well. Most proxies keep the client's
    ``Host`` or add a header, and then the request is not local. The ``Host`` also reveals a web
    page of another site whose name was made to resolve to this machine (DNS rebinding).
    """
    hosts = fields.get(b"host", ())
    if len(hosts) != 1 or came_by_proxy(fields):
        return False
    return _is_loopback("http://" + hosts[0].decode("latin-1").lower())


def _is_loopback(origin: str) -> bool:
    try:
        parts = urlsplit(origin)
        return parts.scheme in ("http", "https") and parts.hostname in _LOOPBACK
    except ValueError:
        return False
