"""Paths that settings allow: of backends, relayed unread, and of tokens; in memory."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.web.http import PotentialDataLoss

from gatewayd.api.app import warnings
from gatewayd.exchange import End
from gatewayd.routing.health import State
from gatewayd.wire import errors
from gatewayd.wire.paths import Declared, entry_for, is_plain
from tests.callers import ALICE, BOB, HASHES, bearer
from tests.memory import (
    BODY,
    EVENTS,
    JSON,
    Answer,
    FakeBackend,
    Gateway,
    backend_settings,
    backends,
    completion,
    fails,
    settings,
)

# -- what an entry allows --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "entries", "found"),
    [
        ("/props", ["/props"], "/props"),
        ("/props/", ["/props"], None),
        ("/propsx", ["/props"], None),
        ("/slots/0", ["/slots", "/slots/*"], "/slots/*"),
        ("/slots", ["/slots/*"], None),
        ("/slots", ["/slots*"], "/slots*"),
        ("/slots/a%20b", ["/slots/*"], "/slots/*"),
        ("/slots/conv::m@1", ["/slots/*"], "/slots/*"),
        ("/", ["/"], "/"),
        ("/x/y", ["/*"], "/*"),
    ],
)
def test_an_entry_allows_one_path_or_all_that_begin_so(
    path: str, entries: list[str], found: str | None
) -> None:
    assert entry_for(path, entries) == found


@pytest.mark.parametrize(
    "rest",
    [
        *("..", "../props", "./x", "a/../../props", "a/..", "a/.", "//props", "a//b"),
        *("%2e%2e/props", "%2E%2E/props", ".%2e/x", "a%2fb", "a%2Fb", "a%5cb", "a\\b", "a;b"),
        *("a%3bb", "a%3fb", "a%23b", "a%252e", "a%00", "a%0d%0aX", "%c0%ae%c0%ae", "%e0%80%ae"),
        *("%", "%2", "%zz", "a\x7f", "\u00e9", "%ff"),
        *("%61", "%5A", "%30", "a%2db", "a%5Fb", "a%7eb"),
    ],
)
def test_no_spelling_leads_to_a_path_that_is_not_allowed(rest: str) -> None:
    assert entry_for("/slots/" + rest, ["/slots/*", "/*"]) is None


@given(rest=st.text(st.sampled_from("ab./%2eE5cCfF;\\?#&0"), max_size=12))
@example(rest="%2e%2E/x")
def test_a_plain_path_stays_below_its_entry_however_often_it_is_decoded(rest: str) -> None:
    path = "/slots/" + rest
    if not is_plain(path):
        return
    decoded = unquote(unquote(path))
    assert decoded.startswith("/slots/") and not re.search(r"//|;|\\|\?|#|/\.{1,2}(/|$)", decoded)


def test_the_longest_entry_names_a_path_and_all_backends_that_declare_it_are_found() -> None:
    declared = Declared({"a": ["/*", "/slots/*"], "b": ["/slots/0"], "c": []})
    assert declared.find("/slots/0") in [("/slots/*", ["a", "b"]), ("/slots/0", ["a", "b"])]
    assert declared.find("/slots/1") == ("/slots/*", ["a"])
    assert declared.find("/x") == ("/*", ["a"]) and declared.find("x") is None
    assert declared and not Declared({"c": []})


# -- requests --------------------------------------------------------------------------------------


def gateway_with(*several: FakeBackend, paths: str = "/props, /slots/*", **more: str) -> Gateway:
    own = backend_settings(**{f"{backend.name}_paths": paths for backend in several})
    return Gateway(*several, settings=settings(**own, **more))


@pytest.fixture
def gateway(backend: FakeBackend) -> Gateway:
    return gateway_with(backend)


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend("a")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("query", ["", "?", "?action=save&x=%2e%2e/&y=a;b"])
def test_a_request_for_a_declared_path_crosses_as_it_came(
    gateway: Gateway, backend: FakeBackend, method: str, query: str
) -> None:
    body = b"\xff{" if method in ("POST", "PUT", "PATCH") else b""
    headers = {"Content-Type": "text/x; charset=latin-1", "X-Request-ID": "req-1"}
    client = gateway.request(method, f"/slots/0{query}", body, headers)
    (asked,) = backend.calls
    call = asked.call
    assert (call.method, call.path, call.query, call.body) == (method, "/slots/0", query, body)
    assert call.content_type == (b"text/x; charset=latin-1" if body else b"")
    assert call.accept == b"*/*" and asked.request_id == "req-1"
    asked.whole(b'{"any" : thing', media_type="text/x-odd")
    answer = Answer(client)
    assert (answer.status, answer.body, answer.complete) == (200, b'{"any" : thing', True)
    assert answer.header("content-type") == "text/x-odd"
    (exchange,) = gateway.ended
    assert (exchange.route, exchange.model, exchange.stream) == ("/slots/*", None, False)
    assert exchange.end is End.COMPLETE


def test_the_answer_to_head_has_no_body(gateway: Gateway, backend: FakeBackend) -> None:
    client = gateway.request("HEAD", "/props")
    assert backend.calls[0].call.method == "GET"
    backend.calls[0].whole(b"{}")
    assert Answer(client).status == 200 and client.value().endswith(b"\r\n\r\n")


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE"])
def test_other_methods_are_a_405(gateway: Gateway, backend: FakeBackend, method: str) -> None:
    answer = Answer(gateway.request(method, "/props"))
    assert answer.status == 405 and not backend.calls
    assert answer.header("allow") == "DELETE, GET, HEAD, PATCH, POST, PUT"


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_get_and_delete_have_no_body(gateway: Gateway, backend: FakeBackend, method: str) -> None:
    assert Answer(gateway.request(method, "/props", b"x")).status == 400 and not backend.calls


def test_two_media_types_or_a_coding_are_refused(gateway: Gateway, backend: FakeBackend) -> None:
    coded = gateway.request("POST", "/props", b"x", {"Content-Encoding": "gzip"})
    twice = gateway.request("POST", "/props", b"x", {"Content-Type": "a/b", "content-type": "a/c"})
    assert Answer(coded).status == Answer(twice).status == 415 and not backend.calls


@pytest.mark.parametrize(
    "path",
    ["/props/", "/propsx", "//props", "/v1/props", "/slots/../props", "/slots/%2e%2e/x", "/x"],
)
def test_any_other_path_is_unknown(gateway: Gateway, backend: FakeBackend, path: str) -> None:
    assert Answer(gateway.request("GET", path)).code == "unknown_url" and not backend.calls


def test_declared_paths_answer_under_root_path() -> None:
    backend = FakeBackend("a")
    gateway = gateway_with(backend, gateway_root_path="/llm")
    assert Answer(gateway.request("GET", "/props")).status == 404
    gateway.request("GET", "/llm/props?x")
    assert (backend.calls[0].call.path, backend.calls[0].call.query) == ("/props", "?x")


@pytest.mark.parametrize("status", [200, 201, 202, 299])
def test_any_success_crosses_with_its_status(
    gateway: Gateway, backend: FakeBackend, status: int
) -> None:
    client = gateway.request("POST", "/props", b"x")
    backend.calls[0].whole(b"<html>", status, "text/html")
    assert (Answer(client).status, Answer(client).body) == (status, b"<html>")


def test_a_reply_may_have_no_body_and_no_media_type(gateway: Gateway, backend: FakeBackend) -> None:
    client = gateway.request("DELETE", "/slots/0")
    backend.calls[0].head(204, "")
    backend.calls[0].end()
    answer = Answer(client)
    assert answer.status == 204 and answer.body == b"" and not answer.closed
    assert answer.header("content-type") is answer.header("transfer-encoding") is None
    assert gateway.end is End.COMPLETE


@pytest.mark.parametrize(
    ("status", "gets", "code"),
    [
        (404, 404, "upstream_error"),
        (500, 500, "upstream_error"),
        (401, 502, "upstream_auth"),
        (302, 502, "upstream_bad_response"),
    ],
)
def test_errors_are_those_of_other_endpoints(
    gateway: Gateway, backend: FakeBackend, status: int, gets: int, code: str
) -> None:
    client = gateway.request("GET", "/props")
    backend.calls[0].whole(b"no", status, "text/plain")
    assert (Answer(client).status, Answer(client).code) == (gets, code)


def test_events_cross_unread_and_end_as_their_framing_says(
    gateway: Gateway, backend: FakeBackend
) -> None:
    client = gateway.request("GET", "/slots/events")
    (asked,) = backend.calls
    asked.head()
    events = b": comment\r\n\r\nid: 1\ndata: {\n\ndata: [DONE]\n\ndata: more"
    asked.send(events)
    assert Answer(client).body == events and not Answer(client).complete
    asked.end()
    answer = Answer(client)
    assert answer.complete and answer.header("content-type") == EVENTS
    assert answer.header("x-accel-buffering") == "no" and gateway.end is End.COMPLETE


@pytest.mark.parametrize("how", [PotentialDataLoss(), errors.Truncated("x")], ids=["eof", "cut"])
@pytest.mark.parametrize("media_type", ["text/plain", EVENTS])
def test_a_cut_is_a_cut(
    gateway: Gateway, backend: FakeBackend, how: Exception, media_type: str
) -> None:
    client = gateway.request("GET", "/props")
    backend.calls[0].head(media_type=media_type)
    backend.calls[0].send(b"part")
    backend.calls[0].end(how)
    answer = Answer(client)
    assert answer.body == b"part" and answer.closed and not answer.complete
    assert gateway.end is End.BACKEND_TRUNCATED


def test_the_clocks_and_limits_hold(backend: FakeBackend) -> None:
    gateway = gateway_with(backend, limits_in_flight="1")
    client = gateway.request("GET", "/props")
    assert Answer(gateway.request("GET", "/props")).code == "overloaded"
    gateway.clock.advance(600)
    assert Answer(client).code == "upstream_timeout" and backend.calls[0].left == "cancelled"


def test_a_client_that_leaves_cancels(gateway: Gateway, backend: FakeBackend) -> None:
    gateway.request("POST", "/props", b"x").leave()
    assert backend.calls[0].left == "cancelled" and gateway.end is End.CLIENT_GONE


# -- which backend ---------------------------------------------------------------------------------


def test_the_least_busy_of_the_backends_that_declare_a_path_is_asked() -> None:
    a, b, c = backends("a", "b", "c")
    own = backend_settings(a_paths="/props", b_paths="/props", c_models="m")
    gateway = Gateway(a, b, c, settings=settings(**own))
    for _ in range(4):
        gateway.request("GET", "/props")
    assert [len(each.calls) for each in (a, b, c)] == [2, 2, 0]


@pytest.mark.parametrize(("method", "asked"), [("GET", 2), ("POST", 2), ("DELETE", 1)])
def test_another_one_is_asked_if_the_first_cannot_have_executed_it(method: str, asked: int) -> None:
    a, b = backends("a", "b")
    gateway = gateway_with(a, b)
    a.failing.append(errors.Unreachable("no"))
    client = gateway.request(method, "/props")
    assert len(a.calls) + len(b.calls) == asked
    if method == "DELETE":
        assert Answer(client).code == "upstream_unreachable"


def test_a_full_backend_is_not_asked(backend: FakeBackend) -> None:
    gateway = Gateway(
        backend, settings=settings(**backend_settings(a_paths="/props", a_in_flight="1"))
    )
    gateway.request("GET", "/props")
    answer = Answer(gateway.request("GET", "/props"))
    assert answer.code == "overloaded" and "this path" in answer.json["error"]["message"]


@pytest.mark.parametrize(("status", "times"), [(500, 6), (200, 1)])
def test_a_reply_of_a_declared_path_says_nothing_about_the_models(
    gateway: Gateway, backend: FakeBackend, status: int, times: int
) -> None:
    health = gateway.targets[0].health
    if status == 200:
        for _ in range(3):
            fails(health)
    before = health.state
    for _ in range(times):
        gateway.request("GET", "/props")
        backend.calls[-1].whole(b"{}", status)
    assert health.state is before and before is (State.EJECTED if status == 200 else State.HEALTHY)


def test_a_backend_that_is_not_reached_is_ejected_all_the_same(
    gateway: Gateway, backend: FakeBackend
) -> None:
    backend.failing += [errors.Unreachable("no")] * 3
    for _ in range(3):
        gateway.request("GET", "/props")
    assert gateway.targets[0].health.state is State.EJECTED


# -- the gateway's own paths -----------------------------------------------------------------------


OWN = "/v1/*, /v1/chat/completions, /healthz, /v1/models/x, /metrics, /responses"


def test_the_gateways_own_paths_stay_its_own() -> None:
    backend = FakeBackend("a")
    gateway = gateway_with(backend, paths=OWN)
    assert Answer(gateway.request("GET", "/v1/chat/completions")).status == 405
    assert Answer(gateway.request("GET", "/healthz")).json == {"status": "ok"}
    assert Answer(gateway.request("GET", "/v1/models/m")).json["id"] == "m"
    assert Answer(gateway.request("DELETE", "/v1/models/m")).status == 405
    assert not backend.calls
    gateway.request("GET", "/v1/stream/conv?from=1")
    assert backend.calls[0].call.path == "/v1/stream/conv"


def test_another_spelling_of_the_gateways_own_paths_leads_to_no_backend() -> None:
    backend = FakeBackend("a")
    gateway = gateway_with(backend, paths=OWN, **tokens(models="m", paths="/v1/*"))
    headers = {"Content-Type": "application/json", **bearer(ALICE)}
    for path in ("/v1/%63hat/completions", "/v1/responses%2fresp_1", "/v1/respon%73es/resp_1"):
        client = gateway.request("POST", path, b"{}", headers)
        assert Answer(client).status in (403, 404) and not backend.calls


def test_a_path_that_is_the_gateways_own_is_warned_of() -> None:
    found = warnings(gateway_with(FakeBackend("a"), paths=OWN + ", /props").settings)
    named = [re.search("paths: (.*) is one of", each)[1] for each in found]  # type: ignore[index]
    assert named == ["/v1/chat/completions", "/healthz", "/v1/models/x", "/metrics", "/responses"]


def test_metrics_with_a_port_of_their_own_leave_the_path_to_a_backend() -> None:
    backend = FakeBackend("a")
    values = {"metrics_listen": "127.0.0.1:9100"}
    gateway = gateway_with(backend, paths="/metrics", **values)
    assert warnings(gateway.settings) == []
    client = gateway.request("GET", "/metrics")
    backend.calls[0].whole(b"llamacpp:x 1\n", media_type="text/plain")
    assert Answer(client).body == b"llamacpp:x 1\n"
    guarded = gateway_with(backend, paths="/metrics", **values, **HASHES)
    transport = guarded.request("GET", "/metrics", headers={})
    assert Answer(transport).code == "missing_api_key" and len(backend.calls) == 1
    assert Answer(gateway_with(backend, **values).request("GET", "/metrics")).code == "unknown_url"


# -- tokens ----------------------------------------------------------------------------------------


def tokens(**values: str) -> dict[str, Any]:
    return {**HASHES, **{f"token_alice_{key}": value for key, value in values.items()}}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/chat/completions", 200),
        ("POST", "/chat/completions", 200),
        ("POST", "/chat/completions/", 200),
        ("GET", "/v1/models", 200),
        ("GET", "/models", 200),
        ("GET", "/v1/models/m", 403),
        ("POST", "/v1/audio/speech", 415),
        ("POST", "/v1/embeddings", 403),
        ("GET", "/props", 403),
        ("GET", "/slots/0", 200),
        ("GET", "/slots/../props", 403),
        ("GET", "/unknown", 403),
        ("GET", "/healthz", 200),
        ("GET", "/version", 403),
    ],
)
def test_a_token_may_be_limited_to_paths(method: str, path: str, status: int) -> None:
    backend = FakeBackend("a")
    allowed = "/v1/chat/completions, /v1/models, /v1/audio/*, /slots/*"
    gateway = gateway_with(backend, **tokens(paths=allowed))
    body, kind = (BODY, JSON) if "chat" in path else (b"", {})
    client = gateway.request(method, path, body, {**kind, **bearer(ALICE)})
    for asked in backend.calls:
        asked.whole(completion())
    answer = Answer(client)
    assert answer.status == status
    if status == 403:
        assert answer.code == "path_not_allowed" and not backend.calls
    other = gateway.request(method, path, body, {**kind, **bearer(BOB)})
    assert b" 403 " not in other.value()[:20]


def test_a_token_that_is_limited_to_models_needs_paths_for_requests_that_are_not_read() -> None:
    backend = FakeBackend("a")
    for paths, allowed in [("", False), ("/slots/*", False), ("/props, /v1/models", True)]:
        gateway = gateway_with(backend, **tokens(models="m", paths=paths))
        client = gateway.request("POST", "/props", b'{"model":"other"}', bearer(ALICE))
        if allowed:
            assert backend.calls.pop().call.path == "/props"
        else:
            assert Answer(client).code == "path_not_allowed" and not backend.calls


def test_a_slash_at_the_end_makes_another_path_of_a_backend() -> None:
    backend = FakeBackend("a")
    gateway = gateway_with(backend, paths="/x, /x/", **tokens(paths="/x, /v1/models"))
    assert Answer(gateway.request("GET", "/x/", headers=bearer(ALICE))).code == "path_not_allowed"
    assert Answer(gateway.request("GET", "/v1/models/", headers=bearer(ALICE))).status == 200
    gateway.request("GET", "/x", headers=bearer(ALICE))
    assert [asked.call.path for asked in backend.calls] == ["/x"]


def test_declared_paths_need_a_token(backend: FakeBackend) -> None:
    gateway = gateway_with(backend, **HASHES)
    assert Answer(gateway.request("GET", "/props")).code == "missing_api_key"


def test_a_reload_applies_to_paths(gateway: Gateway, backend: FakeBackend) -> None:
    changed = settings(**backend_settings(a_paths="/tokenize"))
    api = gateway.api.replaced(changed, gateway.api.router)
    gateway.site.replace(api.resource(), api.admit)
    assert Answer(gateway.request("GET", "/props")).status == 404
    gateway.request("POST", "/tokenize", b"{}")
    assert backend.calls[0].call.path == "/tokenize"
