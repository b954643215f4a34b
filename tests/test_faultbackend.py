"""The fault-injecting backend does what it says, and its records tell the truth."""

from __future__ import annotations

import datetime
import http.client
import ipaddress
import itertools
import json
import re
import socket
import ssl
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests import faultbackend_faults
from tests.faultbackend import FaultBackend, Record, blackhole
from tests.faultbackend_faults import FAULTS

EXAMPLES = """
    slow-first-byte:0.01 head-immediately:0.02:0.01 flaky:1:503 stale-next:rst status:500:html
    redirect:302 json-body:deep ct:text/html enc:br gzip-bomb:3MB huge:200KB huge-header:64KB
    many-headers:500 end-after:2 pause:1:0.01 conn-close-spelling:Close,X drip:50:0.0001
    tokens:3 usage:finish done-linger:0.01 done-early:2 error-event:2 error-then-done:1 not-json:1
    huge-event:20KB pings:1:0 empty-chunks:1:0
"""
EXAMPLE = {example.partition(":")[0]: example for example in EXAMPLES.split()}


@pytest.fixture(scope="module")
def shared() -> Iterator[FaultBackend]:
    with FaultBackend() as backend:
        yield backend


@pytest.fixture
def backend(shared: FaultBackend) -> FaultBackend:
    shared.reset()
    return shared


def request(backend: FaultBackend, fault: str = "", *, head: str = "", **fields: Any) -> bytes:
    """A request for a chat whose prompt names `fault`."""
    prompt = f"fault:{fault}" if fault else "hello"
    chat = {"model": "m", "messages": [{"role": "user", "content": prompt}], **fields}
    body = json.dumps(chat).encode()
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{backend.port}\r\n{head}"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def connect(backend: FaultBackend) -> socket.socket:
    return socket.create_connection(("127.0.0.1", backend.port), timeout=2)


def send(backend: FaultBackend, fault: str = "", **fields: Any) -> socket.socket:
    client = connect(backend)
    client.sendall(request(backend, fault, **fields))
    return client


def read_all(client: socket.socket, last: bytes = b"") -> bytes:
    """What comes until the end of the connection, until `last`, or (without) until silence."""
    client.settimeout(2 if last else 0.15)
    got = b""
    with client, suppress(TimeoutError, ConnectionResetError):
        while not (last and got.endswith(last)) and (part := client.recv(65536)):
            got += part
    return got


def ask(backend: FaultBackend, fault: str = "", **fields: Any) -> tuple[Any, bytes, Record]:
    """The reply as http.client reads it, its body, and the record."""
    with send(backend, fault, **fields) as client:
        response = http.client.HTTPResponse(client, method="POST")
        response.begin()
        return response, response.read(), backend.records[-1]


def payloads(body: bytes) -> list[bytes]:
    """The data of each event, as the specification of event streams has it."""
    events: list[bytes] = []
    data: list[bytes] = []
    for line in re.split(rb"\r\n|\n|\r", body.removeprefix(b"\xef\xbb\xbf")):
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif not line and data:
            events.append(b"\n".join(data))
            data = []
    return events


# Good replies and records.


def test_a_good_completion(backend: FaultBackend) -> None:
    response, body, record = ask(backend, head="X-Request-ID: one\r\n")
    assert response.status == 200
    assert body == record.want_json
    assert json.loads(body)["id"] == record.sim_id
    assert json.loads(record.want_json_as('a"b'))["id"] == 'a"b'
    backend.wait_for(lambda: record.done)
    assert backend.records_for("one") == [record]
    assert (record.violations, record.peer_left, record.killed) == ([], None, False)
    assert record.body == request(backend).partition(b"\r\n\r\n")[2]
    assert (backend.connections_total, record.complete, record.stream) == (1, True, False)


def test_a_good_stream(backend: FaultBackend) -> None:
    _, body, record = ask(backend, stream=True, stream_options={"include_usage": True})
    assert payloads(body) == [*record.want, b"[DONE]"]
    backend.wait_for(lambda: record.done)
    assert record.sent == len(record.want) == len(record.sent_times) == 8
    chunks = [json.loads(payload) for payload in record.want]
    assert {chunk["id"] for chunk in chunks} == {record.sim_id}
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["total_tokens"] == 12
    assert {json.loads(payload)["id"] for payload in record.want_as("new")} == {"new"}


