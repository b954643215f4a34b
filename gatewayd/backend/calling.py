"""treq's client, spared what it would do for each call and what nothing here wants.

With no redirects, no cookies and few URLs, most of what a call costs in treq is parsing the same
URL again (idna and all, 40 us) and asking an empty cookie jar, which parses it once more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hyperlink import EncodedURL
from treq.client import HTTPClient
from treq.cookies import IndexableCookieJar
from twisted.internet.defer import Deferred
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent

from .agent import BytesProducer


class ReadyURL(EncodedURL):
    """A URL that goes out as it stands: the settings have checked and spelled it.

    hyperlink would parse it for each call, and refuses IPv6 addresses and names with an underscore.
    """

    _ready: str

    def __init__(self, text: str) -> None:
        object.__setattr__(self, "_ready", text)

    def to_uri(self) -> ReadyURL:
        return self

    def to_text(self, with_password: bool = False) -> str:
        return self._ready


class NoCookies(IndexableCookieJar):
    """Neither keeps nor gives a cookie: replies of one client must not follow another."""

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def add_cookie_header(self, request: Any) -> None:
        """There is none."""

    def extract_cookies(self, response: Any, request: Any) -> None:
        """None is taken."""


class Caller:
    """Calls a backend with treq.

    :param base: the backend's URL, without a slash at its end.
    """

    def __init__(self, agent: IAgent, base: str, reactor: Any) -> None:
        jar = NoCookies()
        self._client = HTTPClient(agent, jar, BytesProducer)
        self._base = base
        self._urls: dict[str, ReadyURL] = {}
        self._options: dict[str, Any] = {
            "allow_redirects": False,
            "cookies": jar,  # else a new one is made for each call
            "unbuffered": True,
            "reactor": reactor,
        }

    def get(self, path: str, headers: Headers) -> Deferred[Any]:
        return self._client.get(self._url(path), headers=headers, **self._options)

    def post(self, path: str, body: bytes, headers: Headers) -> Deferred[Any]:
        return self._client.post(self._url(path), data=body, headers=headers, **self._options)

    def _url(self, path: str) -> ReadyURL:
        url = self._urls.get(path)
        if url is None:
            url = self._urls[path] = ReadyURL(self._base + path)
        return url
