"""A minimal gateway on Klein and treq, as one writes it first: ``klein_treq.py PORT BACKEND``."""

from __future__ import annotations

import sys
from typing import Any

import treq
from klein import Klein
from twisted.internet import endpoints, reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool
from twisted.web.iweb import IRequest
from twisted.web.server import Site

PORT, BACKEND = int(sys.argv[1]), sys.argv[2]
pool = HTTPConnectionPool(reactor)
pool.maxPersistentPerHost = 1000
agent: Any = Agent(reactor, pool=pool)
app = Klein()


class Copy(Protocol):
    """Writes received bytes to the client."""

    def __init__(self, request: IRequest, done: Deferred[None]) -> None:
        self.request, self.done = request, done

    def dataReceived(self, data: bytes) -> None:
        self.request.write(data)

    def connectionLost(self, reason: Failure | None = None) -> None:  # type: ignore[override]
        self.done.callback(None)


@app.route("/v1/chat/completions", methods=["POST"])
async def chat(request: Any) -> bytes:
    kind = {b"content-type": [b"application/json"]}
    url = f"{BACKEND}/v1/chat/completions"
    reply = await treq.post(
        url, data=request.content.read(), headers=kind, agent=agent, unbuffered=True
    )
    request.setResponseCode(reply.code)
    for value in reply.headers.getRawHeaders(b"content-type", []):
        request.setHeader(b"content-type", value)
    done: Deferred[None] = Deferred()
    reply.deliverBody(Copy(request, done))
    await done
    return b""


endpoint = endpoints.TCP4ServerEndpoint(reactor, PORT, backlog=1024, interface="127.0.0.1")
endpoint.listen(Site(app.resource()))
reactor.run()  # type: ignore[attr-defined]
