"""treq's client, without the work that it would do for each request and that is not needed here.

treq makes the request: it parses the URL, looks for cookies, prepares headers and body, and wraps
the agent for cookies and content codings. Here URLs are few and checked, there are no redirects and
no cookies, and bodies are bytes. So each URL is prepared once (parsing one costs 40 us), the cookie
jar is always empty (asking it would parse the URL again), and the body goes out whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hyperlink import EncodedURL
from treq.client import HTTPClient
from treq.cookies import IndexableCookieJar
from twisted.internet.defer import Deferred, succeed
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer
from zope.interface import implementer


class TreqClient:
    """Makes requests to one backend.

    :param base: the backend's URL, without a slash at its end.
    """

    def __init__(self, agent: IAgent, base: str, reactor: Any) -> None:
        cookies = _NoCookies()
        self._client = HTTPClient(agent, cookies, BytesProducer)
        self._base = base
        self._urls: dict[str, _CheckedURL] = {}
        self._options: dict[str, Any] = {
            "allow_redirects": False,
            "cookies": cookies,  # treq would make a jar for each request
            "unbuffered": True,
            "reactor": reactor,
        }

    def get(self, path: str, headers: Headers) -> Deferred[Any]:
        """Fires with treq's response, whose ``original`` is the agent's."""
        return self._client.get(self._url(path), headers=headers, **self._options)

    def post(self, path: str, body: bytes, headers: Headers) -> Deferred[Any]:
        """As :meth:`get`."""
        return self._client.post(self._url(path), data=body, headers=headers, **self._options)

    def _url(self, path: str) -> _CheckedURL:
        url = self._urls.get(path)
        if url is None:
            url = self._urls[path] = _CheckedURL(self._base + path)
        return url


class _CheckedURL(EncodedURL):
    """A URL that is sent as written: the settings have checked it.

    hyperlink would parse it, and refuses IPv6 addresses and host names with an underscore.
    """

    _text: str

    def __init__(self, text: str) -> None:
        object.__setattr__(self, "_text", text)

    def to_uri(self) -> _CheckedURL:
        return self

    def to_text(self, with_password: bool = False) -> str:
        return self._text


class _NoCookies(IndexableCookieJar):
    """Neither stores nor sends cookies: those of one client must not be sent for another."""

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def add_cookie_header(self, request: Any) -> None:
        """No-op."""

    def extract_cookies(self, response: Any, request: Any) -> None:
        """No-op."""


@implementer(IBodyProducer)
class BytesProducer:
    """A request body in memory. treq's own producer uses the cooperator for each request."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.length = len(body)

    def startProducing(self, consumer: Any) -> Deferred[None]:
        consumer.write(self.body)
        return succeed(None)

    def pauseProducing(self) -> None: ...
    def resumeProducing(self) -> None: ...
    def stopProducing(self) -> None: ...
