"""A backend as the other rooms see it: it is sent a call and answers with a :class:`Reply`."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol, IPushProducer

from gatewayd.http1.handshake import Handshake
from gatewayd.wire.call import Call
from gatewayd.wire.tunnels import TunnelCall


class Body(Protocol):
    """The body of a reply. Twisted's ``IResponse`` is one."""

    def deliverBody(self, protocol: IProtocol) -> None:
        """Give the body to ``protocol``.

        ``protocol.transport`` has ``pauseProducing``, ``resumeProducing``, ``abortConnection``
        (closes the connection to the backend) and ``loseConnection`` (drops the rest of the body,
        and may keep the connection). After either of the last two, ``protocol`` is not called
        again. Otherwise ``connectionLost`` gives the reason of the body's end: ``ResponseDone``,
        ``PotentialDataLoss`` (the connection closed, and the length was not known), or a
        :class:`gatewayd.wire.errors.UpstreamError`.
        """


class Reply(Protocol):
    """The head of a backend's reply, and its body, which must be delivered."""

    @property
    def status(self) -> int: ...
    @property
    def media_type(self) -> str:
        """From the content type, in lower case, without parameters."""

    @property
    def crossing(self) -> tuple[tuple[bytes, bytes], ...]:
        """The header fields that may cross to the client."""

    @property
    def body(self) -> Body: ...
    @property
    def connect_seconds(self) -> float:
        """Time spent on opening a connection; 0 if an idle one was used."""

    @property
    def parameters(self) -> str:
        """Of the content type, with the ``;`` before them; "" if they may not cross."""

    @property
    def key(self) -> str:
        """The backend's API key, which no error text may contain; "" if it has none."""


class PlainReply(msgspec.Struct, frozen=True):
    """A :class:`Reply` that was not read from a connection."""

    status: int
    media_type: str
    crossing: tuple[tuple[bytes, bytes], ...]
    body: Body
    connect_seconds: float = 0.0
    parameters: str = ""
    key: str = ""

    def __repr__(self) -> str:
        """Without the key and the body, which no log may show."""
        return f"<Reply {self.status} {self.media_type}>"


class Link(Protocol):
    """The way to a backend that has accepted a WebSocket."""

    def write(self, data: bytes) -> None: ...
    def register(self, producer: IPushProducer) -> None:
        """Have ``producer`` paused while the backend does not take what was written."""

    def close(self, last: bytes) -> None:
        """Send what is pending and these bytes, then close both directions."""

    def close_at_once(self, last: bytes) -> None:
        """As :meth:`close`, but abort if the backend has not taken earlier bytes."""

    def abort(self) -> None: ...


class Accepted(msgspec.Struct, frozen=True):
    """A backend has accepted a WebSocket.

    :param headers: those that cross to the client.
    :param body: the bytes from the backend, which must be delivered.
    :param link: the way to the backend.
    :param connect_seconds: time spent on opening the connection.
    """

    headers: list[tuple[bytes, bytes]]
    body: Body
    link: Link
    connect_seconds: float = 0.0


class Clocks(msgspec.Struct, frozen=True):
    """How long a backend may take, in seconds; 0 means no limit.

    :param first_byte: from the request until the first byte of content.
    :param idle: between two bytes of content. Comments and pings are not content.
    :param total: from the request to the end of the reply, including attempts at other backends.
    :param patience: as ``first_byte``; after it another backend may be asked instead.
    """

    first_byte: float = 0.0
    idle: float = 0.0
    total: float = 0.0
    patience: float = 0.0

    def at_most(self, seconds: float) -> Clocks:
        """The same clocks with ``first_byte`` and ``idle`` limited to ``seconds``."""
        first_byte = min(self.first_byte or seconds, seconds)
        return Clocks(first_byte, min(self.idle or seconds, seconds), self.total)


class Backend(Protocol):
    """Answers requests. Its methods never raise: an error is the failure of the Deferred.

    Expected errors are :class:`gatewayd.wire.errors.GatewayError`.
    """

    name: str
    clocks: Clocks
    #: Whether a request may go to another backend although this one may have executed it.
    reask: bool

    def send(self, call: Call, request_id: str, traceparent: str | None) -> Deferred[Reply]:
        """Send a call. Cancelling the Deferred aborts it immediately, in any phase.

        :param traceparent: the client's W3C trace context, to be passed on.
        """

    def open_tunnel(
        self, call: TunnelCall, handshake: Handshake, request_id: str, traceparent: str | None
    ) -> Deferred[Accepted | Reply]:
        """Ask for a WebSocket; a :class:`Reply` is a refusal. Otherwise as :meth:`send`."""

    def check(self) -> Deferred[bool] | None:
        """Request the health path; None if none is configured.

        The Deferred fires with True if the backend is healthy, False if it is still loading.
        """

    def models(self, request_id: str) -> Deferred[dict[str, Any]]:
        """The models that the backend serves: entries of the models list, by name."""

    def slots(self, request_id: str) -> Deferred[int | None]:
        """How many requests the backend handles at once; None if it does not say."""

    def close(self) -> None:
        """Close idle connections."""
