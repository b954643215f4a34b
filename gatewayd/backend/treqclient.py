"""treq's client, without the work for each request that a gateway does not need.

treq would parse the URL, make three agents (for cookies, redirects and content codings) and wrap
the response for each of them. Here a URL is part of the settings, a body is bytes, redirects are
not followed, and cookies and content codings are not used. So :meth:`TreqClient.request`, which
treq's ``get`` calls, too, hands the request to the agent at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from treq.client import HTTPClient
from twisted.internet.defer import Deferred, succeed
from twisted.web.iweb import IAgent, IBodyProducer
from zope.interface import implementer

from .headers import RequestHeaders
from .interface import Reply


class TreqClient(HTTPClient):
    """Makes requests with an agent."""

    def __init__(self, agent: IAgent) -> None:
        super().__init__(agent)
        request: Any = agent.request
        self._send: Callable[..., Deferred[Reply]] = request  # our agent's response is one

    def request(  # type: ignore[override]  # only what is used here, and no wrapped response
        self, method: str, url: str, *, headers: RequestHeaders, data: bytes = b"", **_: Any
    ) -> Deferred[Reply]:
        """Send a request. The Deferred fires with the agent's response.

        :param url: is sent as written: the settings have checked it.
        :param data: the body.
        """
        body = BytesProducer(data) if data else None
        return self._send(method.encode("ascii"), url.encode("ascii"), headers, body)


@implementer(IBodyProducer)
class BytesProducer:
    """A request body in memory."""

    __slots__ = ("body", "length")

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.length = len(body)

    def startProducing(self, consumer: Any) -> Deferred[None]:
        consumer.write(self.body)
        return succeed(None)

    def pauseProducing(self) -> None: ...
    def resumeProducing(self) -> None: ...
    def stopProducing(self) -> None: ...