STYLES = """
    crlf cr no-space bom fields comments multi-data coalesce split-event bytes utf8+split-utf8
    drip:500:0.0001 eof-body tools surrogate-event usage:always+tokens:5 two-choices
    crlf+bom+comments+fields+multi-data+drip:99:0.0001 head-immediately:0.01:0.005 pause:1:0.01
    1xx huge-event:900KB done-linger:0.01 fault-free
"""


@pytest.mark.parametrize("fault", STYLES.split())
def test_a_style_carries_the_same_payloads(backend: FaultBackend, fault: str) -> None:
    response, body, record = ask(backend, fault.replace("fault-free", ""), stream=True)
    assert response.status == 200 and record.violations == []
    assert payloads(body) == [*record.want, b"[DONE]"]
    assert len(record.want) >= 5
    for payload in record.want:
        json.loads(payload)


def test_styles_look_as_they_should(backend: FaultBackend) -> None:
    assert ask(backend, "bom+cr", stream=True)[1].startswith(b"\xef\xbb\xbfdata: {")
    assert b"\n" not in ask(backend, "cr", stream=True)[1]
    assert b"}\r\n\r\ndata:{" in ask(backend, "crlf+no-space", stream=True)[1]
    assert ask(backend, "finish-empty", stream=True)[1].count(b'"finish_reason":""') == 6
    assert b"DONE" not in ask(backend, "no-done+surrogate-event", stream=True)[1]
    open_choice = ask(backend, "two-choices:open", stream=True)[1]
    assert open_choice.count(b'"finish_reason":"stop"') == 1
    raw = read_all(send(backend, "split-utf8", stream=True))
    assert b"\r\n1\r\n\xbc\r\n" not in raw and b"\xc3\r\n" in raw


def test_tokens_carry_the_time_of_sending(backend: FaultBackend) -> None:
    _, _, record = ask(backend, "tokens:4:0.01", stream=True)
    times = [json.loads(payload)["sim_t"] for payload in record.want]
    gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
    assert all(gap >= 0.009 for gap in gaps[:4])
    assert record.sent_times == pytest.approx(times, abs=0.05)


# Every fault.


def test_the_documentation_names_the_faults_there_are() -> None:
    document = faultbackend_faults.__doc__ or ""
    table = document.partition("\n\nBefore")[2]
    missing = [name for name in FAULTS if not re.search(rf"(^|[\s,]){name}([\s,:\[]|$)", table)]
    assert missing == []


@pytest.mark.parametrize("stream", [False, True])
def test_every_fault_runs(backend: FaultBackend, stream: bool) -> None:
    clients = [send(backend, EXAMPLE.get(name, name), stream=stream) for name in FAULTS]
    backend.wait_for(lambda: sum(record.complete for record in backend.records) == len(FAULTS))
    time.sleep(0.1)
    for client in clients:
        client.close()
    backend.wait_for(lambda: backend.connections_open == 0)
    assert [record.fault for record in backend.records if record.violations] == []
    assert backend.errors == []


def test_an_unknown_fault_is_a_violation(backend: FaultBackend) -> None:
    for fault in ("nosuch", "crlf+nosuch", "pause:1", "huge:5XB"):
        response, _, record = ask(backend, fault)
        assert response.status == 400
        assert "no such fault" in record.violations[0]


# Heads and statuses.


