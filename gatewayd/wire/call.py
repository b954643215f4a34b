"""A request for a backend, and the reader of its reply: the two protocols that the rooms share.

The rooms above ``wire`` know a request only as a :class:`Call` and what judges its reply only as a
:class:`Reader`. Which class is behind them is decided by the request's endpoint.
"""

from __future__ import annotations

from typing import Protocol

from .content import Usage


class Call(Protocol):
    """A request that was read and found good. It never changes: other requests are made from it."""

    @property
    def path(self) -> str:
        """The path of the endpoint, without the gateway's root path and the backend's base."""

    @property
    def body(self) -> bytes:
        """The body that goes to the backend."""

    @property
    def content_type(self) -> bytes:
        """The value of the ``Content-Type`` that goes with the body."""

    @property
    def model(self) -> str | None:
        """The model that the request names; None if it names none."""

    @property
    def stream(self) -> bool:
        """Whether the client asked for an event stream, at an endpoint that has streams."""

    @property
    def opaque(self) -> bool:
        """Whether a reply that is no event stream crosses unread, whatever its media type is."""

    def renamed(self, model: str) -> Call:
        """The same request for another model. Every other byte of the body stays.

        The request must name a model.
        """

    def counting_usage(self) -> Call:
        """The same request with ``stream_options.include_usage`` set to true.

        It is the request itself if it is no stream, or if streams of its endpoint always report
        usage.
        """

    def reader(self, request_id: str, depth: int, model: str | None) -> Reader | None:
        """A new reader for the reply to this request; None if no part of the reply is read.

        :param request_id: replaces the ``id`` of the reply, at the endpoints where it does so.
        :param depth: how many levels of JSON may nest in the reply.
        :param model: replaces ``model`` in the reply; None leaves it as it came.
        """


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
