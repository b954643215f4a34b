"""An open tunnel: bytes both ways, and what each side is told at its end."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionLost

from gatewayd.exchange import End, Exchange
from gatewayd.wire.errors import Drained
from tests.memory import ClientTransport
from tests.websocket import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Peer,
    TunnelWorld,
    accepting,
    close,
    frame,
    frames_in,
)

CLIENT_GONE, COMPLETE = End.CLIENT_GONE, End.COMPLETE


def world(**own: Any) -> tuple[TunnelWorld, Peer, Peer]:
    """
    :param own: settings of the backend.
    """
    made = TunnelWorld(own=own)
    return made, *made.open()


def ended(made: TunnelWorld) -> Exchange:
    (exchange,) = made.gateway.ended
    assert made.target.in_flight == 0
    return exchange


def is_closed(peer: Peer) -> bool:
    """Whether the gateway closed this connection, and not by a reset."""
    return bool(peer.transport.disconnecting) and not peer.transport.aborted


def test_bytes_cross_as_they_are_in_both_directions() -> None:
    made, client, backend = world()
    sent = [
        frame(TEXT, b"hi", masked=True),
        frame(BINARY, b"\0" * 70000, fin=False, masked=True),
        frame(CONTINUATION, masked=True),
        frame(PING, b"p", masked=True),
    ]
    for each in sent:
        client.send_raw(each)
    assert backend.raw == b"".join(sent)
    back = [frame(0x40 | TEXT, b"deflated"), frame(PONG, b"p"), frame(BINARY, b"x" * 1000)]
    for each in back:
        for byte in each:
            backend.send_raw(bytes((byte,)))
    assert client.raw == b"".join(back)
    assert made.gateway.ended == [] and made.target.in_flight == 1


@pytest.mark.parametrize("first", ["client", "backend"])
def test_a_tunnel_is_whole_after_a_close_frame_from_each_side(first: str) -> None:
    made, client, backend = world()
    client.sends(TEXT, b"hello")
    backend.sends(TEXT, b"hi")
    one, other = (client, backend) if first == "client" else (backend, client)
    one.closes(1000)
    assert other.frames[-1].code == 1000 and made.gateway.ended == []
    other.closes(1000)
    exchange = ended(made)
    assert (exchange.end, exchange.status, exchange.code) == (COMPLETE, 101, "")
    assert exchange.bytes_in == len(backend.raw) and exchange.bytes_out == len(client.raw)
    assert [f.opcode for f in client.frames] == [f.opcode for f in backend.frames] == [TEXT, CLOSE]
    assert is_closed(client) and is_closed(backend)


def test_promise_3_a_backend_that_breaks_off_is_told_with_1011() -> None:
    made, client, backend = world()
    backend.sends(TEXT, b"hi")
    backend.transport.close(ConnectionLost())
    last = client.frames[-1]
    assert (last.opcode, last.code, last.masked) == (CLOSE, 1011, False)
    assert b"Close frame" in last.payload or b"broke off" in last.payload
    exchange = ended(made)
    assert (exchange.end, exchange.code) == (End.BACKEND_TRUNCATED, "upstream_reset")
    assert is_closed(client)


def test_promise_3_no_close_frame_is_put_into_a_frame() -> None:
    made, client, backend = world()
    backend.send_raw(frame(TEXT, b"hello")[:4])
    backend.transport.close(ConnectionLost())
    assert client.raw == frame(TEXT, b"hello")[:4]
    made.reactor.advance(1)
    assert client.transport.aborted
    assert ended(made).end is End.BACKEND_TRUNCATED


def test_a_header_that_is_cut_off_leaves_room_for_a_close_frame() -> None:
    _, client, backend = world()
    backend.send_raw(frame(TEXT, b"hello")[:1])
    backend.transport.close(ConnectionLost())
    assert [f.code for f in client.frames] == [1011]


def test_a_backend_may_close_its_connection_after_its_close_frame() -> None:
    made, client, backend = world()
    backend.closes(1000)
    backend.transport.close(ConnectionLost())
    assert [f.code for f in client.frames] == [1000]
    assert ended(made).end is COMPLETE and is_closed(client)


@pytest.mark.parametrize("code", [1011, 1012, 1013, 1014])
def test_a_backend_that_closes_because_of_its_own_fault_is_an_error(code: int) -> None:
    made, client, backend = world()
    backend.closes(code)
    client.closes(code)
    assert [f.code for f in client.frames] == [code]
    exchange = ended(made)
    assert exchange.end is End.BACKEND_ERROR and exchange.status == 101


def test_a_fault_that_the_client_reports_is_not_the_backends() -> None:
    made, client, backend = world()
    client.closes(1011)
    backend.closes(1011)
    assert ended(made).end is COMPLETE


def test_a_backend_without_an_answer_to_a_close_frame_is_a_timeout() -> None:
    made, client, _ = world()
    client.closes()
    made.reactor.advance(5)
    assert ended(made).end is End.BACKEND_TIMEOUT
    assert [f.code for f in client.frames] == [1011] and is_closed(client)


def test_a_client_without_an_answer_to_a_close_frame_has_got_everything() -> None:
    made, client, backend = world()
    backend.closes()
    backend.send_raw(frame(TEXT, b"more"))
    made.reactor.advance(5)
    assert ended(made).end is COMPLETE
    assert [f.code for f in client.frames] == [1000] and is_closed(client)
    assert backend.frames == []


def test_promise_4_a_client_that_leaves_takes_the_tunnel_with_it() -> None:
    made, client, backend = world()
    client.sends(TEXT, b"hi")
    client.transport.leave()
    assert ended(made).end is CLIENT_GONE
    last = backend.frames[-1]
    assert (last.opcode, last.code, last.masked) == (CLOSE, 1001, True)
    assert is_closed(backend)
    made.reactor.advance(2)
    assert backend.transport.aborted


def test_promise_4_a_client_that_leaves_within_a_frame_resets_the_backend() -> None:
    made, client, backend = world()
    client.send_raw(frame(TEXT, b"hello", masked=True)[:9])
    client.transport.leave()
    assert backend.transport.aborted and ended(made).end is CLIENT_GONE


def test_a_backend_that_closes_in_time_is_not_reset() -> None:
    made, client, backend = world()
    client.transport.leave()
    backend.transport.close(ConnectionLost())
    made.reactor.advance(10)
    assert not backend.transport.aborted


@pytest.mark.parametrize(
    ("sent", "code", "log"),
    [
        (frame(TEXT, b"x" * 2000, masked=True), 1009, "request_too_large"),
        (frame(PING, fin=False, masked=True), 1002, "bad_http"),
    ],
)
def test_a_message_that_may_not_be_sent_is_refused(sent: bytes, code: int, log: str) -> None:
    made = TunnelWorld(limits_request_body="1000")
    client, backend = made.open()
    client.send_raw(frame(TEXT, b"good", masked=True) + sent)
    assert [f.code for f in client.frames] == [code]
    assert [f.opcode for f in backend.frames] == [TEXT, CLOSE]
    assert backend.frames[-1].code == 1001
    exchange = ended(made)
    assert (exchange.end, exchange.code) == (End.REFUSED, log)


def test_a_backends_message_above_the_limit_of_events_ends_the_tunnel() -> None:
    made = TunnelWorld(limits_event="1000")
    client, backend = made.open()
    backend.sends(BINARY, b"x" * 2000)
    assert [f.code for f in client.frames] == [1011]
    exchange = ended(made)
    assert (exchange.end, exchange.code) == (End.BACKEND_ERROR, "upstream_bad_response")
    assert exchange.detail == "A message is larger than 1000 bytes."


# -- clocks ----------------------------------------------------------------------------------------


def test_promise_9_pings_do_not_fool_the_idle_clock() -> None:
    made, client, backend = world(idle=10.0)
    for _ in range(3):
        made.reactor.advance(3)
        client.sends(PING)
        backend.sends(PONG)
    made.reactor.advance(1)
    exchange = ended(made)
    assert (exchange.end, exchange.code) == (End.BACKEND_TIMEOUT, "upstream_timeout")
    assert client.frames[-1].code == 1011 and backend.frames[-1].code == 1001


@pytest.mark.parametrize("side", ["client", "backend"])
def test_content_of_either_side_moves_the_idle_clock(side: str) -> None:
    made, client, backend = world(idle=10.0)
    for _ in range(5):
        made.reactor.advance(9)
        (client if side == "client" else backend).sends(TEXT, b"x")
    assert made.gateway.ended == []
    made.reactor.advance(10)
    assert ended(made).end is End.BACKEND_TIMEOUT


def test_only_silence_after_a_message_of_the_client_counts_against_the_backend() -> None:
    made, client, backend = world(idle=10.0)
    for _ in range(3):
        backend.sends(TEXT, b"your turn")
        made.reactor.advance(10)
        client, backend = made.open()
    assert made.target.health.usable
    for _ in range(3):
        client.sends(TEXT, b"your turn")
        made.reactor.advance(10)
        client, backend = made.open()
    assert not made.target.health.usable


def test_total_ends_a_tunnel_in_spite_of_content() -> None:
    made, client, backend = world(total=10.0)
    for _ in range(10):
        made.reactor.advance(1)
        if not made.gateway.ended:
            backend.sends(TEXT, b"x")
    assert ended(made).end is End.BACKEND_TIMEOUT and client.frames[-1].code == 1011


def test_a_clock_that_is_0_does_not_run() -> None:
    made, _, _ = world(idle=0.0)
    made.reactor.advance(100_000)
    assert made.gateway.ended == []


# -- the pace --------------------------------------------------------------------------------------


def test_promise_5_a_slow_client_pauses_the_backend_and_the_idle_clock() -> None:
    made, client, backend = world(idle=10.0)
    client.transport.producer.pauseProducing()
    assert backend.transport.producerState == "paused"
    made.reactor.advance(50)
    assert made.gateway.ended == []
    client.transport.producer.resumeProducing()
    assert backend.transport.producerState == "producing"
    made.reactor.advance(10)
    assert ended(made).end is End.BACKEND_TIMEOUT


def test_a_client_that_takes_nothing_is_disconnected_after_client_write() -> None:
    made, client, backend = world()
    client.transport.producer.pauseProducing()
    made.reactor.advance(60)
    exchange = ended(made)
    assert (exchange.end, exchange.detail) == (CLIENT_GONE, "client_write")
    assert client.transport.aborted and backend.frames[-1].code == 1001


def test_promise_5_a_slow_backend_pauses_the_client() -> None:
    _, client, backend = world(idle=10.0)
    backend.transport.producer.pauseProducing()
    assert client.transport.producerState == "paused"
    client.transport.producer.pauseProducing()  # slow as well
    client.transport.producer.resumeProducing()
    assert client.transport.producerState == "paused"
    backend.transport.producer.resumeProducing()
    assert client.transport.producerState == "producing"


# -- the gateway -----------------------------------------------------------------------------------


def test_a_shutdown_closes_a_tunnel_with_1012() -> None:
    made, client, backend = world()
    (exchange,) = made.gateway.site.state.active
    assert exchange.stop is not None
    exchange.stop(Drained("late"))
    assert [f.code for f in client.frames] == [1012] and is_closed(client)
    assert [f.code for f in backend.frames] == [1001] and is_closed(backend)
    assert ended(made).end is End.DRAINED


def test_a_tunnel_is_closed_once() -> None:
    made, client, backend = world()
    client.closes()
    backend.closes()
    client.sends(TEXT, b"late")
    client.transport.leave()
    backend.transport.close(ConnectionLost())
    made.reactor.advance(100)
    assert ended(made).end is COMPLETE


def test_frames_that_come_with_the_handshake_are_relayed() -> None:
    made = TunnelWorld()
    client_end = made.upgrade()
    early = frame(TEXT, b"early", masked=True)
    client_end.protocol.dataReceived(early)
    server = made.accept()
    request = server.value()
    server.protocol.dataReceived(accepting() + frame(TEXT, b"hello"))
    assert server.value() == request + early
    assert frames_in(Peer(client_end, True).raw) == [(TEXT, b"hello", True, False)]


def test_a_close_frame_without_a_code_is_a_good_end() -> None:
    made, client, backend = world()
    backend.closes(None)
    client.send_raw(close(None, masked=True))
    assert ended(made).end is COMPLETE


# -- any order of events ---------------------------------------------------------------------------

FRAMES = st.one_of(
    st.builds(
        lambda opcode, payload, fin: (opcode, payload, fin),
        st.sampled_from([TEXT, BINARY, CONTINUATION]),
        st.binary(max_size=300),
        st.booleans(),
    ),
    st.builds(
        lambda opcode, payload: (opcode, payload, True),
        st.sampled_from([PING, PONG]),
        st.binary(max_size=125),
    ),
)
#: How many of the last bytes are held back until the next event of the same side.
HELD = st.sampled_from([0, 0, 1, 5])
EVENTS = st.tuples(
    st.lists(
        st.one_of(
            st.tuples(st.just("say"), st.booleans(), st.tuples(FRAMES, HELD)),
            st.tuples(st.just("say"), st.booleans(), st.tuples(FRAMES, HELD)),
            st.tuples(st.just("close"), st.booleans(), st.sampled_from([1000, 1011, None])),
            st.tuples(st.just("slow"), st.booleans(), st.booleans()),
            st.tuples(st.just("wait"), st.booleans(), st.sampled_from([0.5, 4.0])),
        ),
        max_size=12,
    ),
    st.tuples(st.sampled_from(["lose", "drain", "wait", "close"]), st.booleans(), st.just(1000)),
).map(lambda parts: [*parts[0], parts[1]])


class Side:
    """A peer with bytes that it has yet to send, and all that it has sent."""

    def __init__(self, peer: Peer, masked: bool) -> None:
        self.peer, self.masked = peer, masked
        self.queued = self.sent = b""
        self.lost = self.slow = False

    def act(self, kind: str, value: Any) -> None:
        transport = self.peer.transport
        if kind == "say":
            (opcode, payload, fin), held = value
            self.queued += frame(opcode, payload, fin=fin, masked=self.masked)
            self._send(len(self.queued) - held)
        elif kind == "close":
            self.queued += close(value, masked=self.masked)
            self._send(len(self.queued))
        elif kind == "slow" and transport.producer is not None and self.slow != value:
            self.slow = value
            (transport.producer.pauseProducing if value else transport.producer.resumeProducing)()
        elif kind == "lose" and not self.lost and not transport.aborted:
            self.lost = True
            if isinstance(transport, ClientTransport):
                transport.leave()
            else:
                transport.close(ConnectionLost())

    def _send(self, count: int) -> None:
        transport = self.peer.transport
        gone = self.lost or transport.aborted
        if count > 0 and not gone and transport.producerState != "paused":
            data, self.queued = self.queued[:count], self.queued[count:]
            self.sent += data
            self.peer.send_raw(data)


@given(EVENTS)
def test_promise_1_any_order_of_events_ends_in_one_way_and_truthfully(
    events: list[tuple[str, bool, Any]],
) -> None:
    made, client_end, backend_end = world(idle=10.0)
    sides = Side(client_end, True), Side(backend_end, False)
    for kind, first, value in events:
        if kind == "wait":
            made.reactor.advance(value)
        elif kind == "drain":
            for exchange in list(made.gateway.site.state.active):
                if exchange.stop is not None:
                    exchange.stop(Drained("late"))
        else:
            sides[not first].act(kind, value)
    for side in sides:
        side.act("slow", False)
    made.reactor.pump([1000.0] * 3)  # a clock may set another one
    exchange = ended(made)
    for receiver, sender in (sides, sides[::-1]):
        received = receiver.peer.raw
        crossed = _relayed(received, sender.sent)
        inserted = received[crossed:]
        if inserted:  # a Close frame of the gateway, between two frames
            (own,) = frames_in(inserted)
            assert own.opcode == CLOSE and own.code in (1001, 1002, 1009, 1011, 1012)
            assert own.masked is sender.masked
            assert CLOSE not in [each.opcode for each in frames_in(received[:crossed])]
        if exchange.end is COMPLETE:
            assert not inserted
    if exchange.end is COMPLETE:
        assert frames_in(client_end.raw)[-1].opcode == CLOSE
        assert exchange.bytes_in == len(backend_end.raw)
    elif exchange.end in (End.BACKEND_TRUNCATED, End.BACKEND_TIMEOUT, End.DRAINED):
        assert client_end.transport.aborted or frames_in(client_end.raw)[-1].opcode == CLOSE
    for side in sides:
        transport = side.peer.transport
        assert side.lost or transport.aborted or transport.disconnecting


def _relayed(received: bytes, sent: bytes) -> int:
    """How many bytes at the start were relayed; what follows them is a frame of the gateway."""
    count = min(len(received), len(sent))
    same = next((n for n in range(count) if received[n] != sent[n]), count)
    if same < count and sent[same - 1 : same] == b"\x88":
        return same - 1  # its first byte is that of a frame which was not relayed
    return same
