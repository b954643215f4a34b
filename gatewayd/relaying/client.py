"""The client's side of an exchange, as the relay sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from twisted.internet.interfaces import IPushProducer

from gatewayd.exchange import Exchange
from gatewayd.wire.errors import GatewayError

from .watch import Timer

Headers = Sequence[tuple[bytes, bytes]]


class Client(Protocol):
    """What :class:`gatewayd.api.request.Request` implements.

    An answer is either one call of :meth:`respond` or :meth:`fail`, or ``begin_stream`` or
    ``begin_bytes``, any number of :meth:`write`, and :meth:`finish` or :meth:`cut`.
    """

    exchange: Exchange

    @property
    def timer(self) -> Timer:
        """The timer of the connection, which does not use it before the answer has ended."""

    @property
    def draining(self) -> bool:
        """Whether the gateway is shutting down."""

    def set_headers(self, headers: Headers) -> None:
        """Set headers of the answer, also if it will be an error."""

    def respond(
        self,
        status: int,
        body: bytes,
        headers: Headers = (),
        media_type: bytes = b"application/json",
    ) -> None: ...
    def fail(self, error: GatewayError) -> None: ...
    def begin_stream(self, headers: Headers = ()) -> None: ...
    def begin_bytes(self, headers: Headers, content_type: str, status: int = 200) -> None: ...
    def write(self, data: bytes) -> None: ...
    def finish(self) -> None: ...
    def cut(self, error: GatewayError, name: bytes) -> None: ...
    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None: ...
    def unregisterProducer(self) -> None: ...


class TunnelClient(Protocol):
    """The client's side of a tunnel. The same class implements it.

    An answer is either one call of :meth:`fail`, or ``begin_tunnel``, any number of :meth:`write`,
    and :meth:`end_tunnel`.
    """

    exchange: Exchange

    @property
    def timer(self) -> Timer:
        """As in :class:`Client`."""

    def set_headers(self, headers: Headers) -> None: ...
    def fail(self, error: GatewayError) -> None: ...
    def begin_tunnel(self, headers: Headers, receive: Callable[[bytes], None]) -> None:
        """Answer 101. What the client sends goes to ``receive``, also what it has sent already."""

    def write(self, data: bytes) -> None: ...
    def read_tunnel(self, wanted: bool) -> None:
        """Read from the client, or leave what it sends in the kernel."""

    def end_tunnel(self, error: GatewayError | None, *, reset: bool) -> None:
        """End, and close the connection when the client has taken what was written.

        :param reset: whether to reset it, because it ends within a frame.
        """

    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None: ...
    def unregisterProducer(self) -> None: ...
