"""Decides from the head of a reply whether it is relayed, and begins the client's answer.

The head determines the receiver of the body, and the headers that cross to the client.
"""

from __future__ import annotations

from gatewayd.backend.interface import Reply
from gatewayd.settings.model import LimitSettings
from gatewayd.wire.call import Call, Reader
from gatewayd.wire.errors import AuthRefused, BadReply

from .attempt import Attempt
from .bodies import Bytes, Document, ErrorDocument
from .client import Client
from .events import Events
from .receiver import Receiver

JSON = "application/json"
EVENTS = "text/event-stream"

#: Headers of an event stream that crosses unread.
_UNBUFFERED = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))


def receiver_for(
    reply: Reply, call: Call, reader: Reader | None, limits: LimitSettings
) -> Receiver:
    """Choose the receiver of the body of ``reply``.

    :param reader: judges the payloads; None where the body crosses unread.
    :raises AuthRefused, BadReply: the client does not get this reply.
    """
    if not call.is_good(reply.status):
        check_error_status(reply.status)
        return ErrorDocument(reply)
    receiver: Receiver
    if reader is not None and call.stream and reply.media_type == EVENTS:
        return Events(reader, limits.event)
    if reader is None or call.crosses_unread(reply.media_type):
        receiver = Bytes()
        known = call.any_reply or reply.media_type not in ("", "text/html")
    else:
        receiver = Document(reader, call.stream, limits.reply)
        known = reply.media_type == JSON
    if not known:
        raise BadReply("The backend's reply is of an unknown type.")
    return receiver


def check_error_status(status: int) -> None:
    """Refuse a status that the client must not act on."""
    if status in (401, 403):
        raise AuthRefused("The backend refused the gateway's credentials.")
    if not 400 <= status < 600:
        raise BadReply("The backend's reply is not one to relay.", detail=f"status {status}")


def begin_answer(client: Client, attempt: Attempt, call: Call) -> None:
    """Begin the client's answer, which is sent in parts.

    :param attempt: becomes the client's producer. If its reply has no head yet, or it was left, the
        answer is an event stream that begins with a ping.
    """
    reply = attempt.reply if attempt.in_flight else None
    if reply is None:
        client.begin_stream()
    elif isinstance(attempt.receiver, Bytes):
        headers, content_type = reply.crossing, reply.media_type + reply.parameters
        if call.any_reply and reply.media_type == EVENTS:
            headers += _UNBUFFERED
        client.begin_bytes(headers, content_type, reply.status)
    else:
        client.begin_stream(reply.crossing)
    client.registerProducer(attempt, True)
