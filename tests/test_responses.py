"""Stored responses: which backend is asked, what crosses, and how replies end; in memory."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatewayd.exchange import End
from gatewayd.wire.errors import BackendFailed, Drained, InvalidValue
from gatewayd.wire.responses import StoredCall
from tests.callers import ALICE, BOB, HASHES, bearer
from tests.memory import Answer, Asked, ClientTransport, FakeBackend, Gateway, backends, settings
from tests.replies import RESPONSES, STREAMS, endpoint, framed, typed

ONE = f"{RESPONSES}/{{id}}"


def document(id: str = "resp_1", **more: Any) -> bytes:
    return json.dumps({"id": id, "object": "response", "model": "real", **more}).encode()


def made_by(gateway: Gateway, backend: FakeBackend, id: str = "resp_1", **headers: str) -> None:
    """Have a backend make a response."""
    before = [len(each.backend.calls) for each in gateway.targets]  # type: ignore[attr-defined]
    head = {"Content-Type": "application/json", **headers}
    gateway.request("POST", RESPONSES, b'{"input":"hi","model":"m"}', head)
    (asked,) = [
        each.backend.calls[-1]  # type: ignore[attr-defined]
        for each, count in zip(gateway.targets, before, strict=True)
        if len(each.backend.calls) > count  # type: ignore[attr-defined]
    ]
    assert asked is backend.calls[-1]
    asked.whole(document(id))


def only_asked(*several: FakeBackend) -> Asked:
    (call,) = [call for backend in several for call in backend.calls]
    for backend in several:
        backend.calls.clear()
    return call


# -- one backend -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "reply"),
    [
        ("GET", "/v1/responses/resp_1", document()),
        ("DELETE", "/v1/responses/resp_1", b'{"id":"resp_1","object":"response","deleted":true}'),
        ("POST", "/v1/responses/resp_1/cancel", document(status="cancelled")),
        ("GET", "/v1/responses/resp_1/input_items", b'{"object":"list","data":[]}'),
    ],
)
def test_a_request_for_a_stored_response_crosses(
    gateway: Gateway, backend: FakeBackend, method: str, path: str, reply: bytes
) -> None:
    client = gateway.request(method, path, headers={"X-Request-ID": "req-1"})
    (asked,) = backend.calls
    assert (asked.call.method, asked.call.path, asked.body) == (method, path, b"")
    assert asked.call.content_type == b"" and not asked.call.stream
    asked.whole(reply)
    assert (Answer(client).status, Answer(client).body) == (200, reply)
    (exchange,) = gateway.ended
    assert exchange.end is End.COMPLETE and exchange.model is None
    assert exchange.route == path.replace("resp_1", "{id}")


@pytest.mark.parametrize("status", [400, 404, 500])
def test_the_backends_own_error_crosses(
    gateway: Gateway, backend: FakeBackend, status: int
) -> None:
    client = gateway.request("GET", "/v1/responses/resp_1")
    backend.calls[0].whole(b'{"error" : {"message":"no"}}', status)
    assert (Answer(client).status, Answer(client).body) == (status, b'{"error" : {"message":"no"}}')


@pytest.mark.parametrize("query", ["?stream=true", "?starting_after=2&stream=True", "?stream=1"])
def test_a_stored_response_may_be_streamed(
    gateway: Gateway, backend: FakeBackend, query: str
) -> None:
    client = gateway.request("GET", f"/v1/responses/resp_1{query}")
    (asked,) = backend.calls
    assert asked.call.stream and asked.call.query == query
    asked.head()
    asked.send(framed(STREAMS[RESPONSES]))
    assert Answer(client).body == framed(STREAMS[RESPONSES]) and Answer(client).complete
    assert gateway.ended[0].stream and gateway.end is End.COMPLETE


def test_a_stored_response_whose_stream_is_cut_is_an_error(
    gateway: Gateway, backend: FakeBackend
) -> None:
    client = gateway.request("GET", "/v1/responses/resp_1?stream=true")
    backend.calls[0].head()
    backend.calls[0].send(framed(STREAMS[RESPONSES][:2]))
    backend.calls[0].end()
    assert b'"error"' in Answer(client).payloads[-1] and not Answer(client).complete
    assert gateway.end is End.BACKEND_TRUNCATED


@pytest.mark.parametrize(
    ("query", "crosses"),
    [
        ("include%5B%5D=a.b&include[]=c&limit=5", "?include%5B%5D=a.b&include[]=c&limit=5"),
        ("order=asc&after=msg_1&before=x", "?order=asc&after=msg_1&before=x"),
        ("api_key=secret&limit=5&x=y", "?limit=5"),
        ("limit=%0d%0a", "?limit=%0d%0a"),
        ("limit=5;order=asc&after=a\\b", ""),
        ("limit", ""),
        ("stream=false", "?stream=false"),
        ("", ""),
    ],
)
def test_only_known_parameters_cross(
    gateway: Gateway, backend: FakeBackend, query: str, crosses: str
) -> None:
    gateway.request("GET", f"/v1/responses/resp_1/input_items?{query}")
    assert backend.calls[0].call.query == crosses and not backend.calls[0].call.stream


@pytest.mark.parametrize(
    "query", ["stream=true&stream=false", "stream=maybe", "%73tream=true&stream=true"]
)
def test_a_flag_that_servers_read_differently_is_refused(
    gateway: Gateway, backend: FakeBackend, query: str
) -> None:
    answer = Answer(gateway.request("GET", f"/v1/responses/resp_1?{query}"))
    assert (answer.status, answer.json["error"]["param"]) == (400, "stream")
    assert not backend.calls


@pytest.mark.parametrize("id", ["..", ".", "%2e%2e", "a%2fb", "a;b", "a:b", "x" * 257, "a%00"])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_an_id_that_could_be_another_path_is_refused(
    gateway: Gateway, backend: FakeBackend, method: str, id: str
) -> None:
    answer = Answer(gateway.request(method, f"/v1/responses/{id}"))
    assert (answer.status, answer.code) == (400, "invalid_value") and not backend.calls
    assert gateway.ended[0].route == ONE


@pytest.mark.parametrize("path", ["/v1/responses/a/b", "/v1/responses/a/../b", "/v1/responses//a"])
def test_other_paths_below_responses_are_unknown(gateway: Gateway, path: str) -> None:
    assert Answer(gateway.request("GET", path)).code == "unknown_url"


@given(id=st.text(st.characters(max_codepoint=126), max_size=8), query=st.binary(max_size=40))
def test_whatever_crosses_is_plain(id: str, query: bytes) -> None:
    row = endpoint(ONE, "GET")
    call = StoredCall.parse(row, b"", b"", 64)
    try:
        call = call.located({"id": id}, b"/?" + query)
    except InvalidValue:
        return
    assert call.path == f"/v1/responses/{id}" and id not in (".", "..")
    assert set(call.path + call.query).isdisjoint(" \r\n\t#;\\") and call.path.count("/") == 3
    assert "?" not in call.path + call.query[1:]


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_get_and_delete_have_no_body(gateway: Gateway, backend: FakeBackend, method: str) -> None:
    answer = Answer(gateway.request(method, "/v1/responses/resp_1", b"{}"))
    assert (answer.status, answer.code) == (400, "invalid_value") and not backend.calls


def test_a_cancellation_may_have_a_body(gateway: Gateway, backend: FakeBackend) -> None:
    headers = {"Content-Type": "application/json"}
    gateway.request("POST", "/v1/responses/resp_1/cancel", b"{ }", headers)
    assert backend.calls[0].body == b"{ }"
    assert backend.calls[0].call.content_type == b"application/json"
    answer = Answer(gateway.request("POST", "/v1/responses/resp_1/cancel", b"x", headers))
    assert answer.code == "invalid_json"


def test_a_method_that_a_stored_response_does_not_take_is_a_405(gateway: Gateway) -> None:
    answer = Answer(gateway.request("POST", "/v1/responses/resp_1"))
    assert (answer.status, answer.header("allow")) == (405, "DELETE, GET, HEAD")


def test_a_client_that_leaves_cancels_the_request(gateway: Gateway, backend: FakeBackend) -> None:
    client = gateway.request("GET", "/v1/responses/resp_1")
    client.leave()
    assert backend.calls[0].left == "cancelled" and gateway.end is End.CLIENT_GONE


# -- several backends ------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("method", "below"), [("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")]
)
def test_the_backend_that_made_a_response_is_asked_for_it(
    streamed: bool, method: str, below: str
) -> None:
    a, b = backends("a", "b")
    gateway = Gateway(a, b)
    made_by(gateway, a, "resp_a")
    if streamed:
        gateway.post(RESPONSES, input="hi", model="m", stream=True)
        b.calls[-1].head()
        b.calls[-1].send(framed([typed("response.created", response={"id": "resp_b"})]))
    else:
        made_by(gateway, b, "resp_b")
    a.calls.clear()
    b.calls.clear()
    for id, maker in [("resp_b", b), ("resp_a", a), ("resp_b", b)]:
        gateway.request(method, f"/v1/responses/{id}{below}")
        asked = only_asked(a, b)
        assert asked.call.path == f"/v1/responses/{id}{below}" and not maker.calls
        assert gateway.site.state.active
        asked.whole(document(id))
        assert gateway.ended[-1].backends == [maker.name]


def test_a_response_goes_to_the_backend_of_the_previous_one() -> None:
    a, b = backends("a", "b")
    gateway = Gateway(a, b)
    made_by(gateway, a, "resp_a")
    for _ in range(4):
        gateway.post(RESPONSES, input="hi", model="m", previous_response_id="resp_a")
    assert len(a.calls) == 5 and not b.calls  # although b has fewer requests in flight
    gateway.post(RESPONSES, input="hi", model="m", previous_response_id="resp_unknown")
    assert len(b.calls) == 1


def test_the_backend_of_the_previous_response_is_not_asked_while_it_rests() -> None:
    a, b = backends("a", "b")
    gateway = Gateway(a, b)
    made_by(gateway, a, "resp_a")
    gateway.targets[0].settle(
        gateway.targets[0].begin(),
        BackendFailed("Busy.", status=429, headers=((b"retry-after", b"7"),)),
    )
    gateway.post(RESPONSES, input="hi", model="m", previous_response_id="resp_a")
    assert len(a.calls) == 1 and len(b.calls) == 1
    gateway.clock.advance(7)
    gateway.post(RESPONSES, input="hi", model="m", previous_response_id="resp_a")
    assert len(a.calls) == 2 and len(b.calls) == 1


@pytest.mark.parametrize("value", [5, None, "", ["x"]])
def test_an_odd_previous_response_is_left_to_the_backend(value: Any) -> None:
    a, b = backends("a", "b")
    gateway = Gateway(a, b)
    gateway.post(RESPONSES, input="hi", previous_response_id=value, model="m")
    assert only_asked(a, b).call.response_id is None


def search(
    gateway: Gateway, method: str = "DELETE", below: str = "", **headers: str
) -> ClientTransport:
    return gateway.request(method, f"/v1/responses/resp_x{below}", headers=headers)


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_for_an_unknown_response_backends_are_asked_in_turn_and_only_with_get(method: str) -> None:
    a, b, c = backends("a", "b", "c")
    gateway = Gateway(a, b, c)
    client = search(gateway, method)
    (asked,) = a.calls
    assert (asked.call.method, asked.call.path) == ("GET", "/v1/responses/resp_x")
    asked.whole(b'{"error":{"message":"no such response"}}', 404)
    b.calls[0].whole(document("resp_x"))
    assert [call.call.method for call in b.calls] == ["GET", method] and not c.calls
    assert b.calls[0].left == "released"
    b.calls[1].whole(b'{"deleted":true}')
    assert Answer(client).status == 200 and gateway.ended[0].backends == ["b"]
    search(gateway, method)  # it is known now
    assert len(a.calls) == 1 and len(b.calls) == 3


def test_a_response_that_no_backend_has_is_a_404() -> None:
    a, b = backends("a", "b")
    gateway = Gateway(a, b)
    client = search(gateway)
    a.calls[0].whole(b"", 404)
    b.calls[0].whole(b"", 405)
    assert (Answer(client).status, Answer(client).code) == (404, "response_not_found")
    assert gateway.end is End.REFUSED and not gateway.targets[0].in_flight


def test_a_backend_that_could_not_say_makes_it_a_503() -> None:
    a, b = backends("a", "b")
    gateway = Gateway(a, b)
    client = search(gateway)
    gateway.clock.advance(5)
    assert a.calls[0].left == "cancelled"
    b.calls[0].whole(b"", 404)
    assert (Answer(client).status, Answer(client).code) == (503, "overloaded")
    assert gateway.ended[0].detail == "a"
    client = search(gateway)
    a.calls[1].whole(b"", 500)
    b.calls[1].whole(b"", 404)
    assert (Answer(client).status, Answer(client).code) == (503, "overloaded")


def test_a_client_that_leaves_ends_the_search() -> None:
    a, b = backends("a", "b")
    gateway = Gateway(a, b)
    search(gateway).leave()
    assert a.calls[0].left == "cancelled" and not b.calls and gateway.end is End.CLIENT_GONE


def test_a_shutdown_ends_the_search_with_an_error() -> None:
    a, b = backends("a", "b")
    gateway = Gateway(a, b)
    client = search(gateway)
    (exchange,) = gateway.site.state.active
    assert exchange.stop is not None
    exchange.stop(Drained("The gateway was shut down."))
    assert (Answer(client).status, Answer(client).code) == (503, "draining")
    assert a.calls[0].left == "cancelled" and not b.calls and gateway.end is End.DRAINED
    assert exchange.stop is None and not gateway.site.state.active
    client.leave()
    assert gateway.clock.getDelayedCalls() == []


# -- tokens ----------------------------------------------------------------------------------------


def test_a_token_that_is_limited_to_models_has_the_responses_that_it_made() -> None:
    a, b = backends("a", "b")
    limits = {"token_alice_models": "m", "token_bob_models": "m"}
    gateway = Gateway(a, b, settings=settings(**HASHES, **limits))
    alice, bob = bearer(ALICE), bearer(BOB)
    made_by(gateway, a, "resp_1", **alice)
    for headers, id, allowed in [
        (alice, "resp_1", True),
        (bob, "resp_1", False),
        (alice, "resp_2", False),
    ]:
        a.calls.clear()
        client = gateway.request("GET", f"/v1/responses/{id}", headers=headers)
        if allowed:
            only_asked(a, b).whole(document(id))
            assert Answer(client).status == 200
        else:
            assert Answer(client).code == "model_not_allowed" and not a.calls and not b.calls


@pytest.mark.parametrize("count", [1, 2])
def test_such_a_token_cannot_build_on_a_response_that_another_one_has_made(count: int) -> None:
    several = backends("a", "b")[:count]
    limits = {"token_alice_models": "m", "token_bob_models": "m"}
    gateway = Gateway(*several, settings=settings(**HASHES, **limits))
    alice, bob = bearer(ALICE), bearer(BOB)
    made_by(gateway, several[0], "resp_1", **alice)

    def build_on(id: str, headers: dict[str, str]) -> ClientTransport:
        body = json.dumps({"model": "m", "input": "hi", "previous_response_id": id}).encode()
        headers = {"Content-Type": "application/json", **headers}
        return gateway.request("POST", RESPONSES, body, headers)

    assert Answer(build_on("resp_1", bob)).code == "model_not_allowed"
    assert len(several[0].calls) == 1
    build_on("resp_1", alice)
    build_on("resp_2", bob)  # another process may know that it is bob's
    assert sum(len(backend.calls) for backend in several) == 3


def test_a_token_without_limits_has_all_responses() -> None:
    a, b = backends("a", "b")
    gateway = Gateway(a, b, settings=settings(**HASHES))
    made_by(gateway, a, "resp_1", **bearer(ALICE))
    a.calls.clear()
    client = gateway.request("GET", "/v1/responses/resp_1", headers=bearer(BOB))
    only_asked(a, b).whole(document())
    assert Answer(client).status == 200


@pytest.mark.parametrize("id", [None, 5, "", "a b", "../x", "x" * 300])
def test_an_odd_id_in_a_reply_is_not_remembered(id: Any) -> None:
    a, b = backends("a", "b")
    gateway = Gateway(a, b)
    client = gateway.post(RESPONSES, input="hi", model="m")
    a.calls[0].whole(json.dumps({"id": id, "object": "response"}).encode())
    assert Answer(client).status == 200
    assert id not in gateway.targets[0].made
