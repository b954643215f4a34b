"""The routes and the client's connection, in memory and on a clock."""

from __future__ import annotations

import json
import re
import time

import pytest
from twisted.logger import capturedLogs

from gatewayd.exchange import End
from tests.memory import Answer, ClientTransport, FakeBackend, Gateway, chunk, completion, settings

JSON = {"Content-Type": "application/json"}
BODY = b'{"messages":[{"role":"user","content":"hi"}]}'


def echo_gateway(**values: str) -> Gateway:
    return Gateway(settings=settings(**values))


def raw(gateway: Gateway, data: bytes) -> ClientTransport:
    transport = gateway.connect()
    transport.protocol.dataReceived(data)
    return transport


# -- the echo ------------------------------------------------------------------------------------


def test_the_echo_answers_with_the_last_user_message() -> None:
    answer = Answer(echo_gateway().chat(model="any"))
    reply = answer.json
    usage = reply.pop("usage")
    assert reply.pop("created") == pytest.approx(time.time(), abs=60)
    assert reply == {
        "id": "req-1",
        "object": "chat.completion",
        "model": "any",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Echo: hi"},
                "finish_reason": "stop",
            }
        ],
    }
    assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"] > 0


@pytest.mark.parametrize("usage", [False, True])
def test_the_echo_streams_one_chunk_and_usage_if_asked(usage: bool) -> None:
    client = echo_gateway().chat(stream=True, stream_options={"include_usage": usage})
    *chunks, done = Answer(client).payloads
    assert done == b"[DONE]" and len(chunks) == 1 + usage
    first = json.loads(chunks[0])
    assert first["id"] == "req-1" and first["model"] == "echo"
    assert first["choices"][0]["delta"]["content"] == "Echo: hi"
    assert first["choices"][0]["finish_reason"] == "stop"
    assert not usage or json.loads(chunks[1])["choices"] == []


def test_the_echo_needs_a_user_message() -> None:
    answer = Answer(echo_gateway().chat(messages=[{"role": "system", "content": "x"}]))
    assert (answer.status, answer.json["error"]["param"]) == (400, "messages")


# -- routes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("root", ["", "/llm"])
def test_every_route_answers_under_root_path(root: str) -> None:
    gateway = echo_gateway(gateway_root_path=root)
    for path in ("/healthz", "/v1/models", "/v1/models/echo"):
        assert Answer(gateway.request("GET", root + path)).status == 200
    assert Answer(gateway.request("GET", "/healthz")).status == (404 if root else 200)
    chat = gateway.request("POST", root + "/v1/chat/completions", BODY, JSON)
    assert Answer(chat).status == 200


def test_health_says_ok() -> None:
    answer = Answer(echo_gateway().request("GET", "/healthz"))
    assert (answer.status, answer.json) == (200, {"status": "ok"})


def test_models_are_listed_and_retrieved() -> None:
    gateway = Gateway(FakeBackend())
    listed = Answer(gateway.request("GET", "/v1/models")).json
    assert listed == {"object": "list", "data": [{"id": "m", "object": "model"}]}
    assert Answer(gateway.request("GET", "/v1/models/m")).json["id"] == "m"
    missing = Answer(gateway.request("GET", "/v1/models/org%2Fother"))
    assert (missing.status, missing.code) == (404, "model_not_found")


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/v1", "/v1/chat/completions/", "//v1/models", "/v1%2fmodels", "/v1/../healthz"),
        *("/v1/models;x", "/%ff", "/v1/models%00", "/HEALTHZ"),
    ],
)
def test_a_path_is_matched_exactly_or_is_a_404(path: str) -> None:
    answer = Answer(echo_gateway().request("GET", path))
    assert (answer.status, answer.code) == (404, "unknown_url")


def test_a_method_that_a_route_does_not_take_is_a_405_with_allow() -> None:
    answer = Answer(echo_gateway().request("GET", "/v1/chat/completions"))
    assert (answer.status, answer.header("allow")) == (405, "POST")


def test_head_has_headers_and_no_body() -> None:
    transport = echo_gateway().request("HEAD", "/v1/models")
    head, _, body = transport.value().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200") and b"Content-Length" in head and not body


def test_the_log_counts_the_bytes_that_were_sent() -> None:
    gateway = echo_gateway()
    for method, path in (("GET", "/healthz"), ("HEAD", "/healthz"), ("HEAD", "/nothing")):
        body = gateway.request(method, path).value().partition(b"\r\n\r\n")[2]
        assert gateway.ended[-1].bytes_out == len(body)


