"""A reply's head, and the way of its body to a receiver that comes later or leaves early."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.iweb import UNKNOWN_LENGTH

from gatewayd.backend.response import BodyReceiver, Response
from gatewayd.http1.replies import ReplyParser

DONE = Failure(ResponseDone())
HEAD = b"HTTP/1.1 200 OK\r\nX-A: 1\r\nX-A: 2\r\nContent-Length: 5\r\n\r\n"


class Source:
    """A connection that notes what its response asks for."""

    def __init__(self, replies: int = 0) -> None:
        self.response: Response | None = None
        self.connect_seconds = 0.25
        self.replies = replies
        self.calls: list[str] = []

    def deliver_to(self, receiver: BodyReceiver) -> None:
        self.calls.append("deliver")

    def discard_rest(self) -> None:
        self.calls.append("discard")
        self.response = None

    def pause(self) -> None:
        self.calls.append("pause")

    def resume(self) -> None:
        self.calls.append("resume")

    def abort(self) -> None:
        self.calls.append("abort")
        self.response = None


class Receiver(Protocol):
    """Takes a body; leaves it as soon as ``leaves`` says so."""

    def __init__(self, leaves: str = "") -> None:
        self.leaves = leaves
        self.events: list[Any] = []

    def connectionMade(self) -> None:
        self.events.append("made")
        if self.leaves:
            getattr(self.transport, self.leaves)()

    def dataReceived(self, data: bytes) -> None:
        self.events.append(data)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.events.append(reason)


def response(head: bytes = HEAD, held: bytes = b"", replies: int = 0) -> tuple[Response, Source]:
    parser, source = ReplyParser(16384), Source(replies)
    parser.feed(head)
    source.response = made = Response(source, parser, held)
    return made, source


def test_the_head_is_that_of_the_reply() -> None:
    made, _ = response()
    assert (made.code, made.length, made.connect_seconds) == (200, 5, 0.25)
    assert made.headers.getRawHeaders(b"x-a") == [b"1", b"2"]
    assert response(b"HTTP/1.1 204 No Content\r\n\r\n")[0].length is UNKNOWN_LENGTH


def test_a_reused_connection_took_no_time_to_open() -> None:
    assert response(replies=1)[0].connect_seconds == 0


def test_a_body_is_held_until_there_is_a_receiver() -> None:
    made, source = response(held=b"he")
    made.dataReceived(b"llo")
    receiver = Receiver()
    made.deliverBody(receiver)
    assert receiver.events == ["made", b"hello"] and source.calls == ["deliver"]


def test_a_body_that_ended_while_it_was_held_is_delivered_whole() -> None:
    made, source = response(held=b"hello")
    made.connectionLost(DONE)
    source.response = None  # the connection may serve another request
    receiver = Receiver()
    made.deliverBody(receiver)
    assert receiver.events == ["made", b"hello", DONE] and source.calls == []


@pytest.mark.parametrize(
    ("leaves", "call"), [("abortConnection", "abort"), ("loseConnection", "discard")]
)
def test_a_receiver_that_leaves_is_not_called_again(leaves: str, call: str) -> None:
    made, source = response(held=b"hello")
    made.connectionLost(DONE)
    receiver = Receiver(leaves)
    made.deliverBody(receiver)
    assert receiver.events == ["made"] and source.calls == ["deliver", call]


def test_once_the_body_has_ended_the_connection_is_out_of_reach() -> None:
    made, source = response()
    source.response = None
    made.pauseProducing()
    made.resumeProducing()
    made.loseConnection()
    made.abortConnection()
    assert source.calls == []


def test_a_receiver_controls_the_pace_of_its_body() -> None:
    made, source = response()
    made.deliverBody(Receiver())
    made.pauseProducing()
    made.resumeProducing()
    assert source.calls == ["deliver", "pause", "resume"]
