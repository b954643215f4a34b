"""What the rest of the house knows of a backend: it answers a request with a :class:`Reply`."""

from __future__ import annotations

from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol

from gatewayd.wire.call import Call


class Body(Protocol):
    """Where a reply's body comes from; Twisted's ``IResponse`` is one."""

    def deliverBody(self, protocol: IProtocol) -> None:
        """Give the body to ``protocol``.

        ``protocol.transport`` has ``pauseProducing``, ``resumeProducing``, ``abortConnection`` (the
        backend sees its peer leave) and ``loseConnection`` (the rest does not matter, the
        connection may be kept); after either of these nothing more comes. Else ``connectionLost``
        says how the body ended: ``ResponseDone``, ``PotentialDataLoss`` (the connection closed and
        nothing said how long the body is), or a :class:`gatewayd.wire.errors.UpstreamError`.
        """


@attrs.frozen
class Reply:
    """A backend's answer up to its body, which must be delivered.

    :param media_type: of the content type, lower case, without parameters.
    :param headers: those that may cross to the client.
    :param parameters: of the content type, with the ``;`` before them, as far as they may cross.
    :param connect_seconds: what it took to have a connection; 0 where one was at hand.
    :param key: the backend's, which no error that leaves may show; "" if it has none.
    """

    status: int
    media_type: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: Body
    connect_seconds: float = 0.0
    parameters: str = ""
    key: str = attrs.field(default="", repr=False)


@attrs.frozen
class Clocks:
    """How long a backend may take, in seconds; 0 is for ever.

    :param first_byte: from the request until the first byte of content.
    :param idle: between bytes of content; comments and pings are none.
    :param total: from the request to the end of the reply; tries of other backends count.
    """

    first_byte: float = 0.0
    idle: float = 0.0
    total: float = 0.0

    def at_most(self, seconds: float) -> Clocks:
        """The same with no wait longer than ``seconds``, but for the whole."""
        first_byte = min(self.first_byte or seconds, seconds)
        return Clocks(first_byte, min(self.idle or seconds, seconds), self.total)


class Backend(Protocol):
    """Something that answers requests. Errors are :class:`gatewayd.wire.errors.GatewayError`."""

    name: str
    clocks: Clocks

    def send(self, call: Call, request_id: str, traceparent: str | None) -> Deferred[Reply]:
        """Send a request. Cancelling the Deferred aborts it at once, in any phase.

        It never raises: what goes wrong is the Deferred's failure, so that the attempt is settled.

        :param traceparent: the caller's trace, to go on with it.
        """

    def check(self) -> Deferred[bool] | None:
        """Ask how it is, where a way is configured: True is well, False is not ready yet.

        Never raises, as :meth:`send`.
        """

    def models(self, request_id: str) -> Deferred[dict[str, Any]]:
        """The models that it serves: entries of the models list, by name.

        Never raises, as :meth:`send`.
        """

    def close(self) -> None:
        """Drop idle connections."""
