"""Receivers of bodies that are not event streams: JSON documents, errors, and bytes of any type."""

from __future__ import annotations

from gatewayd.backend.interface import Reply
from gatewayd.wire import failure, sse
from gatewayd.wire.call import Reader
from gatewayd.wire.errors import BackendFailed, BadReply, GatewayError, Truncated

from .receiver import CONTENT, Receiver, Step, Whole, judged

#: The most bytes of a backend's error that are read. A longer body is replaced by an envelope of
#: the gateway's own.
MAX_ERROR_BODY = 256 * 1024

_NOTHING = Step()
_CONTENT = Step(progress=CONTENT)


class Document(Receiver):
    """A JSON document, gathered whole.

    :param stream: whether the client asked for a stream; then the document becomes one.
    :param limit: the most bytes that it may take.
    """

    def __init__(self, reader: Reader, stream: bool, limit: int) -> None:
        self._reader = reader
        self._stream = stream
        self._limit = limit
        self._body = bytearray()

    def feed(self, data: bytes) -> Step:
        self._body += data
        step = _progress(data)
        if len(self._body) > self._limit:
            return step._replace(outcome=BadReply("The backend's reply is too large."))
        return step

    def close(self, exact: bool) -> Step:
        reader = self._reader
        received, self._body = bytes(self._body), bytearray()  # never three copies at a time
        try:
            body = reader.read_document(received)
            del received
            if not self._stream:
                return Step(outcome=Whole(body))
            payloads = reader.as_stream(body)
        except GatewayError as problem:
            return Step(outcome=judged(problem, exact))
        if not reader.is_complete(done=True):
            message = "The backend's reply has a choice that was not finished."
            return Step(outcome=Truncated(message))
        frames = b"".join([*map(sse.encode, payloads), sse.DONE])
        return Step(frames, len(payloads), outcome=Whole())


class ErrorDocument(Receiver):
    """The body of a reply with an error status. Its outcome is the error to pass on."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._body = bytearray()

    def feed(self, data: bytes) -> Step:
        self._body += data
        step = _progress(data)
        if len(self._body) > MAX_ERROR_BODY:
            return step._replace(outcome=error_of(self._reply))
        return step

    def close(self, exact: bool) -> Step:
        return Step(outcome=error_of(self._reply, bytes(self._body)))


class Bytes(Receiver):
    """A body that crosses unread. Only its framing says whether it is whole."""

    def feed(self, data: bytes) -> Step:
        return Step(data, progress=CONTENT)

    def close(self, exact: bool) -> Step:
        if exact:
            return Step(outcome=Whole())
        message = "The backend closed the connection without saying it was done."
        return Step(outcome=Truncated(message))


def error_of(reply: Reply, body: bytes = b"") -> BackendFailed:
    """The error that a reply with an error status stands for; without a body, its head decides."""
    return failure.error_of_reply(body, reply.status, reply.crossing, reply.key)


def _progress(data: bytes) -> Step:
    """White space is not content: some servers send it until they have a reply."""
    return _NOTHING if data.isspace() else _CONTENT
