"""The agent and its connections, in memory: framing, limits, the pool, at most one execution."""

from __future__ import annotations

import itertools
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost, ConnectionRefusedError
from twisted.internet.protocol import Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import IResponse

from gatewayd.backend.agent import Agent
from gatewayd.backend.connection import IDLE_SECONDS
from gatewayd.backend.discarding import DISCARD_SECONDS
from gatewayd.backend.treqclient import BytesProducer
from gatewayd.wire import errors
from tests.backendside import ServerTransport, connected

URL = "http://127.0.0.1:9/v1/x"


class Body(Protocol):
    def __init__(self) -> None:
        self.data = b""
        self.reason: Any = None

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        assert self.reason is None, "ended twice"
        self.reason = reason.value


class World:
    """An agent, the requests sent with it through treq, and the backend's ends of its sockets."""

    def __init__(self) -> None:
        self.reactor = MemoryReactorClock()
        self.agent = Agent(self.reactor, urlsplit(URL), None, 5.0, 16384)
        self.client = HTTPClient(self.agent, data_to_body_producer=BytesProducer)

    def post(self, body: bytes = b"hi") -> Deferred[Any]:
        options: Any = {"allow_redirects": False, "unbuffered": True, "reactor": self.reactor}
        return self.client.post(URL, data=body, **options)

    def accept(self) -> ServerTransport:
        """Let the newest connection attempt succeed."""
        factory = self.reactor.tcpClients[-1][2]
        return connected(factory)

    @property
    def connects(self) -> int:
        return len(self.reactor.tcpClients)

    def reply(self, data: bytes) -> tuple[ServerTransport, Body, IResponse]:
        """One request on a fresh connection, answered with ``data``."""
        request = self.post()
        transport = self.accept()
        transport.protocol.dataReceived(data)
        response = succeeded(request)
        body = Body()
        response.deliverBody(body)
        return transport, body, response


def succeeded(request: Deferred[Any]) -> Any:
    results: list[Any] = []
    request.addBoth(results.append)
    assert results, "not answered yet"
    assert not isinstance(results[0], Failure), results[0]
    return results[0]


def failure(request: Deferred[Any]) -> BaseException | None:
    results: list[Any] = []
    request.addErrback(results.append)
    return results[0].value if results else None


OK = b"HTTP/1.1 200 OK\r\n"
GOOD = OK + b"Content-Length: 2\r\n\r\nhi"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\nh\r\n1\r\ni\r\n0\r\n\r\n"
UNTIL_CLOSE = OK + b"\r\nhi"


def test_a_request_is_sent_whole_and_with_nothing_that_was_not_meant() -> None:
    world = World()
    world.post(b'{"a":1}')
    head, _, body = world.accept().value().partition(b"\r\n\r\n")
    assert body == b'{"a":1}'
    assert head == b"POST /v1/x HTTP/1.1\r\nHost: 127.0.0.1:9\r\nContent-Length: 7"


@given(
    data=st.sampled_from([GOOD, CHUNKED, UNTIL_CLOSE]),
    cuts=st.lists(st.integers(1, len(CHUNKED)), max_size=8),
)
def test_a_reply_may_come_in_any_pieces(data: bytes, cuts: list[int]) -> None:
    world = World()
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
def test_a_framed_reply_that_is_cut_anywhere_is_never_whole(at: int, data: bytes) -> None:
    world = World()
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
def test_a_body_that_nobody_takes_yet_waits_and_stops_its_backend(early: bool) -> None:
    world = World()
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


# -- what is refused -----------------------------------------------------------------------------


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
def test_a_reply_that_is_not_what_it_should_be_is_refused_and_its_connection_closed(
    reply: bytes,
) -> None:
    world = World()
    request = world.post()
    transport = world.accept()
    transport.protocol.dataReceived(reply)
    assert isinstance(failure(request), errors.BadReply)
    assert transport.aborted


