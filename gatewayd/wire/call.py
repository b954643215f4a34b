"""The types of a request to relay, of its endpoint, and of the reader of its reply.

The rooms above ``wire`` know requests, endpoints and readers by these types alone. The table of
endpoints, :mod:`.endpoints`, names the classes behind them.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol, Self

import attrs

from .content import Usage
from .errors import UnsupportedMediaType


@attrs.frozen
class Call(ABC):
    """A request that was read and found good. It never changes: other requests are made from it.

    :param body: what goes to the backend: what the client sent, byte for byte, but for what
        :meth:`renamed` and :meth:`counting_usage` change.
    :param content_type: the value of the ``Content-Type`` that goes with the body.
    :param model: the model that the request names; None if it names none.
    :param stream: whether the client asked for an event stream, at an endpoint that has streams.
    :param include_usage: whether the client asked for the usage of a stream of choices.
    :param choices: how many choices the client asked for, of a stream of choices.
    """

    #: What the ``Content-Type`` of such a request must be, and what a client is told if it is not.
    media_type: ClassVar[re.Pattern[bytes]]
    media_type_hint: ClassVar[str]

    endpoint: Endpoint
    body: bytes = attrs.field(repr=False)
    content_type: bytes
    model: str | None
    stream: bool
    include_usage: bool = False
    choices: int = 1

    @property
    def path(self) -> str:
        return self.endpoint.path

    @property
    def opaque(self) -> bool:
        return self.endpoint.opaque

    @classmethod
    def check_media_type(cls, values: Sequence[bytes]) -> bytes:
        """The one good value of a request's ``Content-Type`` headers.

        :raises UnsupportedMediaType: there is none, or several, or it is another type.
        """
        if len(values) != 1 or not cls.media_type.fullmatch(values[0]):
            raise UnsupportedMediaType(cls.media_type_hint)
        return values[0]

    @classmethod
    @abstractmethod
    def parse(cls, endpoint: Endpoint, body: bytes, content_type: bytes, depth: int) -> Self:
        """Read and check the body of a request.

        :param content_type: of the request, from :meth:`check_media_type`.
        :param depth: how many levels of JSON may nest.
        :raises InvalidJSON: two parsers could read two documents.
        :raises InvalidValue: a value is wrong; ``param`` names it.
        """

    @abstractmethod
    def renamed(self, model: str) -> Self:
        """The same request for another model. Every other byte of the body stays.

        The request must name a model.
        """

    def counting_usage(self) -> Self:
        """The same request with ``stream_options.include_usage`` set to true.

        It is the request itself if it is no stream, or if streams of its endpoint always report
        usage.
        """
        return self

    def reader(self, request_id: str, depth: int, model: str | None) -> Reader | None:
        """A new reader for the reply to this request; None if no part of the reply is read.

        :param request_id: replaces the ``id`` of the reply, at the endpoints where it does so.
        :param depth: how many levels of JSON may nest in the reply.
        :param model: replaces ``model`` in the reply; None leaves it as it came.
        """
        make = self.endpoint.reader
        return None if make is None else make(self, request_id, depth, model)


@attrs.frozen(eq=False)
class Endpoint:
    """An endpoint whose requests are relayed to a backend. All take POST.

    :param path: without the gateway's root path and the backend's base.
    :param request: the class that reads and checks a request.
    :param reader: makes the reader of a reply, from the arguments of :meth:`Call.reader`; None if
        no reply is read.
    :param ends: the types of event that end a stream well. Empty: the endpoint has no streams, and
        a ``stream`` that asks for one is the backend's to judge.
    :param opaque: whether a reply that is no event stream crosses unread, whatever its media type
        is. Then only its framing says that it is complete.
    :param usage_on_request: whether a stream reports usage only where the request's
        ``stream_options.include_usage`` asks for it.
    """

    path: str
    request: type[Call]
    reader: Callable[[Call, str, int, str | None], Reader | None] | None
    ends: frozenset[str] = frozenset()
    opaque: bool = False
    usage_on_request: bool = False


class Reader(Protocol):
    """Judges one reply and decides what of it crosses to the client. Does no I/O.

    A reply is either one document (:meth:`whole`) or a stream of events. Of a stream, each event
    is given to :meth:`take`, in order. An exception of :meth:`whole` or :meth:`take` ends the
    reply; the reader must not be used after it.
    """

    #: Whether the event ``[DONE]`` ends the stream. Then the receiver does not give that event to
    #: the reader and sends one of its own at the end, and the names of events do not cross.
    ends_with_done: bool
    #: Whether an event was taken that is more than a ping or an empty payload.
    started: bool
    #: Whether the last event taken was content: something that a client would show or count.
    content: bool
    #: The tokens that the backend has reported so far; None if it has reported none.
    usage: Usage | None

    def whole(self, body: bytes) -> bytes:
        """Judge a reply that is one document; return it as the client gets it.

        :raises BackendFailed: the document is an error.
        :raises BadReply: the document is not valid.
        """

    def as_stream(self, body: bytes) -> list[bytes]:
        """The payloads of the stream that a document makes, for a client that asked for a stream.

        :param body: what :meth:`whole` returned.
        :raises BadReply: this kind of document cannot be made into a stream.
        """

    def take(self, name: bytes, payload: bytes) -> bytes | None:
        """Judge the next event; return its payload as the client gets it, None to leave it out.

        :param name: of the event; empty if it has none.
        :raises BackendFailed: the event is an error.
        :raises BadReply: the event is not valid.
        """

    def frames(self, segment: bytes) -> list[bytes] | None:
        """The fast path: what crosses for a segment of the stream, each event framed.

        :param segment: bytes that begin with a new event.
        :returns: None unless every event of the segment is a token like one that :meth:`take` has
            seen. Then nothing was taken, and the segment must be parsed.
        """

    def complete(self, done: bool, framed: bool = True) -> bool:
        """Whether the reply is complete if nothing more comes.

        :param done: whether ``[DONE]`` has come.
        :param framed: whether the framing of the body has marked its end. False if only the
            connection ended.
        """