def test_replies_that_are_no_reply(backend: FaultBackend) -> None:
    assert read_all(send(backend, "http09")) == b"<html>hello</html>\n"
    assert read_all(send(backend, "garbage"), b"\x80\r\n").startswith(b"\x16\x03")
    assert read_all(send(backend, "close-after-request")) == b""
    assert read_all(send(backend, "close-mid-headers")).endswith(b"\r\nContent-Len")
    assert read_all(send(backend, "switch"), b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
    interim = read_all(send(backend, "1xx:103:5", head="Connection: close\r\n"))
    assert interim.count(b"HTTP/1.1 103 Early Hints\r\n") == 5 and b"HTTP/1.1 200" in interim
    with send(backend, "reset-after-request") as client, pytest.raises(ConnectionResetError):
        client.recv(1)


def test_endless_heads_are_endless(backend: FaultBackend) -> None:
    for fault, size in (("endless-headers", 300_000), ("1xx-flood:0.0001", 2000)):
        with send(backend, fault) as client:
            got = 0
            while got < size:
                got += len(client.recv(65536))
    head = read_all(
        send(backend, "huge-header:64KB+many-headers:500", head="Connection: close\r\n")
    )
    assert head.count(b"X-Many-") == 500 and b"h" * 65536 in head


def test_statuses(backend: FaultBackend) -> None:
    response, body, _ = ask(backend, "status:404", stream=True)
    assert response.status == 404 and json.loads(body)["error"]["code"] == "sim_404"
    response, body, _ = ask(backend, "status:500:html")
    assert response.headers["Content-Type"] == "text/html" and b"internal-host.corp" in body
    assert len(ask(backend, "status:503:huge")[1]) > 16_000_000
    assert ask(backend, "status:503:empty")[1] == b""
    response, _, _ = ask(backend, "429-retry-after")
    assert (response.status, response.headers["Retry-After"]) == (429, "7")
    response, _, _ = ask(backend, "401-upstream", head="Authorization: Bearer abcdWXYZ\r\n")
    assert response.status == 401 and "Bearer" in response.headers["WWW-Authenticate"]
    response, _, _ = ask(backend, "redirect:307")
    assert response.headers["Location"] == "/__sim/redirected" and backend.redirect_hits == 0
    response, _, _ = ask(backend, "redirect:302:http://169.254.169.254/a+b")
    assert response.headers["Location"] == "http://169.254.169.254/a+b"


def test_wrong_json(backend: FaultBackend) -> None:
    kinds = "text null truncated empty shape noct nan bad-utf8 deep error200"
    bodies = {kind: ask(backend, f"json-body:{kind}", stream=True) for kind in kinds.split()}
    assert all(response.status == 200 for response, _, _ in bodies.values())
    assert bodies["noct"][0].headers["Content-Type"] is None
    for kind in ("text", "truncated", "empty", "bad-utf8"):
        with pytest.raises(ValueError):
            json.loads(bodies[kind][1])
    assert b":NaN" in bodies["nan"][1] and bodies["deep"][1].count(b"[") > 100_000
    assert ask(backend, "json-for-sse", stream=True)[0].headers["Content-Type"].endswith("json")
    assert ask(backend, "sse-for-json")[1].endswith(b"data: [DONE]\n\n")
    assert ask(backend, "ct:text/html; x=1")[0].headers["Content-Type"] == "text/html; x=1"


def test_compressed_replies(backend: FaultBackend) -> None:
    _, body, record = ask(backend, "gzip")
    assert zlib.decompress(body, wbits=31) == record.want_json
    _, body, record = ask(backend, "gzip", stream=True)
    assert payloads(zlib.decompress(body, wbits=31)) == [*record.want, b"[DONE]"]
    for how in ("garbage", "crc", "truncated"):
        with pytest.raises(zlib.error):
            zlib.decompress(ask(backend, f"gzip-bad:{how}")[1], wbits=31)
    _, body, _ = ask(backend, "gzip-bomb:20MB")
    assert len(body) < 100_000
    content = json.loads(zlib.decompress(body, wbits=31))["choices"][0]["message"]["content"]
    assert len(content) == 20 << 20


# Bodies that end badly.


def test_a_stream_is_cut_after_two_events(backend: FaultBackend) -> None:
    faults = "end-after:2 close-mid-body reset-mid-body:2 bad-chunk stall-after chunked-truncated"
    for fault in faults.split():
        raw = read_all(send(backend, fault, stream=True, head="Connection: close\r\n"))
        record = backend.records[-1]
        assert len(record.want) == record.sent == 2, fault
        assert all(payload + b"\n\n" in raw for payload in record.want), fault
        assert b"DONE" not in raw, fault
        assert raw.endswith(b"0\r\n\r\n") == (fault == "end-after:2"), fault
    assert backend.records[0].done and not backend.records[1].done
    raw = read_all(send(backend, "eof-body+end-after:3", stream=True))
    assert b"Transfer-Encoding" not in raw and raw.count(b"data: ") == 3


def test_a_completion_is_cut(backend: FaultBackend) -> None:
    for fault in ("close-mid-body", "reset-mid-body", "stall-mid-body"):
        raw = read_all(send(backend, fault))
        want = backend.records[-1].want_json or b""
        assert f"Content-Length: {len(want)}\r\n".encode() in raw
        assert raw.endswith(want[: len(want) // 2]) and not raw.endswith(want)
    assert read_all(send(backend, "bad-chunk"), b"{}\r\n").endswith(b"zz; no size\r\n{}\r\n")
    huge = {"huge-trailer": b"\r\n0\r\nX-Huge: ", "huge-extension": b"\r\n1;huge="}
    for fault, start in huge.items():
        got = read_all(send(backend, fault), b"h" * 100_000)
        assert got.rstrip(b"h").endswith(start)
    raw = read_all(send(backend, "chunked-truncated"))
    assert raw.endswith((backend.records[-1].want_json or b"") + b"\r\n")


def test_a_reset_is_a_reset(backend: FaultBackend) -> None:
    with send(backend, "reset-mid-body:1", stream=True) as client:
        with pytest.raises(ConnectionResetError):
            while client.recv(65536):
                pass
        assert backend.records[-1].sent == 1


def test_error_events_and_early_done(backend: FaultBackend) -> None:
    got = payloads(ask(backend, "error-event:2", stream=True)[1])
    assert len(got) == 3 and "error" in json.loads(got[2])
    got = payloads(ask(backend, "error-then-done:1", stream=True)[1])
    assert b'{"error"' in got[1] and got[2:] == [b"[DONE]"]
    assert payloads(ask(backend, "done-early:2", stream=True)[1])[2:] == [b"[DONE]"]
    got = payloads(ask(backend, "not-json:1", stream=True)[1])
    assert got[1] == b"this is {not JSON" and got[-1] == b"[DONE]"
    _, body, record = ask(backend, "after-done", stream=True)
    assert payloads(body)[: len(record.want) + 1] == [*record.want, b"[DONE]"]
    assert b"too late" in payloads(body)[-3]
    assert ask(backend, "empty-stream", stream=True)[1] == b""
    body = read_all(send(backend, "no-newline:300KB", stream=True))
    assert body.count(b"data: ") == 3 and body.count(b"n" * 16384) == 18


def test_a_huge_reply_is_exactly_what_was_wanted(backend: FaultBackend) -> None:
    _, body, record = ask(backend, "huge:20MB", stream=True)
    assert payloads(body)[:-1] == record.want and len(body) > 20_000_000
    _, body, record = ask(backend, "huge:20MB")
    assert body == record.want_json and len(body) > 20_000_000


# The peer leaves.


@pytest.mark.parametrize("linger", [False, True])
@pytest.mark.parametrize(
    "fault", ["hang", "stall-after:2", "stall-mid-body", "tokens:1000:0.05", "slow-first-byte:9"]
)
def test_the_moment_the_peer_leaves_is_known(
    backend: FaultBackend, fault: str, linger: bool
) -> None:
    client = send(backend, fault, stream=True)
    record = backend.wait_for(lambda: next((r for r in backend.records if r.complete), None))
    time.sleep(0.02)
    if linger:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    left = time.monotonic()
    client.close()
    assert 0 <= backend.wait_for(lambda: record.peer_left) - left < 0.25
    assert not record.done


def test_a_peer_that_does_not_read_pauses_the_reply_and_is_seen_to_leave() -> None:
    with FaultBackend(so_sndbuf=16384) as backend:
        for stream in (True, False):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
            client.connect(("127.0.0.1", backend.port))
            client.sendall(request(backend, "endless", stream=stream))
            time.sleep(0.15)
            record = backend.records[-1]
            sent = record.sent_bytes
            time.sleep(0.05)
            assert 10_000 < sent == record.sent_bytes < 500_000
            assert record.want == []
            left = time.monotonic()
            client.close()
            assert backend.wait_for(partial(getattr, record, "peer_left")) - left < 0.25


def test_a_half_close_is_leaving(backend: FaultBackend) -> None:
    with send(backend, "hang") as client:
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    assert backend.records[-1].peer_left


def test_three_hundred_streams_are_left_at_once(backend: FaultBackend) -> None:
    clients = [send(backend, "tokens:1000:0.05", stream=True) for _ in range(300)]
    backend.wait_for(lambda: sum(record.sent > 0 for record in backend.records) == 300)
    for client in clients:
        client.close()
    backend.wait_for(lambda: all(record.peer_left for record in backend.records), 1)


# What a gateway must not send.


def test_violations(backend: FaultBackend) -> None:
    head = (
        "Connection: X-Secret\r\nTE: trailers\r\nUpgrade: h2c\r\nKeep-Alive: 5\r\nTrailer: x\r\n"
        "Proxy-Authorization: x\r\nCookie: a=b\r\nAccept-Encoding: gzip\r\nX-Forwarded-For: 1\r\n"
        "Host: evil\r\n"
    )
    _, _, record = ask(backend, head=head)
    assert len(record.violations) == 10
    assert record.header("cookie") == ["a=b"] and b"Cookie: a=b" in record.head


def test_only_the_right_key_is_right() -> None:
    with FaultBackend(api_key="sk-right") as backend:
        assert ask(backend, head="Authorization: Bearer sk-right\r\n")[2].violations == []
        assert len(ask(backend, head="Authorization: Bearer sk-other\r\n")[2].violations) == 1
        backend.api_key = ""
        assert ask(backend)[2].violations == []
        assert len(ask(backend, head="Authorization: Bearer sk-right\r\n")[2].violations) == 1


@pytest.mark.parametrize(
    "data",
    [
        b"GET /health HTTP/1.1\nHost: x\n\n",
        b"GET  /health HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost : x\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
        b"POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\nx",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;a\r\nx\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxx\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n",
    ],
)
def test_broken_http_is_a_violation(backend: FaultBackend, data: bytes) -> None:
    with connect(backend) as client:
        client.sendall(data)
        assert read_all(client).startswith(b"HTTP/1.1 400 ")
    assert any("broken HTTP" in text for text in backend.records[-1].violations)


def test_a_chunked_request_body(backend: FaultBackend) -> None:
    whole = request(backend)
    head, _, body = whole.partition(b"\r\n\r\n")
    head = re.sub(rb"Content-Length: \d+", b"Transfer-Encoding: chunked", head)
    with connect(backend) as client:
        client.sendall(head + b"\r\n\r\n5\r\n" + body[:5] + b"\r\n")
        client.sendall(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body) - 5, body[5:]))
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
    record = backend.records[-1]
    assert record.body == body and record.violations == []


# Connections.


def test_a_stale_connection_dies_at_the_next_request(backend: FaultBackend) -> None:
    for how in ("rst", "fin"):
        client = http.client.HTTPConnection("127.0.0.1", backend.port, timeout=2)
        for fault in (f"stale-next:{how}", ""):
            client.request(
                "POST", "/v1/chat/completions", request(backend, fault).split(b"\r\n")[-1]
            )
            if fault:
                client.getresponse().read()
        expected = ConnectionResetError if how == "rst" else http.client.RemoteDisconnected
        with pytest.raises(expected):
            client.getresponse()
        client.close()
        assert [record.killed for record in backend.records[-2:]] == [False, True]


def test_flaky_requests_get_well(backend: FaultBackend) -> None:
    for name in ("a", "b"):
        head = f"X-Request-ID: {name}\r\n"
        statuses = [ask(backend, "flaky:2:503", head=head)[0].status for _ in range(3)]
        assert statuses == [503, 503, 200]
    assert [ask(backend, "flaky:1:500:prompt")[0].status for _ in range(3)] == [500, 200, 200]
    assert read_all(send(backend, "flaky:1:hang")) == b""


def test_surplus_bytes_follow_the_reply(backend: FaultBackend) -> None:
    for fault in ("surplus", "surplus:0.02"):
        for stream in (False, True):
            got = read_all(send(backend, fault, stream=stream), b'{"stolen": "reply"}')
            assert got.count(b"HTTP/1.1 200 OK") == 2


def test_an_announced_close_is_meant(backend: FaultBackend) -> None:
    with send(backend, "conn-close-spelling:Close, X") as client:
        backend.wait_for(lambda: backend.records[-1].done if backend.records else False)
        assert b"\r\nConnection: Close, X\r\n" in client.recv(65536)
        client.sendall(request(backend))
        backend.wait_for(lambda: len(backend.records) == 2 and backend.records[-1].killed)
    assert "announced as closed" in backend.records[-1].violations[0]


def test_habits_of_keep_alive() -> None:
    with FaultBackend(keep_alive_seconds=0.05, advertise_keep_alive=True) as backend:
        client = send(backend)
        started = time.monotonic()
        assert b"\r\nKeep-Alive: timeout=0.05, max=100\r\n" in read_all(client)
        assert 0.03 < time.monotonic() - started < 1
    with FaultBackend(close_after_reply=True) as backend:
        assert b"Connection: close" not in read_all(send(backend))
    with FaultBackend(max_requests=2) as backend:
        client = send(backend)
        backend.wait_for(lambda: backend.records and backend.records[0].done)
        client.sendall(request(backend))
        assert read_all(client).count(b"Connection: close") == 1
        assert [record.connection for record in backend.records] == [1, 1]


def test_habits_of_accepting() -> None:
    with FaultBackend(on_accept="reset") as backend:
        with pytest.raises(ConnectionResetError), connect(backend) as client:
            client.recv(1)
        expected = {
            "close": b"",
            "mute": b"",
            "ssh-banner": b"SSH-2.0-",
            "tls-garbage": b"\x15\x03",
            "plain-http": b"HTTP/1.1 400 ",
        }
        for mode, start in expected.items():
            backend.on_accept = mode
            client = connect(backend)
            if mode != "close":
                client.sendall(b"x")
            got = read_all(client)
            assert got[: len(start)] == start and bool(got) == bool(start), mode
        assert backend.records == []
        assert backend.connections_total == 6
        backend.wait_for(lambda: backend.connections[2].peer_left)
        backend.wait_for(lambda: backend.connections_open == 0)
        backend.on_accept = "early"
        with connect(backend) as client:
            assert client.recv(999).startswith(b"HTTP/1.1 429 ")


def test_a_black_hole_answers_no_syn() -> None:
    with blackhole() as port, pytest.raises(TimeoutError):
        socket.create_connection(("127.0.0.1", port), timeout=0.1)


def test_the_port_is_kept_over_a_restart() -> None:
    backend = FaultBackend().start()
    client = send(backend, "hang")
    backend.wait_for(lambda: backend.records)
    backend.stop()
    assert read_all(client) == b""
    with pytest.raises(ConnectionRefusedError):
        connect(backend)
    with backend:
        assert ask(backend)[0].status == 200


def test_other_routes(backend: FaultBackend) -> None:
    client = http.client.HTTPConnection("127.0.0.1", backend.port, timeout=2)

    def get(path: str, method: str = "GET") -> tuple[int, bytes]:
        client.request(method, path, headers={"Accept-Encoding": "identity"})
        response = client.getresponse()
        return response.status, response.read()

    assert json.loads(get("/v1/models")[1])["data"][0]["id"] == "sim-model"
    assert get("/health") == (200, b'{"status":"ok"}')
    assert get("/health", "HEAD") == (200, b"")
    backend.health = "loading"
    assert get("/health")[0] == 503
    backend.health = "ok"
    assert get("/nowhere")[0] == 404
    assert get("/__sim/redirected")[0] == 200 and backend.redirect_hits == 1
    client.close()
    with pytest.raises(AssertionError, match="not within"):
        backend.wait_for(lambda: len(backend.records) == 99, timeout=0.01)


# TLS.


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "sim")])
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder: Path = tmp_path_factory.mktemp("tls")
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "cert.pem").write_bytes(made.public_bytes(pem))
    (folder / "key.pem").write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))
    return str(folder / "cert.pem"), str(folder / "key.pem")


