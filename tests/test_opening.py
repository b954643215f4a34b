"""Asking for a WebSocket: which backend is asked, what it receives, and how a refusal crosses."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.error import ConnectionLost, ConnectionRefusedError

from gatewayd.exchange import End
from gatewayd.settings.values import secret
from gatewayd.wire.errors import Drained
from tests.backendside import ServerTransport, reply
from tests.memory import Answer, ClientTransport, FakeBackend
from tests.websocket import ACCEPT, CLOSE, TunnelWorld, accepting, frames_in

BODY = b'{"error": {"message": "no", "type": "t", "param": null, "code": "own"}}'


def asked(**own: Any) -> tuple[TunnelWorld, ClientTransport, ServerTransport]:
    """A world in which a backend has been asked."""
    made = TunnelWorld(own=own)
    client = made.upgrade()
    return made, client, made.accept()


def test_the_client_gets_101_with_what_the_backend_has_chosen() -> None:
    made = TunnelWorld()
    client = made.upgrade(Sec_WebSocket_Protocol="realtime, other")
    assert client.value() == b""
    extra = b"Sec-WebSocket-Protocol: other\r\nServer: x\r\nX-Other: y\r\nSet-Cookie: a=b\r\n"
    made.accept().protocol.dataReceived(accepting(extra=extra))
    answer = Answer(client)
    assert answer.status == 101 and not answer.closed
    assert answer.header("sec-websocket-accept") == ACCEPT.decode()
    assert answer.header("sec-websocket-protocol") == "other"
    assert answer.header("connection") == "Upgrade" and answer.header("upgrade") == "websocket"
    assert answer.header("x-request-id") == "ws-1" and answer.header("server") == "gatewayd"
    assert answer.header("x-other") is answer.header("set-cookie") is None
    assert answer.header("content-type") is answer.header("content-length") is None


def test_the_backend_gets_the_handshake_and_nothing_of_the_caller() -> None:
    made = TunnelWorld(own={"api_key": secret("sk-own")})
    made.upgrade(
        "/v1/realtime?model=m&api-key=mine",
        Authorization="Bearer mine",
        Cookie="a=mine",
        Origin="http://localhost",
        OpenAI_Beta="realtime=v1",
        Sec_WebSocket_Protocol="openai-insecure-api-key.mine, realtime",
        Traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )
    server = made.accept()
    assert b"mine" not in server.value()
    headers = made.asked(server)
    assert headers == {
        "": "GET /v1/realtime?model=m HTTP/1.1",
        "host": "127.0.0.1:9",
        "user-agent": "gatewayd",
        "authorization": "bearer sk-own",
        "accept": "*/*",
        "x-request-id": "ws-1",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "connection": "upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "dghlihnhbxbszsbub25jzq==",
        "sec-websocket-protocol": "realtime",
        "openai-beta": "realtime=v1",
    }


def test_an_alias_in_the_query_becomes_the_backends_name() -> None:
    made = TunnelWorld()
    made.target.models = type(made.target.models)((("voice", "org/real"),))
    made.upgrade("/v1/realtime?model=voice&intent=x")
    server = made.accept()
    assert made.asked(server)[""] == "GET /v1/realtime?model=org%2Freal&intent=x HTTP/1.1"
    (exchange,) = made.gateway.site.state.active
    assert exchange.model == "voice"


def test_the_client_is_told_who_has_answered_if_it_may_know() -> None:
    made = TunnelWorld(routing_show_backend="yes")
    made.target.models = type(made.target.models)((("voice", "org/real"),))
    for data, status in ((accepting(), 101), (reply(BODY, status=400), 400)):
        client = made.upgrade("/v1/realtime?model=voice")
        made.accept().protocol.dataReceived(data)
        answer = Answer(client)
        assert answer.status == status and answer.header("x-gatewayd-backend") == "a"
        assert answer.header("x-gatewayd-model") == "org/real"
    silent, _ = TunnelWorld().open()
    assert b"x-gatewayd" not in silent.transport.value().lower()


def test_a_session_stays_with_its_backend() -> None:
    for affinity in ("session", "off"):
        made = TunnelWorld(FakeBackend("b"), routing_affinity=affinity)
        first: dict[str, str] = {}
        same = 0
        for number in range(63):
            session = f"s{number % 21}"  # an odd number, because backends take turns
            client = made.upgrade("/v1/realtime?model=m", X_Session_ID=session)
            if made.attempts:
                made.accept().protocol.dataReceived(reply(BODY, status=400))
            (exchange,) = made.gateway.ended
            made.gateway.ended.clear()
            client.leave()
            (asked,) = exchange.backends
            same += first.setdefault(session, asked) == asked
        assert set(first.values()) == {"a", "b"}
        assert (same == 63) is (affinity == "session")


def test_a_model_that_no_backend_serves_is_refused() -> None:
    made = TunnelWorld()
    made.target.models = type(made.target.models)((("voice", None),))
    answer = Answer(made.upgrade("/v1/realtime?model=other"))
    assert (answer.status, answer.code) == (404, "model_not_found") and made.attempts == []


@pytest.mark.parametrize("status", [400, 404, 422, 500])
def test_a_refusal_crosses_with_its_envelope(status: int) -> None:
    made, client, server = asked()
    server.protocol.dataReceived(reply(BODY, status=status))
    answer = Answer(client)
    assert (answer.status, answer.body, answer.complete) == (status, BODY, True)
    assert (answer.header("x-should-retry") == "false") is (status == 500)
    assert made.gateway.end is (End.REFUSED if status < 500 else End.BACKEND_ERROR)
    assert made.target.in_flight == 0 and server.aborted and not answer.closed


def test_an_error_whose_body_breaks_off_or_stalls_is_told_by_its_status() -> None:
    for breaks in (True, False):
        made, client, server = asked()
        server.protocol.dataReceived(reply(BODY, status=400)[:-3])
        assert client.value() == b""
        if breaks:
            server.close(ConnectionLost())
        else:
            made.reactor.advance(5)
        answer = Answer(client)
        assert (answer.status, answer.code) == (400, "upstream_error")
        assert made.target.in_flight == 0


@pytest.mark.parametrize("status", [401, 403])
def test_promise_8_credentials_that_the_backend_refuses_are_the_gateways_fault(status: int) -> None:
    _, client, server = asked()
    server.protocol.dataReceived(reply(BODY, status=status))
    answer = Answer(client)
    assert (answer.status, answer.code) == (502, "upstream_auth") and server.aborted
    assert ("has no such WebSocket" in answer.json["error"]["message"]) is (status == 403)


@pytest.mark.parametrize(
    "data",
    [
        reply(b"{}"),
        reply(b"", status=302),
        b"garbage\r\n\r\n",
        accepting(b"AAAAAAAAAAAAAAAAAAAAAA=="),
        accepting(extra=b"Sec-WebSocket-Protocol: other\r\n"),
        b"HTTP/1.1 101 X\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 101 X\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\n\r\n",
        accepting().replace(b"Connection: upgrade\r\n", b""),
        accepting().replace(b"Connection: upgrade", b"Connection: close"),
        accepting(extra=b"X-Large: %b\r\n" % (b"x" * 20000)),
    ],
)
def test_a_reply_that_is_no_good_101_is_a_bad_reply(data: bytes) -> None:
    made, client, server = asked()
    server.protocol.dataReceived(data)
    answer = Answer(client)
    assert (answer.status, answer.code) == (502, "upstream_bad_response")
    assert made.gateway.end is End.BACKEND_ERROR and server.aborted
    assert made.target.in_flight == 0


def test_a_backend_that_hangs_up_is_not_followed_by_another() -> None:
    other = FakeBackend("b")
    made = TunnelWorld(other)
    client = made.upgrade()
    made.accept().close(ConnectionLost())
    answer = Answer(client)
    assert (answer.status, answer.code) == (502, "upstream_reset")
    assert answer.header("x-should-retry") == "false"
    (exchange,) = made.gateway.ended
    assert exchange.backends == ["a"]


def test_promise_6_another_backend_is_asked_if_the_first_cannot_have_accepted() -> None:
    ends = {0: "backend_unreachable", 503: "backend_error", 429: "refused"}
    for status in ends:
        made = TunnelWorld(FakeBackend("b"))
        client = made.upgrade()
        if status:
            server = made.accept()
            server.protocol.dataReceived(reply(BODY, status=status))
            assert server.aborted
        else:
            made.refuse(ConnectionRefusedError())
        assert Answer(client).status == 404  # of the other backend, which has no tunnels
        (exchange,) = made.gateway.ended
        assert exchange.backends == ["a", "b"] and exchange.tried is not None
        assert [(each.backend, each.end) for each in exchange.tried] == [
            ("a", ends[status]),
        ]
        assert [target.in_flight for target in made.gateway.targets] == [0, 0]


def test_a_backend_that_was_the_only_one_says_why_it_refuses() -> None:
    _, client, server = asked()
    server.protocol.dataReceived(reply(BODY, status=503))
    answer = Answer(client)
    assert (answer.status, answer.body) == (503, BODY)


def test_a_backend_that_cannot_be_reached_is_told_so() -> None:
    made = TunnelWorld()
    client = made.upgrade()
    made.refuse(ConnectionRefusedError())
    answer = Answer(client)
    assert (answer.status, answer.code) == (502, "upstream_unreachable")
    assert made.gateway.end is End.BACKEND_UNREACHABLE


def test_a_silent_backend_is_left_after_first_byte() -> None:
    made, client, server = asked(first_byte=3.0)
    made.reactor.advance(3)
    answer = Answer(client)
    assert (answer.status, answer.code) == (504, "upstream_timeout") and server.aborted
    assert made.gateway.end is End.BACKEND_TIMEOUT and made.target.in_flight == 0


def test_promise_4_a_client_that_leaves_before_the_101_takes_the_request_with_it() -> None:
    made = TunnelWorld()
    made.upgrade().leave()
    assert made.gateway.end is End.CLIENT_GONE and made.target.in_flight == 0
    made, client, server = asked()
    client.leave()
    assert server.aborted and made.gateway.end is End.CLIENT_GONE
    made, client, server = asked()
    server.protocol.dataReceived(reply(BODY, status=400)[:-3])
    client.leave()
    assert server.aborted and made.target.in_flight == 0


def test_a_shutdown_before_the_101_is_an_http_error() -> None:
    made, client, server = asked()
    (exchange,) = made.gateway.site.state.active
    assert exchange.stop is not None
    exchange.stop(Drained("late"))
    assert Answer(client).status == 503 and server.aborted
    assert made.gateway.end is End.DRAINED


def test_interim_replies_before_the_101_are_skipped() -> None:
    _, client, server = asked()
    server.protocol.dataReceived(b"HTTP/1.1 100 Continue\r\n\r\n" + accepting())
    assert Answer(client).status == 101


def test_a_head_in_pieces_is_read() -> None:
    _, client, server = asked()
    for byte in accepting():
        server.protocol.dataReceived(bytes((byte,)))
    assert Answer(client).status == 101
    client.leave()
    (last,) = frames_in(server.value().partition(b"\r\n\r\n")[2])
    assert last.opcode == CLOSE
