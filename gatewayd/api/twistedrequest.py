"""The part of Twisted Web's request that is offered to handlers, with Twisted's meaning.

Handlers written for Klein or Twisted Web mostly use ``method``, ``uri``, ``path``, ``args``,
``content``, ``requestHeaders``, ``getHeader``, ``setHeader``, ``setResponseCode``, ``write``,
``finish``, ``notifyFinish`` and ``registerProducer``. ``startedWriting``, ``sentLength`` and
``finished`` say how far the answer is. Headers and body are built only when they are asked for. The
rest (cookies, ``responseHeaders``, sessions, addresses) is not there: using it raises
AttributeError. :class:`gatewayd.api.request.Request` writes the answers.
"""

from __future__ import annotations

from functools import cached_property
from io import BytesIO
from typing import Any, AnyStr

from twisted.internet.defer import Deferred
from twisted.web import http
from twisted.web.http_headers import Headers

from gatewayd.http1.head import Fields

#: Headers that a handler may not set: the gateway frames the answer and closes the connection.
_FRAMING = frozenset({b"Connection", b"Content-Length", b"Transfer-Encoding"})


class TwistedRequest(http.Request):
    """Base class of the request, which sets the attributes that have no value here.

    ``http.Request.__init__`` is not called: it makes two header objects, cookies and addresses for
    each request.
    """

    fields: Fields
    body: bytes
    _headers: dict[bytes, bytes]  # of the answer, by name as it is sent
    _id_header: bytes  # the name of the header with the request's id

    _notify: tuple[Deferred[None], ...] = ()

    @cached_property
    def requestHeaders(self) -> Headers:  # type: ignore[override]  # may be assigned, too
        return Headers(self.fields)

    @cached_property
    def content(self) -> BytesIO:  # type: ignore[override]  # may be assigned, too
        return BytesIO(self.body)

    @cached_property
    def args(self) -> dict[bytes, list[bytes]]:  # type: ignore[override]  # may be assigned, too
        """The arguments of the query. Forms in the body are not parsed."""
        found: dict[bytes, list[bytes]] = http.parse_qs(self.uri.partition(b"?")[2], True)
        return found

    def getHeader(self, key: AnyStr) -> AnyStr | None:
        """The last value of a header of the request."""
        values = self.requestHeaders.getRawHeaders(key)
        return values[-1] if values else None

    def setResponseCode(self, code: int, message: bytes | None = None) -> None:
        """Set the status.

        :param message: must be None: the reason phrase is that of the status.
        """
        if message is not None:
            raise ValueError("The reason phrase cannot be set.")
        self._check_not_begun()
        self.code = code

    def setHeader(self, name: str | bytes, value: str | bytes) -> None:
        """Set a header of the answer. Twisted's ``Headers`` checks the name and cleans the value.

        :raises ValueError: only the gateway sets this header.
        """
        self._check_not_begun()
        headers: Any = Headers()
        headers.setRawHeaders(name, [value])
        ((checked, (cleaned,)),) = headers.getAllRawHeaders()
        key = checked.title()
        if key in _FRAMING or key == self._id_header.title():
            raise ValueError(f"The gateway sets the header {key.decode('ascii')} itself.")
        self._headers[key] = cleaned

    def notifyFinish(self) -> Deferred[None]:
        """A Deferred that fires with None once the answer was written.

        It fails if the connection is lost before.
        """
        notified: Deferred[None] = Deferred()
        self._notify += (notified,)
        return notified

    def _check_not_begun(self) -> None:
        if self.startedWriting:
            raise RuntimeError("The head of the answer has been made.")