@pytest.mark.parametrize("version", ["1.2", "1.9"])
def test_a_later_minor_version_is_read_as_1_1(version: str) -> None:
    data = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json \r\n"
    data += b"Content-Length: %d\t\r\n\r\n" % len(BODY) + BODY
    client = raw(echo_gateway(), data.replace(b"1.1", version.encode(), 1) * 2)
    assert client.value().count(b"HTTP/1.1 200 OK") == 2


@pytest.mark.parametrize(
    ("line", "status"),
    [
        *(("GET *", 400), ("POST gateway:80", 400), ("CONNECT gateway:80", 405)),
        *(("CONNECT /healthz", 405), ("OPTIONS *", 404)),
    ],
)
def test_a_target_that_the_method_cannot_have_ends_the_connection(line: str, status: int) -> None:
    gateway = echo_gateway()
    head = f"{line} HTTP/1.1\r\nHost: gateway\r\n\r\n".encode()
    client = raw(gateway, head + b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.value().startswith(b"HTTP/1.1 %d " % status)
    assert len(gateway.ended) == (2 if status == 404 else 1)


@pytest.mark.parametrize(
    "value", [None, "text/plain", "application/x-www-form-urlencoded", "\\xff;;=", "multipart/form"]
)
def test_only_json_is_taken(value: str | None) -> None:
    headers = {} if value is None else {"Content-Type": value}
    gateway = echo_gateway()
    assert Answer(gateway.request("POST", "/v1/chat/completions", BODY, headers)).status == 415
    gzip = {**JSON, "Content-Encoding": "gzip"}
    assert Answer(gateway.request("POST", "/v1/chat/completions", BODY, gzip)).status == 415


@pytest.mark.parametrize("coding", ["identity", "Identity , identity", "", "identity,"])
def test_a_coding_that_means_nothing_is_fine(coding: str) -> None:
    headers = {**JSON, "Content-Encoding": coding}
    answer = Answer(echo_gateway().request("POST", "/v1/chat/completions", BODY, headers))
    assert answer.status == 200


@pytest.mark.parametrize("coding", ["gzip", "identity, gzip", "identity;q=1", "x"])
def test_a_coding_is_refused_of_uploads_too(coding: str) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x", "Content-Encoding": coding}
    for path, kind in (("/v1/audio/transcriptions", headers), ("/v1/chat/completions", JSON)):
        answer = Answer(echo_gateway().request("POST", path, BODY, {**headers, **kind}))
        assert (answer.status, answer.code) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/models/", "/v1/models"),
        ("//v1//models", "/v1/models"),
        ("/v1/healthz", "/healthz"),
        ("/v1/completions/x", None),
        ("/", None),
        ("/v1" * 1000 + "/models", None),
    ],
)
@pytest.mark.parametrize("root", ["", "/llm"])
def test_a_path_that_is_nearly_right_is_answered_with_the_one_that_is_meant(
    path: str, meant: str | None, root: str
) -> None:
    gateway = Gateway(FakeBackend(), settings=settings(gateway_root_path=root))
    for asked in {path, root + path} - {root + (meant or "")}:
        answer = Answer(gateway.request("GET", asked))
        assert (answer.status, answer.code) == (404, "unknown_url")
        said = answer.json["error"]["message"].partition(" Did you mean ")[2]
        assert said == (f"{root}{meant}?" if meant else "")


@pytest.mark.parametrize(
    ("path", "logged"),
    [
        ("/api/generate?key=secret", "/api/generate"),
        ("/v1/sk-0123456789abcdef0123456789", "/v1/*"),
        ("/x%0a\"y/z", "/*/z"),
        ("/a" * 1000, "/a" * 100),
    ],
)
def test_the_path_of_a_404_is_logged_as_far_as_it_is_plain(path: str, logged: str) -> None:
    gateway = echo_gateway()
    assert Answer(gateway.request("GET", path)).status == 404
    assert gateway.ended[0].detail == logged


@pytest.mark.parametrize("value", ["application/json; charset=utf-8", "APPLICATION/JSON"])
def test_json_may_be_spelled_otherwise(value: str) -> None:
    headers = {"Content-Type": value}
    client = echo_gateway().request("POST", "/v1/chat/completions", BODY, headers)
    assert Answer(client).status == 200


