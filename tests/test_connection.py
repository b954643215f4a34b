"""One connection to a backend: its states, its replies, and what a body's receiver may do to it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss

from gatewayd.backend.connection import TRANSITIONS, Event, State
from gatewayd.wire import errors
from tests.backendside import (
    CHUNKED,
    GOOD,
    OK,
    STREAM,
    UNTIL_CLOSE,
    AgentWorld,
    Body,
    GatewayWorld,
    LateTransport,
    failure,
    framed,
    idle,
    reply,
    succeeded,
)
from tests.memory import Answer, chunk


def test_each_state_is_reached_and_leads_to_the_end() -> None:
    following = {after for events in TRANSITIONS.values() for after in events.values()}
    assert following == set(State) == set(TRANSITIONS)
    assert all(events[Event.CLOSE] is State.CLOSED for events in TRANSITIONS.values())
    assert TRANSITIONS[State.CLOSED].keys() == {Event.CLOSE}


def test_a_connection_has_one_request_at_a_time() -> None:
    world = AgentWorld()
    world.post()
    with pytest.raises(KeyError):
        world.accept().protocol.send(b"GET / HTTP/1.1\r\n\r\n")


class BusyBody(Body):
    """A receiver that calls a method of its transport in a certain callback, as a relay may."""

    def __init__(self, when: str, method: str) -> None:
        super().__init__()
        self.when, self.method = when, method
        self.left = False

    def act(self, when: str) -> None:
        if when == self.when:
            getattr(self.transport, self.method)()
            self.left |= self.method in ("abortConnection", "loseConnection")

    def connectionMade(self) -> None:
        self.act("begin")

    def dataReceived(self, data: bytes) -> None:
        assert not self.left
        super().dataReceived(data)
        self.act("data")

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        assert not self.left
        super().connectionLost(reason)
        self.act("end")


WHEN = ("begin", "data", "end", "later", "never")
METHODS = ("pauseProducing", "resumeProducing", "loseConnection", "abortConnection")
REPLIES = (GOOD, CHUNKED, UNTIL_CLOSE, GOOD + b"x", b"x")

NEWEST = st.sampled_from([0, 0, 1])  # an index from the end
MOSTLY = st.sampled_from([True, True, False])

#: The arguments of each event.
EVENTS: dict[str, tuple[Any, ...]] = {
    "post": (st.sampled_from(WHEN), st.sampled_from(METHODS), MOSTLY, MOSTLY),
    "accept": (),
    "data": (NEWEST, st.sampled_from(REPLIES), st.sampled_from([9, 52, 99])),
    "close": (NEWEST, st.sampled_from([ConnectionDone, ConnectionLost])),
    "deliver": (NEWEST,),
    "call": (NEWEST, st.sampled_from(METHODS)),
    "cancel": (NEWEST,),
    "advance": (st.sampled_from([0.5, 1.1, 6.0]),),
}


def event(name: str) -> Any:
    return st.tuples(st.just(name), *EVENTS[name])


class EventWorld(AgentWorld):
    """An agent to which events occur in any order. Indexes count from the newest."""

    def __init__(self) -> None:
        super().__init__()
        self.accepted = 0  # or given up
        self.transports: list[LateTransport] = []
        self.requests: list[tuple[Any, list[Any], BusyBody]] = []

    def on_post(self, when: str, method: str, at_once: bool, accept: bool) -> None:
        request: Any = self.post()
        results: list[Any] = []
        body = BusyBody(when, method)
        if at_once:
            request.addCallback(lambda response: response.deliverBody(body) or response)
        request.addBoth(results.append)
        self.requests.append((request, results, body))
        if accept:
            self.on_accept()

    def on_accept(self) -> None:
        attempts = zip(self.reactor.tcpClients, self.reactor.connectors, strict=True)
        for attempt, connector in list(attempts)[self.accepted :]:
            self.accepted += 1
            if not connector.stoppedConnecting:
                transport = LateTransport()
                transport.protocol = attempt[2].buildProtocol(None)
                self.transports.append(transport)
                transport.protocol.makeConnection(transport)

    def on_data(self, index: int, reply: bytes, size: int) -> None:
        """The next bytes of the reply under way, else of a new one."""
        for transport in self.transports[::-1][index : index + 1]:
            if not transport.lost and transport.producerState == "producing":
                data = transport.coming or reply
                transport.coming = data[size:]
                transport.protocol.dataReceived(data[:size])

    def on_close(self, index: int, reason: type[Exception]) -> None:
        for transport in self.transports[::-1][index : index + 1]:
            transport.close(reason())

    def on_deliver(self, index: int) -> None:
        for _, results, body in self.requests[::-1][index : index + 1]:
            if results and not isinstance(results[0], Failure) and body.transport is None:
                results[0].deliverBody(body)

    def on_call(self, index: int, method: str) -> None:
        for _, _, body in self.requests[::-1][index : index + 1]:
            if body.transport is not None:
                body.method = method
                body.act(body.when)

    def on_cancel(self, index: int) -> None:
        for request, _, _ in self.requests[::-1][index : index + 1]:
            request.cancel()

    def on_advance(self, seconds: float) -> None:
        self.reactor.advance(seconds)


@given(events=st.lists(st.one_of(*map(event, EVENTS)), min_size=12, max_size=40))
def test_no_order_of_events_is_missing_from_the_table_and_each_request_ends(
    events: list[tuple[Any, ...]],
) -> None:
    world = EventWorld()
    for name, *arguments in events:
        getattr(world, f"on_{name}")(*arguments)
    world.agent.close()
    for _ in range(3):  # a request on a stale connection is sent again
        world.on_accept()
        for index in range(len(world.transports)):
            world.on_close(index, ConnectionDone)
    for index, (_, results, body) in enumerate(reversed(world.requests)):
        world.on_deliver(index)
        assert len(results) == 1
        if isinstance(results[0], Failure):
            assert results[0].check(errors.UpstreamError, CancelledError), results[0]
        else:
            assert body.left or body.reason is not None
    assert all(transport.aborted or transport.lost for transport in world.transports)
    assert not world.reactor.getDelayedCalls()


@given(
    data=st.sampled_from([GOOD, CHUNKED, UNTIL_CLOSE]),
    cuts=st.lists(st.integers(1, len(CHUNKED)), max_size=8),
)
def test_a_reply_may_arrive_in_any_pieces(data: bytes, cuts: list[int]) -> None:
    world = AgentWorld()
    request = world.post()
    transport = world.accept()
    body = Body()
    request.addCallback(lambda response: response.deliverBody(body))
    edges = sorted({0, len(data), *(c for c in cuts if c < len(data))})
    for start, stop in itertools.pairwise(edges):
        transport.protocol.dataReceived(data[start:stop])
    if data is UNTIL_CLOSE:
        assert body.reason is None
        transport.close(ConnectionDone())
    assert body.data == b"hi"
    assert isinstance(body.reason, PotentialDataLoss if data is UNTIL_CLOSE else ResponseDone)


@given(at=st.integers(1, len(CHUNKED) - 1), data=st.sampled_from([GOOD, CHUNKED]))
def test_a_framed_reply_that_is_cut_is_never_complete(at: int, data: bytes) -> None:
    world = AgentWorld()
    request = world.post()
    transport = world.accept()
    body = Body()
    request.addCallback(lambda response: response.deliverBody(body))
    problem: list[Any] = []
    request.addErrback(lambda f: problem.append(f.value))
    transport.protocol.dataReceived(data[: min(at, len(data) - 1)])
    transport.close(ConnectionDone())
    assert isinstance(problem[0] if problem else body.reason, errors.UpstreamError)


@pytest.mark.parametrize("early", [True, False], ids=["delivered", "kept until delivered"])
def test_a_body_without_a_receiver_is_held_and_its_connection_paused(early: bool) -> None:
    world = AgentWorld()
    request = world.post()
    transport = world.accept()
    responses: list[Any] = []
    body = Body()
    request.addCallback(responses.append)
    if early:
        request.addCallback(lambda _: responses[0].deliverBody(body))
    transport.protocol.dataReceived(OK + b"Content-Length: 4\r\n\r\nhi")
    assert transport.producerState == ("producing" if early else "paused")
    if not early:
        responses[0].deliverBody(body)
    assert body.data == b"hi" and transport.producerState == "producing"
    transport.protocol.dataReceived(b"ho")
    assert body.data == b"hiho" and isinstance(body.reason, ResponseDone)


@pytest.mark.parametrize(
    ("data", "reason"),
    [(GOOD, ResponseDone), (UNTIL_CLOSE, PotentialDataLoss), (CHUNKED[:-5], errors.Truncated)],
    ids=["whole", "until the connection's end", "cut"],
)
def test_a_body_that_ended_before_it_had_a_receiver_is_held(
    data: bytes, reason: type[Exception]
) -> None:
    world = AgentWorld()
    request = world.post()
    transport = world.accept()
    transport.protocol.dataReceived(data)
    transport.close(ConnectionDone())
    body = Body()
    succeeded(request).deliverBody(body)
    assert body.data == b"hi" and isinstance(body.reason, reason)


@pytest.mark.parametrize(
    "reply",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        b"HTTP/1.1 99 X\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
        OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        OK + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\nhi",
        OK + b"X-A: b\r\n c\r\n\r\n",
        OK + b"X: " + b"a" * 16385 + b"\r\n\r\n",
        OK + b"X: " + b"a" * 16385,
        OK + b"A: b\r\n" * 3000 + b"\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 1001,
    ],
)
def test_a_reply_that_is_not_valid_is_refused_and_its_connection_closed(
    reply: bytes,
) -> None:
    world = AgentWorld()
    request = world.post()
    transport = world.accept()
    transport.protocol.dataReceived(reply)
    assert isinstance(failure(request), errors.BadReply)
    assert transport.aborted


@pytest.mark.parametrize("behind", [b" ", b"\t "])
def test_white_space_after_a_value_is_not_part_of_it(behind: bytes) -> None:
    head = OK + b"Content-Encoding: identity%b\r\nRetry-After: 5%b\r\n" % (behind, behind)
    _, body, response = AgentWorld().reply(head + b"Content-Length: 2%b\r\n\r\nhi" % behind)
    assert body.data == b"hi"
    assert response.headers.getRawHeaders(b"retry-after") == [b"5"]


def test_interim_replies_are_skipped() -> None:
    world = AgentWorld()
    early = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    _, body, response = world.reply(b"HTTP/1.1 100 Continue\r\n\r\n" + early * 5 + GOOD)
    assert (response.code, body.data) == (200, b"hi")
    assert not response.headers.hasHeader(b"link")


def test_bytes_after_a_reply_close_the_connection() -> None:
    world = AgentWorld()
    transport, body, _ = world.reply(GOOD + GOOD)
    assert body.data == b"hi" and isinstance(body.reason, ResponseDone)
    assert transport.aborted
    transport, _, _ = world.reply(GOOD)
    assert not transport.aborted
    transport.protocol.dataReceived(GOOD)  # while idle
    assert transport.aborted


def test_good_bytes_before_a_broken_chunk_are_delivered_first() -> None:
    world = AgentWorld()
    _, body, _ = world.reply(OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\nzz\r\n")
    assert body.data == b"hi" and isinstance(body.reason, errors.BadReply)


@pytest.mark.parametrize(
    "header",
    [
        *(b"Connection: close\r\n", b"Connection: Close, X\r\n", b"CONNECTION: x,close\r\n"),
        b"Keep-Alive: timeout=5, max=1\r\n",
    ],
)
def test_a_connection_that_says_it_will_close_is_not_kept(header: bytes) -> None:
    world = AgentWorld()
    assert idle(world, header).aborted


def test_http_1_0_is_not_kept() -> None:
    world = AgentWorld()
    transport, body, _ = world.reply(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi")
    assert body.data == b"hi" and transport.aborted


def test_keep_alive_max_is_honoured() -> None:
    world = AgentWorld()
    reply = OK + b"Keep-Alive: timeout=5, max=3\r\nContent-Length: 0\r\n\r\n"
    transport, _, _ = world.reply(reply)
    for _ in range(2):
        assert not transport.aborted
        request = world.post()
        transport.protocol.dataReceived(reply)
        succeeded(request).deliverBody(Body())
    assert transport.aborted and world.connects == 1


class SlowBody(Body):
    """A receiver that pauses its transport, as for a slow client: at the begin, data or end."""

    def __init__(self, when: str) -> None:
        super().__init__()
        self.when = when

    def connectionMade(self) -> None:
        if self.when == "begin":
            self.transport.pauseProducing()  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        if self.when == "data":
            self.transport.pauseProducing()  # type: ignore[union-attr]

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        super().connectionLost(reason)
        if self.when == "end":
            self.transport.pauseProducing()  # type: ignore[union-attr]


@pytest.mark.parametrize("when", ["begin", "data", "end"])
@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("data", [GOOD, CHUNKED], ids=["length", "chunked"])
def test_a_paused_connection_is_read_again_in_the_pool(when: str, pieces: int, data: bytes) -> None:
    world = AgentWorld()
    request = world.post()
    transport = world.accept()
    body = SlowBody(when)
    first = data[: len(data) if pieces == 1 else -1]
    request.addCallback(lambda response: response.deliverBody(body))
    transport.protocol.dataReceived(first)
    if pieces == 2:
        transport.protocol.dataReceived(data[-1:])
    assert body.data == b"hi" and isinstance(body.reason, ResponseDone)
    assert transport.producerState == "producing"
    again = world.post()
    transport.protocol.dataReceived(GOOD)
    assert succeeded(again).code == 200 and world.connects == 1


def test_a_receiver_can_pause_the_connection_before_any_data() -> None:
    world = AgentWorld()
    request = world.post()
    transport = world.accept()
    body = SlowBody("begin")
    request.addCallback(lambda response: response.deliverBody(body))
    transport.protocol.dataReceived(OK + b"Content-Length: 4\r\n\r\nhi")
    assert transport.producerState == "paused"
    body.transport.resumeProducing()  # type: ignore[union-attr]
    assert transport.producerState == "producing"


@pytest.mark.parametrize(
    "late", ["pauseProducing", "abortConnection", "stopProducing", "loseConnection"]
)
@pytest.mark.parametrize("left", [False, True], ids=["ended", "released"])
def test_a_receiver_cannot_reach_the_next_request_of_its_connection(late: str, left: bool) -> None:
    world = AgentWorld()
    transport, old, _ = world.reply(OK + b"Content-Length: 4\r\n\r\nhi")
    if left:
        old.transport.loseConnection()  # type: ignore[union-attr]
    transport.protocol.dataReceived(b"ho")
    request = world.post()
    transport.protocol.dataReceived(OK + b"Content-Length: 4\r\n\r\nhi")
    body = Body()
    succeeded(request).deliverBody(body)
    getattr(old.transport, late)()
    assert transport.producerState == "producing" and not transport.aborted
    transport.protocol.dataReceived(b"ho")
    assert body.data == b"hiho" and isinstance(body.reason, ResponseDone)
    world.agent.close()


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"0\r\nA: ", b"b" * 1000),
        (b"0\r\n", b"A: b\r\n" * 100),
        (b"0\r\nA", b"A" * 1000),
        (b"1;a=", b"b" * 1000),
        (b"0" * 1000, b"0" * 1000),
    ],
    ids=["one trailer", "many trailers", "a trailer's name", "chunk extension", "chunk size"],
)
@pytest.mark.parametrize("released", [False, True])
def test_framing_and_trailers_are_bounded(begin: bytes, more: bytes, released: bool) -> None:
    world = AgentWorld()
    transport, body, _ = world.reply(OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
    if released:
        body.transport.loseConnection()  # type: ignore[union-attr]
    transport.protocol.dataReceived(begin)
    for _ in range(40):
        if not transport.aborted:
            transport.protocol.dataReceived(more)
    assert transport.aborted
    assert body.data == b"hi"
    assert body.reason is None if released else isinstance(body.reason, errors.BadReply)


def test_trailers_within_the_limit_of_a_head_are_dropped() -> None:
    world = AgentWorld()
    transport, body, _ = world.reply(
        OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nA: b\r\nSet-Cookie: x\r\n\r\n"
    )
    assert body.data == b"hi" and isinstance(body.reason, ResponseDone) and not transport.aborted


def test_the_bound_counts_consecutive_bytes_of_framing_only() -> None:
    world = AgentWorld()
    transport, body, _ = world.reply(OK + b"Transfer-Encoding: chunked\r\n\r\n")
    for _ in range(5000):
        for piece in (b"1", b"\r\n", b"x", b"\r\n"):
            transport.protocol.dataReceived(piece)
    assert body.data == b"x" * 5000 and body.reason is None


# -- a whole gateway, and a client that does not read ---------------------------------------------


def test_a_reply_whose_last_bytes_pause_the_connection_leaves_one_that_is_read() -> None:
    world = GatewayWorld()
    client = world.speech(world.slow_client())
    backend = world.accept()
    body = b"a" * 200_000
    backend.protocol.dataReceived(reply(body, b"audio/mpeg"))
    assert Answer(client).complete and backend.producerState == "producing"
    second = world.speech()
    assert not world.attempts  # on the same connection
    backend.protocol.dataReceived(reply(b"b", b"audio/mpeg"))
    assert Answer(second).body == b"b"


def test_a_stream_without_done_can_end_while_its_client_is_slow() -> None:
    world = GatewayWorld()
    client = world.slow_client()
    world.gateway.chat(stream=True, transport=client)
    backend = world.accept()
    backend.protocol.dataReceived(STREAM + framed(b"data: " + chunk("a") + b"\n\n"))
    assert backend.producerState == "paused"
    client.reads()
    end = framed(b"data: " + chunk("", finish="stop") + b"\n\n") + b"0\r\n\r\n"
    backend.protocol.dataReceived(end)
    assert Answer(client).payloads[-1] == b"[DONE]" and backend.producerState == "producing"


def test_a_stream_is_not_read_before_its_slow_client_has_read_the_first_ping() -> None:
    """The client has not read the first ping when the backend begins its reply."""
    world = GatewayWorld()
    client = world.slow_client()
    world.gateway.chat(stream=True, transport=client)
    backend = world.accept()
    world.gateway.clock.advance(15)
    assert b": ping" in client.value()
    backend.protocol.dataReceived(STREAM + framed(b"data: " + chunk("a") + b"\n\n"))
    assert backend.producerState == "paused"
    client.reads()
    assert backend.producerState == "producing"
