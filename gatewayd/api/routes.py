"""The Klein resource: finds the handler of a request and sees to it that it is answered.

Klein's own ``render`` takes the host and the scheme from the request, unquotes the path, builds a
matcher and renders what a handler returns: a fifth of a small request's time, for things that
nothing here uses or may use. This one matches the raw path, remembers the routes without a
variable part, and turns whatever a handler raises into an answer, in one place.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from klein.resource import KleinResource
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.server import NOT_DONE_YET
from werkzeug.exceptions import HTTPException
from werkzeug.exceptions import MethodNotAllowed as NoSuchMethod

from gatewayd.wire.errors import GatewayError, Internal, MethodNotAllowed, UnknownURL

if TYPE_CHECKING:
    from .request import Request

_log = Logger()


#: How much of an unknown path is looked at, and which parts of it are logged: others may be keys.
_MAX_SHOWN = 200
_PLAIN = re.compile(r"[A-Za-z0-9_.-]{0,24}")


def _shown(path: bytes) -> str:
    """An unknown path for the log."""
    parts = path[:_MAX_SHOWN].decode("ascii", "replace").split("/")
    return "/".join(part if _PLAIN.fullmatch(part) else "*" for part in parts)


class Routes(KleinResource):
    """
    :param root_path: the path under which every route answers.
    """

    def __init__(self, app: Any, root_path: str) -> None:
        super().__init__(app)
        self._root = root_path.encode("ascii")
        self._found: dict[tuple[bytes, bytes], str] = {}
        self._paths = {rule.rule for rule in app.url_map.iter_rules() if not rule.arguments}

    def render(self, request: Request) -> Any:  # type: ignore[override]  # our Request, not any
        try:
            endpoint, variables = self._match(request.method, request.path)
        except GatewayError as error:
            request.fail(error)
            return NOT_DONE_YET
        execute: Callable[..., Any] = self._app.execute_endpoint
        handling: Deferred[Any] = maybeDeferred(execute, endpoint, request, **variables)
        request.handling = handling
        handling.addErrback(self._failed, request)
        return NOT_DONE_YET

    def _match(self, method: bytes, path: bytes) -> tuple[str, dict[str, Any]]:
        known = self._found.get((method, path))
        if known is not None:
            return known, {}
        if not path.startswith(self._root + b"/") or path.startswith(self._root + b"//"):
            raise self._unknown(path)
        adapter = self._app.url_map.bind(
            "gateway",
            path_info=path[len(self._root) :].decode("ascii"),
            default_method=method.decode("ascii"),
        )
        try:
            endpoint, variables = adapter.match()
        except NoSuchMethod as e:
            allowed = ", ".join(sorted(e.valid_methods or ()))
            raise MethodNotAllowed(
                f"This URL takes {allowed} only.", headers=((b"allow", allowed.encode("ascii")),)
            ) from None
        except HTTPException:
            raise self._unknown(path) from None
        if not variables:  # so there are as many entries as there are routes and methods
            self._found[method, path] = endpoint
        return endpoint, dict(variables)

    def _unknown(self, path: bytes) -> UnknownURL:
        near = self._near(path[:_MAX_SHOWN].decode("ascii"))
        hint = f" Did you mean {near}?" if near else ""
        return UnknownURL(f"There is nothing at this URL.{hint}", detail=_shown(path))

    def _near(self, path: str) -> str | None:
        """The path that was meant, where slashes, ``/v1`` or the root path are wrong."""
        root = self._root.decode("ascii")
        plain = re.sub("//+", "/", path).rstrip("/").removeprefix(root)
        rest = re.sub("^(/v1)+(?=/)", "", plain)
        for meant in (f"/v1{rest}", rest):
            if meant in self._paths:
                return root + meant
        return None

    @staticmethod
    def _failed(failure: Failure, request: Request) -> None:
        if failure.check(CancelledError):
            return  # the client has left
        if isinstance(failure.value, GatewayError):
            request.fail(failure.value)
            return
        _log.failure("handling {id} failed", failure, id=request.exchange.id)
        request.fail(Internal("The gateway met an internal error."))
