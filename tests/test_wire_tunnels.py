"""The query of a request for a WebSocket: the model, and what crosses."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl, quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatewayd.wire.endpoints import TUNNELS
from gatewayd.wire.errors import InvalidValue
from gatewayd.wire.tunnels import TunnelCall, TunnelEndpoint

PROTOCOL = (Path(__file__).parent.parent / "docs" / "protocol.rst").read_text()
REALTIME = TunnelEndpoint("/v1/realtime", "/v1/realtime")


def test_every_endpoint_for_websockets_is_documented() -> None:
    for endpoint in TUNNELS:
        assert f"``GET {endpoint.path}``" in PROTOCOL


def parse(query: bytes) -> TunnelCall:
    return TunnelCall.parse(REALTIME, query)


@pytest.mark.parametrize(
    ("query", "model", "target"),
    [
        (b"", None, "/v1/realtime"),
        (b"model=", None, "/v1/realtime"),
        (b"model=gpt-realtime", "gpt-realtime", "/v1/realtime?model=gpt-realtime"),
        (b"mod%65l=a%2Fb+c", "a/b c", "/v1/realtime?model=a%2Fb+c"),
        (
            b"intent=transcription&model=m&call_id=rtc_1",
            "m",
            "/v1/realtime?model=m&intent=transcription&call_id=rtc_1",
        ),
        (b"api-key=secret&deployment=x&model=m&Model=y", "m", "/v1/realtime?model=m"),
        (b"model=a&;model=b", "a", "/v1/realtime?model=a"),
    ],
)
def test_the_backend_gets_the_parameters_that_were_read(
    query: bytes, model: str | None, target: str
) -> None:
    call = parse(query)
    assert (call.model, call.target) == (model, target)


@pytest.mark.parametrize(
    "query",
    [
        b"model=a&model=b",
        b"model=a&mode%6c=a",
        b"model=%ff",
        b"model=" + b"x" * 257,
        b"model=a%0ab",
        b"model=..%2Fx",
        b"a=b&" * 200,
    ],
)
def test_a_query_that_could_be_read_differently_is_refused(query: bytes) -> None:
    with pytest.raises(InvalidValue):
        parse(query)


def test_an_alias_is_replaced_and_the_rest_stays() -> None:
    call = parse(b"model=alias&intent=x%26y").renamed("real/name")
    assert call.target == "/v1/realtime?model=real%2Fname&intent=x%26y"


@given(st.text(min_size=1, max_size=40))
def test_a_server_reads_the_model_that_the_gateway_has_read(model: str) -> None:
    try:
        call = parse(b"model=" + quote(model, errors="replace").encode())
    except InvalidValue:
        return
    query = call.target.partition("?")[2]
    assert dict(parse_qsl(query)).get("model") == call.model
