"""Heads that are known: a client is answered as if its head had been read and judged again."""

from __future__ import annotations

import hashlib
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gatewayd.api.known import MAX_HEAD_BYTES, MAX_HEADS, KnownHead, KnownHeads
from gatewayd.api.security import ANYONE
from gatewayd.http1.head import Framing
from gatewayd.http1.requests import RequestParser
from gatewayd.wire.errors import GatewayError
from tests.memory import BODY, Answer, ClientTransport, Gateway, backends, completion, echo_gateway
from tests.memory import settings as settings_of

LIMIT = 16 * 1024
TOKEN = {"token_a_sha256": hashlib.sha256(b"key").hexdigest()}
CHAT = b"POST /v1/chat/completions HTTP/1.1"
LINES = (b"Host: g", b"Content-Type: application/json", b"Authorization: Bearer key")


def head(*more: bytes, length: int = len(BODY), lines: tuple[bytes, ...] = LINES) -> bytes:
    return b"\r\n".join([CHAT, *lines, b"Content-Length: %d" % length, *more, b"", b""])


def read(raw: bytes) -> KnownHead:
    """Read a head as the channel does.

    :raises GatewayError: it is refused.
    """
    parser = RequestParser()
    parser.buffer = raw
    taken = parser.take_head(LIMIT)
    assert taken == raw
    fields = parser.parse(taken)
    framing = Framing.of(parser.line, fields)
    return KnownHead(parser.line, fields, framing, ANYONE, {})


def send(gateway: Gateway, raw: bytes, client: ClientTransport | None = None) -> ClientTransport:
    client = client or gateway.connect()
    client.protocol.dataReceived(raw)
    return client


# -- the table ---------------------------------------------------------------------------------

_lines = st.sampled_from(
    [
        b"Host: g",
        b"Content-Length: 5",
        b"content-length: 5",
        b"Content-Length: 05",
        b"Content-Length: 5 ",
        b"Content-Length:5",
        b"CONTENT-LENGTH: 5",
        b"Content-Length: ",
        b"Content-Length: 5, 5",
        b"X-Strength: 5",
        b"X-Content-Length: 5",
        b"ength: 5",
        b"Transfer-Encoding: chunked",
        b"Expect: 100-continue",
        b"Connection: close",
        b"Upgrade: h2c",
        b"X: Content-Length: 5",
    ]
)
_digits = st.sampled_from(
    [
        b"0",
        b"7",
        b"007",
        b"9" * 18,
        b"9" * 19,
        b"",
        b" 7",
        b"7 ",
        b"+7",
        b"-7",
        b"7\t",
        b"x",
        b"7,7",
    ]
)


@given(lines=st.lists(_lines, max_size=5), digits=_digits, version=st.sampled_from([b"0", b"1"]))
@example(lines=[b"Host: g", b"Content-Length: 5", b"Content-Length: 5"], digits=b"7", version=b"1")
@example(lines=[b"Host: g", b"Content-Length: 5"], digits=b"7", version=b"1")
def test_what_is_known_of_a_head_is_what_reading_it_gives(
    lines: list[bytes], digits: bytes, version: bytes
) -> None:
    """Also if the digits are not digits, and if another header looks like the length."""
    first = b"\r\n".join([b"POST / HTTP/1." + version, *lines, b"", b""])
    heads = KnownHeads()
    try:
        heads.keep(first, read(first))
    except GatewayError:
        return
    for second in (first, *(first.replace(b"5", digits, n) for n in (1, 2))):
        found = heads.find(second)
        if found is None:
            continue
        known, length = found
        again = read(second)  # it is not refused
        assert length == again.framing.length
        assert (known.line, known.framing.persistent) == (again.line, again.framing.persistent)
        assert known.framing.wants_continue == again.framing.wants_continue
        without = [
            {n: v for n, v in f.items() if n != b"content-length"}
            for f in (known.fields, again.fields)
        ]
        assert without[0] == without[1]


def test_only_the_digits_of_the_length_may_differ() -> None:
    heads = KnownHeads()
    heads.keep(head(), read(head()))
    assert heads.find(head(length=123456)) is not None
    assert heads.find(head().replace(b"key", b"kex")) is None
    assert heads.find(head().replace(b"Content-Length", b"content-length")) is None
    assert heads.find(head(b"X: 1")) is None


def test_the_number_of_heads_and_their_size_have_limits() -> None:
    heads = KnownHeads()
    long = head(b"X: " + b"a" * MAX_HEAD_BYTES)
    heads.keep(long, read(long))
    assert heads.find(long) is None
    many = [head(b"X: %d" % number) for number in range(MAX_HEADS + 1)]
    for raw in many:
        heads.keep(raw, read(raw))
    assert sum(heads.find(raw) is not None for raw in many) == 1
    assert heads.find(many[-1]) is not None


