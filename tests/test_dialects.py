"""Anthropic's dialect at ``/v1/messages``: errors, headers and parameters; OpenAI's elsewhere."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatewayd.exchange import End
from gatewayd.wire import errors
from gatewayd.wire.dialects import ANTHROPIC, OPENAI, anthropic_type
from gatewayd.wire.endpoints import ENDPOINTS, dialect_of
from gatewayd.wire.errors import BackendFailed, GatewayError
from gatewayd.wire.json import parse
from tests.callers import ALICE, bearer, guarded
from tests.memory import Answer, FakeBackend, Gateway, error_code, settings
from tests.replies import CHAT, MESSAGES, RESPONSES, STREAMS, framed

INVALID = "invalid_request_error"
COUNT = "/v1/messages/count_tokens"
HEADERS = {"Content-Type": "application/json", "X-Request-ID": "req-1"}
VERSION = {"anthropic-version": "2023-06-01", "anthropic-beta": "a-1,b-2"}
BODY = b'{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"hi"}]}'

#: The overloaded error of Anthropic's own API, with a space that a new encoding would not have.
OVERLOADED = b'{"type": "error","error":{"type":"overloaded_error","message":"Overloaded"}}'
#: The error of llama.cpp for a prompt that is too long.
TOO_LONG = (
    b'{"error":{"code":400,"message":"request (9 tokens) exceeds the available context size",'
    b'"type":"exceed_context_size_error","n_prompt_tokens":9,"n_ctx":12345678901234567890}}'
)


def message(gateway: Gateway, path: str = MESSAGES, **headers: str) -> Answer:
    return Answer(gateway.request("POST", path, BODY, HEADERS | headers))


def assert_is_anthropic(answer: Answer, status: int, kind: str, code: str) -> None:
    assert (answer.status, answer.code) == (status, code)
    envelope = answer.json
    assert set(envelope) == {"type", "error", "request_id"} and envelope["type"] == "error"
    assert envelope["error"]["type"] == kind and envelope["error"]["message"]
    assert envelope["request_id"] == answer.header("x-request-id") == answer.header("request-id")


# -- paths -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "anthropic"),
    [
        (MESSAGES, True),
        (COUNT, True),
        ("/v1/messages/", True),
        ("/v1/messages/batches/msgbatch_1/results", True),
        ("/messages", True),
        ("/v1/v1/messages", True),
        ("/v1/messages2", False),
        ("/v1/chat/completions", False),
        ("/v1/responses/x", False),
        ("/v1", False),
        ("", False),
    ],
)
def test_a_path_has_the_dialect_of_the_endpoint_at_or_above_it(path: str, anthropic: bool) -> None:
    assert dialect_of(path) is (ANTHROPIC if anthropic else OPENAI)


def test_every_endpoint_has_the_dialect_of_its_path() -> None:
    assert all(dialect_of(row.path) is row.dialect for row in ENDPOINTS)


# -- errors of the gateway -------------------------------------------------------------------------


@pytest.mark.parametrize("path", [MESSAGES, COUNT])
@pytest.mark.parametrize(
    ("method", "headers", "body", "status", "kind", "code"),
    [
        ("POST", {}, b"{", 400, INVALID, "invalid_json"),
        ("POST", {}, b'{"model":5}', 400, INVALID, "invalid_value"),
        ("POST", {"Content-Type": "x/y"}, BODY, 415, INVALID, "unsupported_media_type"),
        ("GET", {}, b"", 405, INVALID, "method_not_allowed"),
        ("BREW", {}, b"", 405, INVALID, "method_not_allowed"),
        ("POST", {"Expect": "cake"}, BODY, 417, INVALID, "bad_http"),
        ("POST", {"Origin": "http://x.y"}, BODY, 403, "permission_error", "origin_not_allowed"),
        ("POST", {"Transfer-Encoding": "gzip"}, b"", 400, INVALID, "bad_http"),
        ("POST", {"X": "y" * 20000}, BODY, 431, INVALID, "request_too_large"),
    ],
)
def test_a_refusal_is_in_the_envelope_of_its_path(
    gateway: Gateway,
    path: str,
    method: str,
    headers: dict[str, str],
    body: bytes,
    status: int,
    kind: str,
    code: str,
) -> None:
    answer = Answer(gateway.request(method, path, body, HEADERS | headers))
    assert answer.status == status and answer.code == code
    if answer.header("x-request-id") == "req-1":
        assert_is_anthropic(answer, status, kind, code)
    else:  # llhttp refused the head, so the id was not read
        assert answer.json["type"] == "error" and answer.json["error"]["type"] == kind
    assert gateway.end is End.REFUSED


def test_a_body_that_is_too_large_or_too_slow_is_refused_in_the_envelope_of_its_path(
    backend: FakeBackend,
) -> None:
    gateway = Gateway(backend, settings=settings(limits_request_body="70"))
    assert_is_anthropic(message(gateway), 413, "request_too_large", "request_too_large")
    slow = gateway.request("POST", MESSAGES, headers=HEADERS | {"Content-Length": "9"})
    gateway.clock.advance(60)
    assert_is_anthropic(Answer(slow), 408, "invalid_request_error", "request_timeout")


def test_an_unknown_path_below_messages_is_not_found() -> None:
    answer = Answer(Gateway().request("POST", "/v1/messages/batches", BODY, HEADERS))
    assert_is_anthropic(answer, 404, "not_found_error", "unknown_url")


def test_a_model_that_nobody_serves_is_not_found(backend: FakeBackend) -> None:
    served = settings(backend_fake_url="http://127.0.0.1:1", backend_fake_models="other")
    answer = message(Gateway(backend, settings=served))
    assert_is_anthropic(answer, 404, "not_found_error", "model_not_found")
    assert answer.json["error"]["details"]["param"] == "model"


def test_the_echo_has_no_messages() -> None:
    assert_is_anthropic(message(Gateway()), 404, "not_found_error", "unknown_url")


def test_keys_are_checked_in_both_headers_that_anthropics_clients_send() -> None:
    gateway, backend = guarded(token_alice_models="m", token_bob_models="other")
    assert_is_anthropic(message(gateway), 401, "authentication_error", "missing_api_key")
    bad = message(gateway, **{"x-api-key": "sk-ant-wrong"})
    assert_is_anthropic(bad, 401, "authentication_error", "invalid_api_key")
    assert bad.header("www-authenticate") == "Bearer"
    bob = message(gateway, **bearer("gw-bob"))
    assert_is_anthropic(bob, 403, "permission_error", "model_not_allowed")
    message(gateway, **{"x-api-key": ALICE})
    message(gateway, **bearer(ALICE))
    assert len(backend.calls) == 2


def test_limits_and_a_stop_have_their_types() -> None:
    gateway, _ = guarded(token_alice_requests_per_minute="1")
    message(gateway, **bearer(ALICE))
    limited = message(gateway, **bearer(ALICE))
    assert_is_anthropic(limited, 429, "rate_limit_error", "rate_limit_exceeded")
    assert limited.header("retry-after")
    gateway.api.draining = True
    stopping = message(gateway, **bearer(ALICE))
    assert_is_anthropic(stopping, 503, "overloaded_error", "draining")
    assert stopping.header("retry-after") == "1"


def test_a_path_under_the_root_path_has_its_dialect() -> None:
    gateway = Gateway(settings=settings(gateway_root_path="/llm"))
    answer = Answer(gateway.request("POST", "/llm/v1/messages/x", BODY, HEADERS))
    assert_is_anthropic(answer, 404, "not_found_error", "unknown_url")
    assert_is_anthropic(message(gateway), 404, "not_found_error", "unknown_url")  # a wrong base URL


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (errors.Unreachable("No."), 502, "api_error", "upstream_unreachable"),
        (errors.ConnectTimeout("No."), 504, "timeout_error", "upstream_timeout"),
        (errors.Exhausted("No."), 503, "overloaded_error", "overloaded"),
        (ValueError("a bug"), 500, "api_error", "internal_error"),
    ],
)
def test_a_backend_that_cannot_be_asked_is_an_error_of_that_type(
    gateway: Gateway, backend: FakeBackend, error: Exception, status: int, kind: str, code: str
) -> None:
    backend.failing = [error]
    assert_is_anthropic(message(gateway), status, kind, code)


def test_an_error_that_may_have_run_says_that_it_must_not_be_retried(
    gateway: Gateway, backend: FakeBackend
) -> None:
    client = gateway.request("POST", MESSAGES, BODY, HEADERS)
    gateway.clock.advance(600)
    answer = Answer(client)
    assert_is_anthropic(answer, 504, "timeout_error", "upstream_timeout")
    assert answer.header("x-should-retry") == "false"


@pytest.mark.parametrize("path", [CHAT, RESPONSES, "/v1/embeddings", "/v1/nothing"])
def test_other_paths_keep_openais_envelope(path: str) -> None:
    answer = Answer(Gateway().request("POST", path, b"{", HEADERS))
    assert set(answer.json) == {"error"} and answer.header("request-id") is None
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}


# -- errors of backends ----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 404, 429, 500, 529])
def test_an_error_in_anthropics_envelope_crosses_byte_for_byte(
    gateway: Gateway, backend: FakeBackend, status: int
) -> None:
    client = gateway.request("POST", MESSAGES, BODY, HEADERS)
    backend.calls[0].whole(OVERLOADED, status)
    assert (Answer(client).status, Answer(client).body) == (status, OVERLOADED)
    assert Answer(client).header("request-id") == "req-1"


def test_an_error_in_openais_envelope_is_put_into_anthropics_with_all_its_members(
    gateway: Gateway, backend: FakeBackend
) -> None:
    client = gateway.request("POST", MESSAGES, BODY, HEADERS)
    backend.calls[0].whole(TOO_LONG, 400)
    answer = Answer(client)
    assert_is_anthropic(answer, 400, "invalid_request_error", "400")
    error = answer.json["error"]
    assert error["message"] == "request (9 tokens) exceeds the available context size"
    assert error["details"] == {
        "error_code": "400",
        "code": 400,
        "type": "exceed_context_size_error",
        "n_prompt_tokens": 9,
        "n_ctx": 12345678901234567890,
    }
    assert gateway.ended[0].code == "400"


@pytest.mark.parametrize(
    ("body", "text"),
    [(b'{"detail":"Not Found"}', ": Not Found"), (b"<html>at /srv/app.py</html>", "."), (b"", ".")],
)
def test_an_error_in_another_form_becomes_the_gateways_own(
    gateway: Gateway, backend: FakeBackend, body: bytes, text: str
) -> None:
    client = gateway.request("POST", COUNT, BODY, HEADERS)
    backend.calls[0].whole(body, 404)
    assert_is_anthropic(Answer(client), 404, "not_found_error", "upstream_error")
    wanted = f"The backend answered with status 404{text}"
    assert Answer(client).json["error"]["message"] == wanted


def test_the_keys_of_the_gateway_are_no_fault_of_the_client(
    gateway: Gateway, backend: FakeBackend
) -> None:
    client = gateway.request("POST", MESSAGES, BODY, HEADERS)
    backend.calls[0].whole(OVERLOADED, 401)
    assert_is_anthropic(Answer(client), 502, "api_error", "upstream_auth")


# -- streams ---------------------------------------------------------------------------------------


def started(gateway: Gateway, backend: FakeBackend, events: int) -> Any:
    """A stream of messages of which some events have come."""
    client = gateway.post(MESSAGES, model="m", stream=True)
    backend.calls[0].head()
    if events:
        backend.calls[0].send(framed(STREAMS[MESSAGES][:events]))
    return client


def last_event(answer: Answer) -> dict[str, Any]:
    assert answer.body.split(b"\n\n")[-2].startswith(b"event: error\ndata: ")
    assert answer.closed and not answer.complete
    found: dict[str, Any] = json.loads(answer.payloads[-1])
    assert found["type"] == "error"
    return found


def test_a_stream_that_breaks_off_ends_with_an_error_event(
    gateway: Gateway, backend: FakeBackend
) -> None:
    client = started(gateway, backend, 3)
    backend.calls[0].end()
    answer = Answer(client)
    event = last_event(answer)
    assert event["error"]["type"] == "api_error" and event["request_id"] == "req-1"
    assert error_code(answer.payloads[-1]) == "upstream_reset"
    assert answer.header("request-id") == answer.header("x-request-id") == "req-1"
    assert gateway.end is End.BACKEND_TRUNCATED


def test_a_stream_that_falls_silent_ends_with_a_timeout_error(
    gateway: Gateway, backend: FakeBackend
) -> None:
    client = started(gateway, backend, 3)
    gateway.clock.pump([1] * 121)
    assert last_event(Answer(client))["error"]["type"] == "timeout_error"


def test_an_error_event_has_a_name_also_if_no_backend_was_asked_yet(gateway: Gateway) -> None:
    client = gateway.connect()
    gateway.request("POST", MESSAGES, BODY, HEADERS, client)
    request = client.protocol._request
    assert request is not None
    request.begin_stream()
    request.write(b": ping\n\n")
    request.cut(errors.UpstreamTimeout("Too late."), b"")
    assert last_event(Answer(client))["error"]["message"] == "Too late."


def test_a_failure_after_a_ping_is_an_error_event(backend: FakeBackend) -> None:
    gateway = Gateway(backend, settings=settings(timeouts_ping="1"))
    client = gateway.post(MESSAGES, model="m", stream=True)
    gateway.clock.advance(1)
    backend.calls[0].whole(TOO_LONG, 400)
    event = last_event(Answer(client))
    assert event["error"]["type"] == "invalid_request_error"
    assert event["error"]["details"]["type"] == "exceed_context_size_error"


def test_an_error_event_in_anthropics_envelope_crosses_byte_for_byte(
    gateway: Gateway, backend: FakeBackend
) -> None:
    client = started(gateway, backend, 3)
    backend.calls[0].send(b"event: error\ndata: " + OVERLOADED + b"\n\n")
    answer = Answer(client)
    assert answer.payloads[-1] == OVERLOADED and last_event(answer)
    assert gateway.end is End.BACKEND_ERROR


@pytest.mark.parametrize(
    "payload",
    [
        b'{"code":500,"message":"slot failed","type":"server_error"}',  # llama.cpp
        b'{"error":{"code":500,"message":"slot failed","type":"server_error"}}',
        b'{"error":"slot failed"}',
        b'{"message":"slot failed"}',
    ],
)
@pytest.mark.parametrize("events", [0, 3])
def test_an_error_event_in_another_form_is_put_into_anthropics_envelope(
    gateway: Gateway, backend: FakeBackend, payload: bytes, events: int
) -> None:
    client = started(gateway, backend, events)
    backend.calls[0].send(b"event: error\ndata: " + payload + b"\n\n")
    answer = Answer(client)
    if events:
        error = last_event(answer)["error"]
    else:
        assert answer.status == 502 and answer.complete
        error = answer.json["error"]
    assert error["type"] == "api_error" and error["message"].endswith("slot failed")
    assert gateway.end is End.BACKEND_ERROR


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("invalid_request_error", 400),
        ("not_found_error", 404),
        ("request_too_large", 413),
        ("rate_limit_error", 429),
        ("overloaded_error", 529),
        ("timeout_error", 504),
        ("api_error", 502),
        ("authentication_error", 502),  # the gateway's own key, not the client's
        ("permission_error", 502),
        ("some_new_error", 502),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_the_type_of_an_error_under_a_200_says_its_status(
    gateway: Gateway, backend: FakeBackend, kind: str, status: int, stream: bool
) -> None:
    payload = OVERLOADED.replace(b"overloaded_error", kind.encode())
    client = gateway.post(MESSAGES, model="m", stream=stream)
    if stream:
        backend.calls[0].head()
        backend.calls[0].send(b"event: error\ndata: " + payload + b"\n\n")
    else:
        backend.calls[0].whole(payload)
    assert (Answer(client).status, Answer(client).body) == (status, payload)
    assert gateway.ended[0].code == kind


@pytest.mark.parametrize("kind", ["5", "null", "[]", '"x\\n"', '"%s"' % ("x" * 65)])
def test_an_error_of_an_odd_type_is_a_502(
    gateway: Gateway, backend: FakeBackend, kind: str
) -> None:
    client = gateway.post(MESSAGES, model="m")
    payload = b'{"type":"error","error":{"message":"No.","type":%b}}' % kind.encode()
    backend.calls[0].whole(payload)
    assert (Answer(client).status, Answer(client).body) == (502, payload)
    assert gateway.ended[0].code == ("5" if kind == "5" else "upstream_error")


def test_nothing_follows_message_stop(gateway: Gateway, backend: FakeBackend) -> None:
    client = started(gateway, backend, 5)
    answer = Answer(client)
    assert answer.complete and answer.body == framed(STREAMS[MESSAGES])
    assert backend.calls[0].left == "released"


# -- what crosses ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [MESSAGES, COUNT])
def test_the_version_the_betas_and_the_beta_parameter_cross(
    gateway: Gateway, backend: FakeBackend, path: str
) -> None:
    message(gateway, path + "?beta=true", **VERSION, **{"x-api-key": "secret", "x-app": "cli"})
    (call,) = backend.calls
    assert call.call.headers == (
        (b"anthropic-version", b"2023-06-01"),
        (b"anthropic-beta", b"a-1,b-2"),
    )
    assert call.call.query == "?beta=true" and call.body == BODY


def test_they_cross_with_an_alias_too(gateway: Gateway, backend: FakeBackend) -> None:
    body = BODY.replace(b'"m"', b'"nick"')
    gateway.request("POST", MESSAGES + "?beta=true", body, HEADERS | VERSION)
    (call,) = backend.calls
    assert call.call.model == "real" and call.call.query == "?beta=true" and call.call.headers


def test_other_endpoints_pass_none_of_them(gateway: Gateway, backend: FakeBackend) -> None:
    message(gateway, CHAT + "?beta=true", **VERSION)
    message(gateway, RESPONSES + "?beta=true", **VERSION)
    assert [(call.call.headers, call.call.query) for call in backend.calls] == [((), "")] * 2


@pytest.mark.parametrize(
    ("query", "crosses"),
    [
        (b"", ""),
        (b"beta=true", "?beta=true"),
        (b"key=secret&beta=true&x", "?beta=true"),
        (b"beta=true&beta=false", "?beta=true&beta=false"),
        (b"Beta=true", ""),
        (b"beta", ""),
        (b"beta=" + b"x" * 65, ""),
        (b"beta=a%20b", ""),
        (b"beta=true#x", ""),
        (b"beta=a?b", ""),
    ],
)
def test_parameters_cross_by_name_and_only_in_plain_characters(query: bytes, crosses: str) -> None:
    assert ANTHROPIC.crossing_query(MESSAGES.encode() + b"?" + query) == crosses
    assert OPENAI.crossing_query(MESSAGES.encode() + b"?" + query) == ""


@given(st.binary())
def test_whatever_the_target_is_what_crosses_is_a_plain_query(target: bytes) -> None:
    crosses = ANTHROPIC.crossing_query(target)
    assert not crosses or crosses.startswith("?beta=")
    assert crosses.isascii() and not set(crosses) & set(" \r\n#")


def test_headers_cross_in_their_order_and_only_in_printable_characters() -> None:
    fields = {b"anthropic-beta": [b"a", b"b\xff", b"", b"x" * 1025, b"c"], b"x-api-key": [b"k"]}
    crosses = ((b"anthropic-beta", b"a"), (b"anthropic-beta", b"c"))
    assert ANTHROPIC.crossing_headers(fields) == crosses
    assert OPENAI.crossing_headers(fields) == ()


@pytest.mark.parametrize("name", ["request-id", "Request-ID", "REQUEST-ID"])
def test_a_reply_has_one_request_id_also_if_that_is_the_name_of_the_gateways_own(name: str) -> None:
    backend = FakeBackend()
    gateway = Gateway(backend, settings=settings(gateway_request_id_header=name))
    client = gateway.request("POST", MESSAGES, BODY, HEADERS | {name: "mine"})
    backend.calls[0].whole(b"{}")
    assert Answer(client).header("request-id") == "mine"
    assert Answer(gateway.request("GET", MESSAGES)).header("request-id")


def test_a_reply_carries_the_id_in_both_headers(gateway: Gateway, backend: FakeBackend) -> None:
    client = gateway.request("POST", COUNT, BODY, HEADERS)
    backend.calls[0].whole(b'{"input_tokens": 21}')
    answer = Answer(client)
    assert (answer.status, answer.body) == (200, b'{"input_tokens": 21}')
    assert answer.header("request-id") == answer.header("x-request-id") == "req-1"


# -- the envelope ----------------------------------------------------------------------------------


def test_every_status_has_a_type_of_anthropics() -> None:
    assert anthropic_type(400) == anthropic_type(422) == "invalid_request_error"
    assert anthropic_type(500) == anthropic_type(502) == anthropic_type(501) == "api_error"


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.lists(v), max_leaves=4
)


@given(error=st.dictionaries(st.text(), _VALUES), message=st.text(), more=st.text())
def test_every_envelope_of_a_backend_becomes_one_of_anthropics(
    error: dict[str, Any], message: str, more: str
) -> None:
    error["message"] = message
    payload = json.dumps({"error": error, "x": more}, ensure_ascii=False).encode()
    found = parse(ANTHROPIC.envelope(BackendFailed("x", payload, 418), "id"), 64)
    assert found["type"] == "error" and found["error"]["message"] == message
    wanted = {"error_code": found["error"]["details"]["error_code"]} | error
    del wanted["message"]
    assert found["error"]["details"] == wanted


@given(st.text(), st.none() | st.text())
def test_an_error_of_the_gateway_keeps_its_message(message: str, param: str | None) -> None:
    error = GatewayError(message, param=param)
    found = parse(ANTHROPIC.envelope(error, "id"), 64)
    assert found["error"] == {
        "type": "api_error",
        "message": message,
        "details": {"error_code": "internal_error"} | ({} if param is None else {"param": param}),
    }
    assert OPENAI.envelope(error, "id") == error.body()


def test_requests_with_the_same_head_have_ids_of_their_own(
    gateway: Gateway, backend: FakeBackend
) -> None:
    client, seen = gateway.connect(), []
    for _ in range(4):
        client.clear()
        gateway.request("POST", MESSAGES, BODY, {"Content-Type": "application/json"}, client)
        backend.calls[-1].whole(b"{}")
        answer = Answer(client)
        assert answer.header("request-id") == answer.header("x-request-id")
        seen.append(answer.header("request-id"))
    assert len(set(seen)) == 4
