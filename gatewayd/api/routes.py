"""The Klein resource: finds the handler of a request in Klein's table of routes, and calls it.

Klein's own ``render`` takes the host and the scheme from the request, unquotes the path and binds a
matcher for each request. This one matches the raw path with a matcher that is bound once, and
remembers the routes without a variable part. :mod:`.handling` says what handlers may return, and
answers what they raise; Klein's own error handlers (``handle_errors``) are not called.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from klein import Klein
from klein.resource import KleinResource
from twisted.web.server import NOT_DONE_YET
from werkzeug.exceptions import HTTPException
from werkzeug.exceptions import MethodNotAllowed as NoSuchMethod

from gatewayd.wire.errors import MethodNotAllowed, UnknownURL

from .handling import Answer, handle
from .request import Request

#: How many bytes of an unknown path are looked at.
_MAX_SHOWN = 200
#: The parts of an unknown path that are logged. Others may be keys.
_PLAIN = re.compile(r"[A-Za-z0-9_.-]{0,24}")


def _shown(path: bytes) -> str:
    """An unknown path for the log."""
    parts = path[:_MAX_SHOWN].decode("ascii", "replace").split("/")
    return "/".join(part if _PLAIN.fullmatch(part) else "*" for part in parts)


def _not_allowed(methods: Iterable[str]) -> MethodNotAllowed:
    allowed = ", ".join(sorted(methods))
    return MethodNotAllowed(
        f"This URL takes {allowed} only.", headers=((b"allow", allowed.encode("ascii")),)
    )


class Routes(KleinResource):
    """
    :param app: with its instance bound, if its handlers are methods.
    :param root_path: the path under which every route answers.
    :param further: answers a request for a path without a route, which it is given without
        ``root_path``; returns None if it does not know the path.
    """

    def __init__(
        self,
        app: Klein,
        root_path: str,
        further: Callable[[Request, str], Any | None] = lambda request, path: None,
    ) -> None:
        super().__init__(app)
        self._further = further
        self._execute: Any = app.execute_endpoint
        self._root = root_path.encode("ascii")
        self._matcher = app.url_map.bind("gateway")
        self._found: dict[tuple[bytes, bytes], str] = {}
        #: The paths without a variable part, and their methods.
        self._paths: dict[str, set[str]] = {}
        for rule in app.url_map.iter_rules():
            if not rule.arguments:
                self._paths.setdefault(rule.rule, set()).update(rule.methods or ())

    def render(self, request: Request) -> Any:  # type: ignore[override]  # our request alone
        """Call the request's handler, and answer with what it returns or raises."""
        handle(request, self._call_handler)
        return NOT_DONE_YET

    def _call_handler(self, request: Request) -> Any:
        """
        :raises GatewayError: there is no handler, or it refuses the request.
        """
        if request.preflight:
            return Answer(200, b"")
        method, path = request.method, request.path
        known = self._found.get((method, path))
        if known is not None:
            return self._execute(known, request)
        if not path.startswith(self._root + b"/") or path.startswith(self._root + b"//"):
            raise self._unknown(path)
        plain, word = path[len(self._root) :].decode("ascii"), method.decode("ascii")
        found = self._look_up(plain, word)
        if found is None and plain.endswith("/") and not plain.endswith("//"):
            found = self._look_up(plain[:-1], word)
        if found is None:
            answer = self._further(request, plain)
            if answer is None:
                raise self._unknown(path)
            return answer
        endpoint, variables = found
        if not variables:  # this bounds the entries by the number of routes and methods
            self._found[method, path] = endpoint
        return self._execute(endpoint, request, **variables)

    def _look_up(self, path: str, method: str) -> tuple[str, dict[str, Any]] | None:
        """The route of a path, with its variables; None if there is none.

        :raises MethodNotAllowed: there are routes of this path, for other methods.
        """
        try:
            endpoint, variables = self._matcher.match(path, method)
        except NoSuchMethod as e:
            raise _not_allowed(e.valid_methods or ()) from None
        except HTTPException:
            return None
        if variables and path in self._paths:  # it is no value of a variable part
            raise _not_allowed(self._paths[path])
        return endpoint, dict(variables)

    def _unknown(self, path: bytes) -> UnknownURL:
        similar = self._similar(path[:_MAX_SHOWN].decode("ascii"))
        hint = f" Did you mean {similar}?" if similar else ""
        return UnknownURL(f"There is nothing at this URL.{hint}", detail=_shown(path))

    def _similar(self, path: str) -> str | None:
        """The path of a route that differs only in slashes, ``/v1`` or the root path."""
        root = self._root.decode("ascii")
        plain = re.sub("//+", "/", path).rstrip("/").removeprefix(root)
        rest = re.sub("^(/v1)+(?=/)", "", plain)
        for candidate in (f"/v1{rest}", rest):
            if candidate in self._paths:
                return root + candidate
        return None