# -- the gateway -------------------------------------------------------------------------------


def test_requests_with_a_known_head_are_answered_alike() -> None:
    (backend,) = backends("a")
    gateway = Gateway(backend, settings=settings_of(**TOKEN))
    client = gateway.connect()
    for number, body in enumerate([BODY, BODY.replace(b"hi", b"hello"), BODY]):
        client.clear()
        send(gateway, head(length=len(body)) + body, client)
        assert backend.calls[number].body == body
        backend.calls[number].whole(completion())
        assert Answer(client).status == 200
    assert len({e.id for e in gateway.ended}) == 3
    assert [(e.caller, e.method, e.route) for e in gateway.ended] == [
        ("a", "POST", "/v1/chat/completions")
    ] * 3


def test_a_known_head_is_followed_by_an_unknown_one_and_by_a_body_in_pieces() -> None:
    gateway = echo_gateway()
    client = send(gateway, head() + BODY)
    send(gateway, head(length=9) + BODY[:4], client)
    send(gateway, BODY[4:9], client)
    send(gateway, b"GET /healthz HTTP/1.1\r\nHost: g\r\n\r\n" + (head() + BODY) * 2, client)
    statuses = re.findall(rb"HTTP/1.1 ([0-9]+)", client.value())
    assert statuses == [b"200", b"400", b"200", b"200", b"200"]


def test_a_head_without_the_right_token_is_never_known() -> None:
    gateway = echo_gateway(**TOKEN)
    wrong = head().replace(b"Bearer key", b"Bearer kex")
    for raw, status in ((wrong, 401), (head(), 200), (wrong, 401), (head(), 200)):
        assert Answer(send(gateway, raw + BODY)).status == status


def test_a_reload_forgets_the_heads() -> None:
    gateway = echo_gateway(**TOKEN)
    assert Answer(send(gateway, head() + BODY)).status == 200
    other = settings_of(token_b_sha256=hashlib.sha256(b"other").hexdigest())
    api = gateway.api.replaced(other, gateway.api.router)
    gateway.site.replace(api.resource(), api.admit)
    gateway.site.state.use(other, 10)
    assert Answer(send(gateway, head() + BODY)).status == 401


def test_a_known_head_is_refused_while_the_gateway_shuts_down() -> None:
    gateway = echo_gateway()
    assert Answer(send(gateway, head() + BODY)).status == 200
    gateway.site.state.draining = gateway.api.draining = True
    assert Answer(send(gateway, head() + BODY)).code == "draining"


def test_a_body_above_the_limit_is_refused_behind_a_known_head_too() -> None:
    gateway = echo_gateway(limits_request_body="100")
    assert Answer(send(gateway, head() + BODY)).status == 200
    refused = Answer(send(gateway, head(length=101)))
    assert (refused.status, refused.closed) == (413, True)
    assert Answer(send(gateway, head(length=0))).code == "invalid_json"


@pytest.mark.parametrize("name", [b"X-Request-ID", b"Request-Id"])
def test_each_request_keeps_its_own_id_and_trace(name: bytes) -> None:
    gateway = echo_gateway()
    trace = b"00-%032x-%016x-01"
    for number in (1, 2, 2):
        more = (name + b": id-%d" % number, b"traceparent: " + trace % (number, number))
        assert Answer(send(gateway, head(*more) + BODY)).header("x-request-id") == f"id-{number}"
    for number in (1, 1):
        send(gateway, head(b"traceparent: " + trace % (number, number)) + BODY)
    assert [e.traceparent and int(e.traceparent[3:35], 16) for e in gateway.ended] == [
        *(1, 2, 2, 1, 1)
    ]


def test_a_known_head_of_a_web_page_gets_the_headers_for_its_page() -> None:
    gateway = echo_gateway()
    answers = [Answer(send(gateway, head(b"Origin: http://localhost:3000") + BODY)) for _ in "ab"]
    for answer in answers:
        assert answer.header("access-control-allow-origin") == "http://localhost:3000"
    assert [n for n, _ in answers[0].headers] == [n for n, _ in answers[1].headers]
    assert Answer(send(gateway, head(b"Origin: http://evil.example") + BODY)).status == 403


def test_a_known_head_may_ask_to_close_or_to_continue() -> None:
    gateway = echo_gateway()
    for _ in range(2):
        assert Answer(send(gateway, head(b"Connection: close") + BODY)).closed
        client = send(gateway, head(b"Expect: 100-continue"))
        assert client.value() == b"HTTP/1.1 100 Continue\r\n\r\n"