def secure(backend: FaultBackend, certificate: tuple[str, str]) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=certificate[0])
    return context.wrap_socket(connect(backend), server_hostname="127.0.0.1")


def test_tls(certificate: tuple[str, str]) -> None:
    with FaultBackend(tls=certificate) as backend:
        assert backend.url.startswith("https://127.0.0.1:")
        with secure(backend, certificate) as client:
            client.sendall(request(backend, "huge:1MB", head="Connection: close\r\n"))
            got = b""
            while part := client.recv(65536):
                got += part
        want = backend.records[-1].want_json
        assert want and got.endswith(want) and backend.connections[0].secure
        with secure(backend, certificate) as client:
            client.sendall(request(backend, "hang"))
            backend.wait_for(lambda: len(backend.records) == 2)
            client.unwrap()
        assert backend.wait_for(lambda: backend.records[-1].peer_left)
        backend.on_accept = "tls-stall"
        with connect(backend) as plain:
            plain.settimeout(0.05)
            with pytest.raises(TimeoutError):
                ssl.create_default_context().wrap_socket(plain, server_hostname="127.0.0.1")
        assert backend.connections[-1].bytes_in > 0 and len(backend.records) == 2


def test_a_close_notify_can_stay_without_answer(certificate: tuple[str, str]) -> None:
    with FaultBackend(tls=certificate, answer_close_notify=False) as backend:
        client = secure(backend, certificate)
        client.sendall(request(backend, "hang"))
        record = backend.wait_for(lambda: next(iter(backend.records), None))
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.unwrap()
        assert record.peer_left is None
        client.close()
        backend.wait_for(lambda: record.peer_left)