@pytest.mark.parametrize("behind", [b" ", b"\t "])
def test_white_space_behind_a_value_is_no_part_of_it(behind: bytes) -> None:
    head = OK + b"Content-Encoding: identity%b\r\nRetry-After: 5%b\r\n" % (behind, behind)
    _, body, response = World().reply(head + b"Content-Length: 2%b\r\n\r\nhi" % behind)
    assert body.data == b"hi"
    assert response.headers.getRawHeaders(b"retry-after") == [b"5"]


def test_interim_replies_are_passed_over() -> None:
    world = World()
    early = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    _, body, response = world.reply(b"HTTP/1.1 100 Continue\r\n\r\n" + early * 5 + GOOD)
    assert (response.code, body.data) == (200, b"hi")
    assert not response.headers.hasHeader(b"link")


def test_what_follows_a_reply_is_nobodys() -> None:
    world = World()
    transport, body, _ = world.reply(GOOD + GOOD)
    assert body.data == b"hi" and isinstance(body.reason, ResponseDone)
    assert transport.aborted
    transport, _, _ = world.reply(GOOD)
    assert not transport.aborted
    transport.protocol.dataReceived(GOOD)  # while idle
    assert transport.aborted


def test_good_bytes_before_a_broken_chunk_are_delivered_first() -> None:
    world = World()
    _, body, _ = world.reply(OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\nzz\r\n")
    assert body.data == b"hi" and isinstance(body.reason, errors.BadReply)


def test_cookies_are_not_kept() -> None:
    world = World()
    world.reply(OK + b"Set-Cookie: a=b\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    world.post()
    assert b"cookie" not in world.accept().value().lower()


# -- the pool ------------------------------------------------------------------------------------


def idle(world: World, extra: bytes = b"") -> ServerTransport:
    """A connection that has served one request."""
    transport, _, _ = world.reply(OK + extra + b"Content-Length: 2\r\n\r\nhi")
    transport.clear()
    return transport


def test_a_connection_serves_again_and_the_newest_first() -> None:
    world = World()
    requests = [world.post(), world.post()]
    transports = [connected(attempt[2]) for attempt in world.reactor.tcpClients]
    for request, transport in zip(requests, transports, strict=True):
        transport.protocol.dataReceived(GOOD)
        succeeded(request).deliverBody(Body())
        transport.clear()
    world.post()
    assert transports[1].value() and not transports[0].value() and world.connects == 2


@pytest.mark.parametrize(
    "header",
    [
        *(b"Connection: close\r\n", b"Connection: Close, X\r\n", b"CONNECTION: x,close\r\n"),
        b"Keep-Alive: timeout=5, max=1\r\n",
    ],
)
def test_a_connection_that_says_it_will_close_is_not_kept(header: bytes) -> None:
    world = World()
    assert idle(world, header).aborted


def test_http_1_0_is_not_kept() -> None:
    world = World()
    transport, body, _ = world.reply(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi")
    assert body.data == b"hi" and transport.aborted


@pytest.mark.parametrize(
    ("header", "seconds"), [(b"", IDLE_SECONDS), (b"Keep-Alive: timeout=10, max=100\r\n", 9.0)]
)
def test_an_idle_connection_is_closed_before_its_backend_would(
    header: bytes, seconds: float
) -> None:
    world = World()
    transport = idle(world, header)
    world.reactor.pump([0.5] * int(seconds * 2 - 2))
    assert not transport.aborted
    world.reactor.pump([0.5] * 4)
    assert transport.aborted
    assert not world.reactor.getDelayedCalls()


def test_keep_alive_max_is_honoured() -> None:
    world = World()
    reply = OK + b"Keep-Alive: timeout=5, max=3\r\nContent-Length: 0\r\n\r\n"
    transport, _, _ = world.reply(reply)
    for _ in range(2):
        assert not transport.aborted
        request = world.post()
        transport.protocol.dataReceived(reply)
        succeeded(request).deliverBody(Body())
    assert transport.aborted and world.connects == 1


def test_a_released_body_keeps_its_connection_if_it_ends_soon() -> None:
    for ends_soon in (True, False):
        world = World()
        transport, body, _ = world.reply(OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
        body.transport.loseConnection()  # type: ignore[union-attr]
        if ends_soon:
            transport.protocol.dataReceived(b"1\r\nx\r\n0\r\n\r\n")
        world.reactor.advance(DISCARD_SECONDS)
        assert transport.aborted is not ends_soon
        assert body.data == b"hi" and body.reason is None
        world.agent.close()
        assert transport.aborted and not world.reactor.getDelayedCalls()


# -- promise 6 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", [ConnectionDone(), ConnectionLost()])
def test_promise_6_a_stale_connection_is_replaced_once(reason: Exception) -> None:
    world = World()
    stale = idle(world)
    request = world.post(b"again")
    assert stale.value().endswith(b"again")
    stale.close(reason)
    fresh = world.accept()
    assert fresh.value().endswith(b"again")
    fresh.close(reason)
    assert isinstance(failure(request), errors.ConnectionReset)
    assert world.connects == 2


def test_promise_6_a_fresh_connection_is_not_replaced() -> None:
    world = World()
    request = world.post()
    world.accept().close(ConnectionLost())
    assert isinstance(failure(request), errors.ConnectionReset) and world.connects == 1


def test_promise_6_nor_a_reused_one_that_lived_on_or_answered() -> None:
    world = World()
    late = idle(world)
    request = world.post()
    world.reactor.advance(1.1)
    late.close(ConnectionLost())
    assert isinstance(failure(request), errors.ConnectionReset)
    answering = idle(world)
    request = world.post()
    answering.protocol.dataReceived(b"H")
    answering.close(ConnectionLost())
    assert isinstance(failure(request), errors.ConnectionReset)
    assert world.connects == 2


# -- connecting and leaving ----------------------------------------------------------------------


def test_a_refused_connection_is_unreachable_and_names_nobody() -> None:
    world = World()
    request = world.post()
    factory: Any = world.reactor.tcpClients[0][2]
    factory.clientConnectionFailed(None, Failure(ConnectionRefusedError()))
    problem = failure(request)
    assert isinstance(problem, errors.Unreachable) and not problem.executed
    assert "127.0.0.1" not in str(problem)
    assert not world.reactor.getDelayedCalls()


def test_the_connect_clock_covers_what_comes_before_the_request() -> None:
    world = World()
    request = world.post()
    world.reactor.advance(5)
    problem = failure(request)
    assert isinstance(problem, errors.ConnectTimeout) and problem.status == 504


def test_a_loop_that_was_late_gives_the_connection_the_time_that_it_lost() -> None:
    world = World()
    request = world.post()
    world.reactor.advance(8)  # in one step: nothing was looked at meanwhile, and 3 s are lost
    world.reactor.advance(2.9)
    world.accept().protocol.dataReceived(GOOD)
    assert succeeded(request).code == 200
    world = World()
    request = world.post()
    world.reactor.advance(8)
    world.reactor.advance(3.1)
    assert isinstance(failure(request), errors.ConnectTimeout)
    assert world.reactor.connectors[0].stoppedConnecting


def test_promise_4_cancelling_leaves_in_every_phase() -> None:
    world = World()
    request = world.post()
    request.cancel()
    assert isinstance(failure(request), CancelledError)
    assert world.reactor.connectors[0].stoppedConnecting

    request = world.post()
    transport = world.accept()
    request.cancel()
    assert transport.aborted and isinstance(failure(request), CancelledError)

    transport, body, _ = world.reply(OK + b"\r\nhi")
    body.transport.abortConnection()  # type: ignore[union-attr]
    assert transport.aborted
    assert not world.reactor.getDelayedCalls()


# -- a connection in the pool is one that is read ------------------------------------------------


class SlowBody(Body):
    """A receiver whose client is slow: it pauses its transport, at one point or another."""

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
def test_a_connection_is_read_again_when_it_goes_back_to_the_pool(
    when: str, pieces: int, data: bytes
) -> None:
    world = World()
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


def test_a_receiver_that_is_paused_from_the_start_is_not_read_for() -> None:
    world = World()
    request = world.post()
    transport = world.accept()
    body = SlowBody("begin")
    request.addCallback(lambda response: response.deliverBody(body))
    transport.protocol.dataReceived(OK + b"Content-Length: 4\r\n\r\nhi")
    assert transport.producerState == "paused"
    body.transport.resumeProducing()  # type: ignore[union-attr]
    assert transport.producerState == "producing"


def test_a_released_body_is_read_to_its_end_even_if_its_receiver_had_paused_it() -> None:
    world = World()
    transport, body, _ = world.reply(OK + b"Content-Length: 4\r\n\r\nhi")
    body.transport.pauseProducing()  # type: ignore[union-attr]
    body.transport.loseConnection()  # type: ignore[union-attr]
    assert transport.producerState == "producing"
    body.transport.pauseProducing()  # type: ignore[union-attr]  # nothing is its own any more
    transport.protocol.dataReceived(b"ho")
    assert transport.producerState == "producing" and not transport.aborted
    world.post()
    assert world.connects == 1


@pytest.mark.parametrize(
    "late", ["pauseProducing", "abortConnection", "stopProducing", "loseConnection"]
)
@pytest.mark.parametrize("left", [False, True], ids=["ended", "released"])
def test_a_receiver_cannot_reach_the_next_request_of_its_connection(late: str, left: bool) -> None:
    world = World()
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


# -- what a backend may send without end ---------------------------------------------------------


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
def test_what_is_no_body_is_bounded_within_a_body_too(
    begin: bytes, more: bytes, released: bool
) -> None:
    world = World()
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
    world = World()
    transport, body, _ = world.reply(
        OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nA: b\r\nSet-Cookie: x\r\n\r\n"
    )
    assert body.data == b"hi" and isinstance(body.reason, ResponseDone) and not transport.aborted


def test_a_long_body_of_small_pieces_whose_framing_comes_apart_is_no_flood() -> None:
    world = World()
    transport, body, _ = world.reply(OK + b"Transfer-Encoding: chunked\r\n\r\n")
    for _ in range(5000):
        for piece in (b"1", b"\r\n", b"x", b"\r\n"):
            transport.protocol.dataReceived(piece)
    assert body.data == b"x" * 5000 and body.reason is None


def test_a_backend_cannot_have_its_idle_connection_kept_for_years() -> None:
    world = World()
    transport = idle(world, b"Keep-Alive: timeout=999999999\r\n")
    world.reactor.pump([1.0] * 61)
    assert transport.aborted and not world.reactor.getDelayedCalls()


# -- a connection that is gone --------------------------------------------------------------------


class LateTransport(ServerTransport):
    """As TCP: an aborted connection is lost in the reactor's next turn."""

    def abortConnection(self) -> None:
        self.aborted = True


def test_a_connection_that_was_aborted_while_idle_is_not_handed_out() -> None:
    world = World()
    request = world.post()
    transport = LateTransport()
    transport.protocol = world.reactor.tcpClients[-1][2].buildProtocol(None)
    transport.protocol.makeConnection(transport)
    transport.protocol.dataReceived(GOOD)
    succeeded(request).deliverBody(Body())
    transport.clear()
    transport.protocol.dataReceived(b"HTTP/1.1 408 Request Timeout\r\n\r\n")  # nobody asked
    assert transport.aborted
    world.post()
    assert world.connects == 2 and not transport.value()


def test_the_pool_of_a_closed_agent_takes_no_connection() -> None:
    world = World()
    request = world.post()
    transport = world.accept()
    world.agent.close()
    transport.protocol.dataReceived(GOOD)
    body = Body()
    succeeded(request).deliverBody(body)
    assert isinstance(body.reason, ResponseDone)
    assert transport.aborted and not world.reactor.getDelayedCalls()