def test_what_is_over_the_limit_in_flight_is_refused_at_once() -> None:
    backend = FakeBackend()
    gateway = Gateway(backend, settings=settings(limits_in_flight="1"))
    first = gateway.chat()
    second = Answer(gateway.chat())
    assert (second.status, second.code) == (503, "overloaded") and second.header("retry-after")
    assert Answer(gateway.request("GET", "/healthz")).status == 200
    backend.calls[0].whole(completion())
    assert Answer(first).status == 200
    gateway.chat()
    assert len(backend.calls) == 2


# -- promise 1 -----------------------------------------------------------------------------------


def test_promise_1_every_request_has_one_end() -> None:
    gateway = echo_gateway()
    gateway.chat()
    gateway.request("GET", "/nothing")
    gateway.request("GET", "/healthz")
    raw(gateway, b"not http\r\n\r\n")
    raw(gateway, b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab").leave()
    assert [(e.status, e.end) for e in gateway.ended] == [
        (200, End.COMPLETE),
        (404, End.REFUSED),
        (200, End.COMPLETE),
        (400, End.REFUSED),
        (499, End.CLIENT_GONE),
    ]
    assert not gateway.site.state.active


def test_a_fault_of_our_own_is_a_500_and_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = echo_gateway()
    monkeypatch.setattr(gateway.api, "router", None)  # what a bug might do
    with capturedLogs() as events:
        answer = Answer(gateway.chat())
    assert (answer.status, answer.code) == (500, "internal_error")
    assert gateway.ended[0].end is End.INTERNAL
    (event,) = events
    assert event["log_format"].format(**event) == "handling req-1 failed"
    assert event["log_failure"].check(AttributeError)


# -- promise 10 ----------------------------------------------------------------------------------


@pytest.mark.parametrize("header", ["X-Request-ID", "Request-Id"])
def test_promise_10_a_good_request_id_is_kept(header: str) -> None:
    answer = Answer(echo_gateway().request("GET", "/healthz", headers={header: "a:b/c=1@2~3"}))
    assert answer.header("x-request-id") == "a:b/c=1@2~3"


def test_promise_10_white_space_around_an_id_is_no_part_of_it() -> None:
    gateway = echo_gateway()
    gateway.request("GET", "/healthz", headers={"X-Request-ID": "  req-2 \t"})
    assert gateway.ended[0].id == "req-2"


@pytest.mark.parametrize("bad", ["a" * 129, "a b", '"', "<script>", "${jndi:", ""])
def test_promise_10_any_other_is_replaced_by_a_uuid(bad: str) -> None:
    gateway = echo_gateway()
    answer = Answer(gateway.request("GET", "/healthz", headers={"X-Request-ID": bad}))
    made = answer.header("x-request-id") or ""
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", made)
    assert gateway.ended[0].id == made


def test_promise_10_the_reply_the_backend_and_the_completion_carry_it() -> None:
    backend = FakeBackend()
    client = Gateway(backend).chat()
    backend.calls[0].whole(completion())
    assert backend.calls[0].request_id == "req-1"
    assert Answer(client).header("x-request-id") == Answer(client).json["id"] == "req-1"


# -- the connection ------------------------------------------------------------------------------


def test_requests_on_one_connection_are_answered_in_order() -> None:
    backend = FakeBackend()
    gateway = Gateway(backend)
    client = gateway.chat()
    gateway.request("GET", "/healthz", transport=client)
    assert client.value() == b""
    backend.calls[0].whole(completion())
    first, second = client.value().split(b"HTTP/1.1 200 OK")[1:]
    assert b"chat.completion" in first and b'"ok"' in second


def test_many_pipelined_requests_do_not_nest() -> None:
    gateway = echo_gateway()
    client = raw(gateway, b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n" * 1500)
    gateway.clock.pump([0] * 200)
    assert client.value().count(b"HTTP/1.1 200 OK") == 1500


@pytest.mark.parametrize("before", [0, 15, 16, 31])
def test_a_connection_that_closes_is_read_whatever_came_before(before: int) -> None:
    """And it waits for no further turn: what comes is only dropped."""
    gateway = echo_gateway()
    health = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
    client = raw(gateway, health * before + health[:-2] + b"Connection: close\r\n\r\n" + health)
    while not client.disconnecting:
        gateway.clock.advance(0)
    assert client.producerState == "producing"
    assert min(call.getTime() for call in gateway.clock.getDelayedCalls()) > 0
    assert len(gateway.ended) == before + 1


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_request_may_come_in_any_pieces(size: int) -> None:
    gateway = echo_gateway()
    data = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    chunked = b"".join(b"%x\r\n%b\r\n" % (1, BODY[i : i + 1]) for i in range(len(BODY)))
    data += b"Transfer-Encoding: chunked\r\n\r\n" + chunked + b"0\r\nHost: evil\r\n\r\n"
    client = gateway.connect()
    for i in range(0, len(data), size):
        client.protocol.dataReceived(data[i : i + size])
    assert Answer(client).status == 200


def test_a_request_to_switch_protocols_is_answered_in_this_one() -> None:
    gateway = echo_gateway()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    head += b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n"
    body = b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    client = raw(gateway, head + body + b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.value().count(b"HTTP/1.1 200 OK") == 2


def test_a_body_is_waited_for_only_when_it_was_let_in() -> None:
    gateway = echo_gateway(limits_request_body="1000")
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n"
    client = raw(gateway, head + b"Content-Length: 1001\r\n\r\n")
    assert Answer(client).status == 413 and Answer(client).closed
    client = raw(gateway, head + b"Content-Length: 10\r\n\r\n")
    assert client.value() == b"HTTP/1.1 100 Continue\r\n\r\n"


def test_a_chunked_body_is_refused_when_it_has_grown_too_large() -> None:
    gateway = echo_gateway(limits_request_body="1000")
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    client = raw(gateway, head + b"3e8\r\n" + b"x" * 1000 + b"\r\n")
    assert client.value() == b""
    client.protocol.dataReceived(b"1\r\nx")
    assert Answer(client).status == 413 and Answer(client).closed


def test_the_clocks_of_head_and_body_are_total_and_an_idle_connection_is_closed() -> None:
    gateway = echo_gateway(
        timeouts_request_head="2", timeouts_request_body="4", timeouts_client_idle="3"
    )
    slow_head, slow_body = gateway.connect(), gateway.connect()
    silent, idle = gateway.connect(), gateway.request("GET", "/healthz")
    slow_body.protocol.dataReceived(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n")
    for _ in range(19):
        slow_head.protocol.dataReceived(b"G")
        slow_body.protocol.dataReceived(b"x")
        gateway.clock.advance(0.1)
    assert not slow_head.value() and not silent.disconnecting
    gateway.clock.advance(0.2)
    assert Answer(slow_head).status == 408 and silent.disconnecting and not silent.value()
    gateway.clock.pump([0.1] * 20)
    assert Answer(slow_body).status == 408 and idle.disconnecting
    assert gateway.ended[-1].code == "request_timeout"


def test_after_the_last_answer_the_rest_is_dropped_and_the_connection_ends() -> None:
    gateway = echo_gateway()
    client = raw(gateway, b"GET /healthz HTTP/1.1\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
    client.protocol.dataReceived(b"more")
    assert Answer(client).status == 400 and len(gateway.ended) == 1
    assert client.connected
    gateway.clock.advance(2)
    assert not client.connected and not client.aborted


def test_one_connection_too_many_is_told_so() -> None:
    gateway = echo_gateway(limits_connections="2")
    first, second = gateway.connect(), gateway.connect()
    third = gateway.connect()
    assert Answer(third).code == "overloaded" and Answer(third).header("x-request-id")
    third.leave()
    assert Answer(gateway.request("GET", "/healthz", transport=second)).status == 200
    first.leave()
    assert Answer(gateway.request("GET", "/healthz")).status == 200


# -- draining ------------------------------------------------------------------------------------


def test_while_draining_new_requests_are_refused_and_health_says_why() -> None:
    backend = FakeBackend()
    gateway = Gateway(backend)
    client, other = gateway.chat(stream=True), gateway.connect()
    gateway.api.draining = gateway.site.state.draining = True
    refused = Answer(gateway.chat(transport=other))
    assert (refused.status, refused.code) == (503, "draining") and refused.closed
    health = Answer(gateway.request("GET", "/healthz"))
    assert (health.status, health.json) == (503, {"status": "draining"})
    backend.calls[0].head()
    backend.calls[0].send(b"data: " + chunk(finish="stop") + b"\n\ndata: [DONE]\n\n")
    answer = Answer(client)
    assert answer.complete and answer.closed and answer.header("connection") == "close"
