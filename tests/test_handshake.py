"""Handshakes of WebSockets: what is refused, what crosses, and what a backend may answer."""

from __future__ import annotations

import pytest

from gatewayd.http1.handshake import (
    Handshake,
    accept_of,
    asks_for_websocket,
    presented_key,
)
from gatewayd.http1.head import Fields
from gatewayd.wire.errors import BadHTTP, BadReply, GatewayError, UpgradeRequired
from tests.websocket import ACCEPT, HANDSHAKE, KEY


def fields(**changed: str | None) -> Fields:
    """The headers of a good handshake with some changed, or left out; an underscore is a hyphen."""
    named = {name.replace("_", "-"): value for name, value in changed.items()}
    pairs = {**{name.lower(): value for name, value in HANDSHAKE.items()}, **named}
    return Fields((n.encode(), v.encode()) for n, v in pairs.items() if v is not None)


def read(**changed: str | None) -> Handshake:
    return Handshake.of(b"HTTP/1.1", fields(**changed))


def test_the_answer_to_a_key_is_that_of_the_rfc() -> None:
    assert accept_of(KEY) == ACCEPT


def test_a_browsers_handshake_is_read() -> None:
    assert read(connection="keep-alive, Upgrade", upgrade="WebSocket") == Handshake(KEY)


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"upgrade": None}, 426),
        ({"upgrade": "h2c"}, 426),
        ({"sec_websocket_version": None}, 426),
        ({"sec_websocket_version": "8"}, 426),
        ({"sec_websocket_version": "13, 8"}, 426),
        ({"connection": "keep-alive"}, 400),
        ({"connection": None}, 400),
        ({"sec_websocket_key": None}, 400),
        ({"sec_websocket_key": "c2hvcnQ="}, 400),
        ({"sec_websocket_key": "!" * 24}, 400),
        ({"sec_websocket_protocol": "a b"}, 400),
        ({"sec_websocket_protocol": "realtime, realtime"}, 400),
    ],
)
def test_a_handshake_that_does_not_fit_is_refused(
    changed: dict[str, str | None], status: int
) -> None:
    with pytest.raises(GatewayError) as caught:
        read(**changed)
    assert caught.value.status == status and caught.value.end == "refused"
    assert (b"sec-websocket-version", b"13") in caught.value.headers
    assert ((b"upgrade", b"websocket") in caught.value.headers) is (status == 426)


def test_a_second_key_is_refused() -> None:
    twice = fields()
    twice[b"sec-websocket-key"].append(KEY)
    with pytest.raises(BadHTTP):
        Handshake.of(b"HTTP/1.1", twice)


def test_http_1_0_has_no_websockets() -> None:
    with pytest.raises(BadHTTP):
        Handshake.of(b"HTTP/1.0", fields())
    with pytest.raises(UpgradeRequired):
        Handshake.of(b"HTTP/1.0", fields(upgrade=None))


@pytest.mark.parametrize("value", ["websocket", "h2c, WebSocket"])
def test_an_upgrade_is_recognised(value: str) -> None:
    assert asks_for_websocket(fields(upgrade=value))
    assert not asks_for_websocket(fields(upgrade="h2c"))


def test_promise_8_a_key_among_the_subprotocols_stays_here() -> None:
    offered = (
        "realtime, openai-insecure-api-key.gw-1, openai-organization.o, openai-project.p,"
        "openai-beta.realtime-v1"
    )
    handshake = read(sec_websocket_protocol=offered)
    assert handshake.protocols == (b"realtime", b"openai-beta.realtime-v1")
    assert b"gw-1" not in handshake.header_lines()
    assert presented_key(fields(sec_websocket_protocol=offered)) == b"gw-1"


@pytest.mark.parametrize(
    "offered",
    [
        None,
        "realtime",
        "openai-insecure-api-key.",
        "openai-insecure-api-key.a, openai-insecure-api-key.b",
    ],
)
def test_without_one_key_there_is_none(offered: str | None) -> None:
    assert presented_key(fields(sec_websocket_protocol=offered)) is None


def test_a_request_that_asks_for_no_upgrade_presents_no_key() -> None:
    key = "openai-insecure-api-key.gw-1"
    assert presented_key(fields(sec_websocket_protocol=key, upgrade=None)) is None


def test_the_lines_for_the_backend_hold_what_the_client_asked_for() -> None:
    extension = "permessage-deflate; client_max_window_bits"
    lines = read(
        sec_websocket_protocol="realtime",
        sec_websocket_extensions=extension,
        openai_beta="realtime=v1",
        cookie="a=b",
        origin="http://localhost",
    ).header_lines()
    assert lines == (
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: %b\r\nSec-WebSocket-Protocol: realtime\r\n"
        b"Sec-WebSocket-Extensions: %b\r\nOpenAI-Beta: realtime=v1\r\n" % (KEY, extension.encode())
    )


def test_a_beta_header_that_is_not_printable_stays_behind() -> None:
    for value in ("x" * 256, "caf\u00e9"):
        assert b"OpenAI-Beta" not in read(openai_beta=value).header_lines()


DEFLATE = b"permessage-deflate"
OFFER = Handshake(KEY, (b"realtime", b"v2"), DEFLATE + b"; client_max_window_bits")


def test_what_a_backend_has_chosen_crosses() -> None:
    reply = [
        (b"sec-websocket-accept", ACCEPT),
        (b"sec-websocket-protocol", b"v2"),
        (b"sec-websocket-extensions", b"permessage-deflate; server_no_context_takeover"),
    ]
    others = [(b"server", b"x"), (b"set-cookie", b"a=b"), (b"upgrade", b"websocket")]
    assert OFFER.accepted([*others, *reply]) == reply


@pytest.mark.parametrize(
    "reply",
    [
        [],
        [(b"sec-websocket-accept", b"x")],
        [(b"sec-websocket-accept", ACCEPT), (b"sec-websocket-accept", ACCEPT)],
        [(b"sec-websocket-accept", ACCEPT), (b"sec-websocket-protocol", b"other")],
        [(b"sec-websocket-accept", ACCEPT), (b"sec-websocket-protocol", b"Realtime")],
        [(b"sec-websocket-accept", ACCEPT), (b"sec-websocket-extensions", b"other")],
        [(b"sec-websocket-accept", ACCEPT), (b"sec-websocket-extensions", DEFLATE + b"; x=\xff")],
        [(b"sec-websocket-accept", ACCEPT), (b"sec-websocket-extensions", DEFLATE + b";" * 300)],
    ],
)
def test_a_reply_that_does_not_fit_the_offer_is_refused(reply: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(BadReply):
        OFFER.accepted(reply)
