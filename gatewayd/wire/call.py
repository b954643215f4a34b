"""The types of a request to relay, of its endpoint, and of the reader of its reply.

The rooms above ``wire`` know requests, endpoints and readers by these types alone. The table of
endpoints, :mod:`.endpoints`, names the classes behind them.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Protocol, Self

import msgspec

from .content import Usage
from .dialects import OPENAI, Dialect
from .errors import UnsupportedMediaType


class Call(msgspec.Struct, frozen=True):
    """A request that was read and found good. It never changes: other requests are made from it.

    :param body: the body for the backend: byte for byte what the client sent, unless
        :meth:`renamed` or :meth:`counting_usage` made this request.
    :param content_type: the value of the ``Content-Type`` that goes with the body.
    :param model: the model that the request names; None if it names none.
    :param stream: whether the client asked for an event stream, at an endpoint that has streams.
    :param include_usage: whether the client asked for the usage of a stream of choices.
    :param choices: how many choices or images the client asked for, in a stream of them; 1
        elsewhere.
    :param headers: further headers for the backend: those of the client that its dialect passes on.
    :param query: of the URL at the backend, with its ``?``; empty for none.
    :param response_id: of the stored response that the request asks for or builds on; None if
        there is none.
    """

    #: The good values of the ``Content-Type`` of a request, and the error message for any other.
    media_type: ClassVar[re.Pattern[bytes]]
    media_type_hint: ClassVar[str]

    #: Whether a reply with any status of success and of any media type crosses to the client.
    any_reply: ClassVar[bool] = False
    #: Whether the reply shows if the backend can use its models, and so whether it is healthy.
    uses_model: ClassVar[bool] = True

    endpoint: Endpoint
    body: bytes
    content_type: bytes
    model: str | None
    stream: bool
    include_usage: bool = False
    choices: int = 1
    headers: tuple[tuple[bytes, bytes], ...] = ()
    query: str = ""
    response_id: str | None = None

    def __repr__(self) -> str:
        """Without the body, which no log may show."""
        return f"<{type(self).__name__} {self.endpoint.path} model={self.model!r}>"

    @property
    def path(self) -> str:
        return self.endpoint.path

    @property
    def method(self) -> str:
        return self.endpoint.method

    @property
    def opaque(self) -> bool:
        return self.endpoint.opaque

    @property
    def accept(self) -> bytes:
        """The media types that the backend is asked for."""
        if self.any_reply:
            return b"*/*"
        return b"text/event-stream" if self.stream else b"application/json"

    def is_good(self, status: int) -> bool:
        """Whether a reply with this status is no error."""
        return status == 200 or (self.any_reply and 200 <= status < 300)

    def crosses_unread(self, media_type: str) -> bool:
        """Whether a reply of this type crosses unread, unless it is an event stream."""
        return self.endpoint.opaque or media_type in self.endpoint.unread

    @classmethod
    def check_media_type(cls, values: Sequence[bytes]) -> bytes:
        """The value of a request's ``Content-Type``, if it has exactly one and that is good.

        :param values: of all its ``Content-Type`` headers.
        :raises UnsupportedMediaType: otherwise.
        """
        if len(values) != 1 or not cls.media_type.fullmatch(values[0]):
            raise UnsupportedMediaType(cls.media_type_hint)
        return values[0]

    def with_context(self, fields: Mapping[bytes, Sequence[bytes]], target: bytes) -> Self:
        """The same request with what else of the client's crosses to the backend.

        :param fields: all headers of the client's request, with names in lower case.
        :param target: of the client's request.
        """
        dialect = self.endpoint.dialect
        return msgspec.structs.replace(
            self,
            headers=dialect.crossing_headers(fields),
            query=dialect.crossing_query(target),
        )

    @classmethod
    @abstractmethod
    def parse(cls, endpoint: Endpoint, body: bytes, content_type: bytes, depth: int) -> Call:
        """Read and check the body of a request.

        :param content_type: of the request, from :meth:`check_media_type`.
        :param depth: how many levels of JSON may nest.
        :raises InvalidJSON: the body is not JSON, or two parsers could read different documents.
        :raises InvalidValue: a value is wrong (``param`` names it), or the body is not a good form.
        """

    @abstractmethod
    def renamed(self, model: str) -> Self:
        """The same request for another model. Every other byte of the body stays.

        Only a request that names a model can be renamed.
        """

    def counting_usage(self) -> Self:
        """The same request with ``stream_options.include_usage`` set to true.

        Returns the request itself if it is no stream, or if every stream of its endpoint reports
        usage.
        """
        return self

    def key(self, by_user: bool, by_prompt: bool) -> int | None:
        """The key of the conversation, from the request's body; None if it has none.

        :param by_user: whether the user is a key.
        :param by_prompt: whether the head of the conversation is a key.
        """
        return None

    def reader(self, request_id: str, depth: int, model: str | None) -> Reader | None:
        """A new reader for the reply to this request; None if no part of the reply is read.

        :param request_id: replaces the ``id`` of a chat completion and of its chunks.
        :param depth: how many levels of JSON may nest in the reply.
        :param model: replaces ``model`` in the reply; None leaves it as it came.
        """
        make = self.endpoint.reader
        return None if make is None else make(self, request_id, depth, model)


class PathCall(Call, frozen=True):
    """A request whose path says what it is about. It names no model.

    The endpoints whose paths have variables have such requests.
    """

    uses_model: ClassVar = False

    @abstractmethod
    def located(self, variables: Mapping[str, str], target: bytes) -> Self:
        """The same request with what its path and its query say.

        :param variables: the variable parts of the path, by name, as they came.
        :param target: of the client's request.
        :raises InvalidValue: one of them is wrong.
        """

    def renamed(self, model: str) -> Self:
        raise AssertionError("this request names no model")


class Endpoint(msgspec.Struct, frozen=True, eq=False):
    """An endpoint whose requests are relayed to a backend: a row of :mod:`.endpoints`.

    A path may have several rows, one for each method.

    :param path: without the gateway's ``root_path`` and the backend's base URL. It may have
        variable parts, such as ``{id}``; each of them is one segment.
    :param request: the class that reads and checks a request.
    :param reader: makes the reader of a reply, from the arguments of :meth:`Call.reader`; None if
        no reply is read.
    :param ends: the types of event that end a stream well. Empty if the endpoint has no streams:
        then the backend judges a request that asks for one.
    :param opaque: whether a reply that is not an event stream crosses unread, with any media type.
        Then it is complete if its framing says so.
    :param unread: media types of replies that cross unread although a JSON document is read.
    :param usage_on_request: whether a stream reports usage only where the request's
        ``stream_options.include_usage`` asks for it.
    :param dialect: the API that the endpoint belongs to.
    :param method: in capital letters.
    :param aliases: other paths of the endpoint. A backend is asked for ``path`` all the same.
    """

    path: str
    request: type[Call]
    reader: Callable[[Call, str, int, str | None], Reader | None] | None
    ends: frozenset[str] = frozenset()
    opaque: bool = False
    unread: frozenset[str] = frozenset()
    usage_on_request: bool = False
    dialect: Dialect = OPENAI
    method: str = "POST"
    aliases: tuple[str, ...] = ()


class Reader(Protocol):
    """Judges one reply, and decides what of it the client gets. It does no I/O.

    A reply is either one document, which is given to :meth:`read_document`, or a stream, whose
    events are given to :meth:`read_event` in their order. An exception from either method ends the
    reply: the reader must not be used after it.
    """

    #: Whether the event ``[DONE]`` ends the stream. Then the receiver does not give that event to
    #: the reader and sends one of its own at the end, and the names of events do not cross.
    ends_with_done: bool
    #: Whether an event was read that is more than a ping or an empty payload.
    started: bool
    #: Whether the last event read was content: something that a client would show or count.
    content: bool
    #: The tokens that the backend has reported so far; None if it has reported none.
    usage: Usage | None
    #: The id of the response that the backend has made and may store; None if there is none.
    made: str | None

    def read_document(self, body: bytes) -> bytes:
        """Judge a reply that is one document; return it as the client gets it.

        :raises BackendFailed: the document is an error.
        :raises BadReply: the document is not valid.
        """

    def as_stream(self, body: bytes) -> list[bytes]:
        """The payloads of the stream that a document makes, for a client that asked for a stream.

        :param body: what :meth:`read_document` returned.
        :raises BadReply: this kind of document cannot be made into a stream.
        """

    def read_event(self, name: bytes, payload: bytes) -> bytes | None:
        """Judge the next event; return its payload as the client gets it, None to leave it out.

        :param name: of the event; empty if it has none.
        :raises BackendFailed: the event is an error.
        :raises BadReply: the event is not valid.
        """

    def frames(self, segment: bytes) -> list[bytes] | None:
        """The fast path: what crosses for a segment of the stream, each event framed.

        :param segment: bytes that begin with a new event.
        :returns: None unless every event of the segment is a token like one that :meth:`read_event`
            has read. Then nothing was read, and the segment must be parsed.
        """

    def is_complete(self, done: bool, framed: bool = True) -> bool:
        """Whether the reply is complete if nothing more comes.

        :param done: whether ``[DONE]`` has come.
        :param framed: whether the framing of the body has marked its end. False if only the
            connection ended.
        """
