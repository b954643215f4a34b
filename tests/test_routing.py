"""Which backend a request is sent to first and next: the whole gateway, in memory."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from gatewayd.exchange import End
from gatewayd.routing.evidence import FAILURES
from gatewayd.telemetry.access import line_of
from gatewayd.wire import errors
from tests.memory import (
    Answer,
    FakeBackend,
    Gateway,
    backend_settings,
    backends,
    chunk,
    completion,
    gateway_of,
    settings,
)

MODELS = "small, llama-*, fast = llama-3-8b, qwen[12]?"


# -- models --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "asked_for"),
    [("small", "small"), ("llama-3-70b", "llama-3-70b"), ("fast", "llama-3-8b")],
)
def test_a_model_is_served_by_name_by_glob_or_by_alias(model: str, asked_for: str) -> None:
    (backend,) = several = backends("a")
    gateway_of(*several, a_models=MODELS).chat(model=model)
    assert json.loads(backend.calls[0].body)["model"] == asked_for


def test_a_model_that_no_backend_serves_is_a_404() -> None:
    (backend,) = several = backends("a")
    answer = Answer(gateway_of(*several, a_models=MODELS).chat(model="qwen3x"))
    assert (answer.status, answer.code) == (404, "model_not_found") and not backend.calls


def test_without_models_a_backend_serves_what_no_other_is_known_to_serve() -> None:
    a, b = backends("a", "b")
    gateway = gateway_of(a, b, a_models="x")
    gateway.chat(model="anything")
    gateway.chat(model="x")
    gateway.chat(model="x")
    assert (len(a.calls), len(b.calls)) == (2, 1)


@pytest.mark.parametrize("model", [{}, {"model": None}], ids=["missing", "null"])
def test_a_missing_model_goes_to_the_first_backend_that_serves_all(model: dict[str, Any]) -> None:
    a, b, c = backends("a", "b", "c")
    gateway = gateway_of(a, b, c, a_models="x")
    for _ in range(5):
        gateway.chat(**model)
    assert [len(backend.calls) for backend in (a, b, c)] == [0, 5, 0]
    assert b"model" not in b.calls[0].body or b'"model": null' in b.calls[0].body


def test_a_missing_model_goes_to_the_only_backend_whatever_it_serves() -> None:
    (backend,) = several = backends("a")
    gateway_of(*several, a_models="x").chat()
    assert len(backend.calls) == 1


def test_a_404_for_a_missing_model_names_the_known_models() -> None:
    a, b = backends("a", "b")
    answer = Answer(gateway_of(a, b, a_models="x", b_models="y").chat())
    assert (answer.status, answer.code) == (404, "model_not_found")
    assert answer.json["error"]["param"] == "model"
    assert "x, y" in answer.json["error"]["message"]


def test_an_unknown_model_is_a_404_that_lists_the_models_of_the_caller() -> None:
    tokens = {
        f"token_{name}_sha256": hashlib.sha256(name.encode()).hexdigest() for name in ("a", "b")
    }
    a, b = backends("a", "b")
    of_backends = backend_settings(
        a_models="mine, shared, gpt-* ", b_models="theirs, nick = secret-real-name"
    )
    own = settings(**tokens, **of_backends, token_a_models="mine, shared, no")
    gateway = Gateway(a, b, settings=own)
    for token, names in (("a", "mine, shared."), ("b", "mine, shared, theirs, nick.")):
        answer = Answer(gateway.chat(model="no", headers={"Authorization": f"Bearer {token}"}))
        assert (answer.status, answer.code) == (404, "model_not_found")
        assert answer.json["error"]["message"].endswith(f"Known ones: {names}")
        assert answer.json["error"]["type"] == "invalid_request_error"
    assert not a.calls and not b.calls
    assert {exchange.end for exchange in gateway.ended} == {End.REFUSED}


def test_an_error_lists_a_few_models_only() -> None:
    names = ", ".join(f"model-{n}" for n in range(200))
    answer = Answer(gateway_of(*backends("a"), a_models=names).chat(model="no"))
    assert answer.json["error"]["message"].endswith("model-18, model-19, ....")


# -- aliases -------------------------------------------------------------------------------------


def test_an_alias_changes_the_model_and_no_other_byte_of_the_request() -> None:
    (backend,) = several = backends("a")
    gateway = gateway_of(*several, a_models="fast = llama-3-8b")
    body = (
        b'{ "x":{"model":"fast"}, "messages" :[{"role":"user","content":"fast \\u00e9 1.0"}],'
        b'\n "mo\\u0064el" :\t"fa\\u0073t" , "n":1e0,"y":12345678901234567890 }'
    )
    gateway.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    assert backend.calls[0].body == body.replace(b'"fa\\u0073t"', b'"llama-3-8b"')


def test_a_reply_carries_the_alias_of_the_request() -> None:
    (backend,) = several = backends("a")
    gateway = gateway_of(*several, a_models="fast = llama-3-8b, plain")
    client = gateway.chat(model="fast")
    body = completion("x", model="/srv/llama-3-8b.gguf", x={"model": "deep"}, y=1.0)
    backend.calls[0].whole(body)
    wanted = body.replace(b"chatcmpl-1", b"req-1").replace(b"/srv/llama-3-8b.gguf", b"fast")
    assert Answer(client).body == wanted
    client = gateway.chat(model="plain")
    backend.calls[1].whole(body)
    assert Answer(client).json["model"] == "/srv/llama-3-8b.gguf"  # as it came


def test_every_chunk_of_a_stream_carries_the_alias_of_the_request() -> None:
    (backend,) = several = backends("a")
    gateway = gateway_of(*several, a_models="fast = llama-3-8b")
    client = gateway.chat(stream=True, model="fast")
    chunks = [chunk("a", model="llama-3-8b"), chunk("b"), chunk(finish="stop", model="other")]
    backend.calls[0].head()
    for payload in (*chunks, b"[DONE]"):
        backend.calls[0].event(payload)
    *payloads, done = Answer(client).payloads
    assert done == b"[DONE]"
    assert [json.loads(p).get("model") for p in payloads] == ["fast", None, "fast"]
    assert gateway.ended[0].model == "fast"


def test_each_backend_is_sent_its_own_name_of_the_model() -> None:
    a, b, c = backends("a", "b", "c")
    gateway = gateway_of(a, b, c, a_models="m = real-a", b_models="m", c_models="m = real-c")
    a.failing, b.failing = [errors.Unreachable("No.")], [errors.Unreachable("No.")]
    client = gateway.chat(model="m")
    c.calls[0].whole(completion(model="real-c"))
    asked = [json.loads(backend.calls[0].body)["model"] for backend in (a, b, c)]
    assert asked == ["real-a", "m", "real-c"]
    assert Answer(client).json["model"] == "m"


# -- the load ------------------------------------------------------------------------------------


def test_the_backend_with_the_fewest_requests_in_flight_is_asked_and_ties_take_turns() -> None:
    several = backends("a", "b", "c")
    gateway = gateway_of(*several)
    for n in range(1, 7):
        gateway.chat(model="m")
        turns = [sum(i % 3 == which for i in range(n)) for which in range(3)]
        assert [len(backend.calls) for backend in several] == turns
    for call in several[1].calls:
        call.whole(completion())
    gateway.chat(model="m")
    gateway.chat(model="m")
    assert [len(backend.calls) for backend in several] == [2, 4, 2]


def test_idle_backends_take_turns_in_the_order_of_the_settings() -> None:
    several = backends("a", "b", "c")
    gateway = gateway_of(*several)
    for _ in range(9):
        gateway.chat(model="m")
        (exchange,) = gateway.site.state.active
        (backend,) = [b for b in several if b.name == exchange.backends[0]]
        backend.calls[-1].whole(completion())
    asked = [exchange.backends for exchange in gateway.ended]
    assert asked == [["a"], ["b"], ["c"]] * 3


def test_only_backends_that_serve_the_model_take_turns() -> None:
    several = backends("a", "b", "c")
    gateway = gateway_of(*several, a_models="x, y", b_models="x", c_models="y")
    for _ in range(4):
        gateway.chat(model="y")
    assert [len(backend.calls) for backend in several] == [2, 0, 2]
    for _ in range(4):
        gateway.chat(model="x")
    assert [len(backend.calls) for backend in several] == [3, 3, 2]


# -- in_flight -----------------------------------------------------------------------------------


def test_full_backends_are_passed_over_and_if_all_are_full_the_answer_is_503() -> None:
    a, b = backends("a", "b")
    gateway = gateway_of(a, b, a_in_flight="1", b_in_flight="2")
    for _ in range(3):
        gateway.chat(model="m")
    assert (len(a.calls), len(b.calls)) == (1, 2)
    answer = Answer(gateway.chat(model="m"))
    assert (answer.status, answer.code) == (503, "overloaded")
    assert answer.header("retry-after") == "1" and answer.header("x-should-retry") is None
    assert gateway.ended[-1].end is End.REFUSED and gateway.ended[-1].backends == []
    a.calls[0].whole(completion())
    gateway.chat(model="m")
    assert (len(a.calls), len(b.calls)) == (2, 2)


def test_the_limit_holds_for_requests_without_a_model_and_for_a_single_backend() -> None:
    (backend,) = several = backends("a")
    gateway = gateway_of(*several, a_in_flight="2")
    for _ in range(2):
        gateway.chat()
    assert Answer(gateway.chat()).code == "overloaded" and len(backend.calls) == 2


@pytest.mark.parametrize("how", ["whole", "error", "cut", "left", "refused", "broken"])
def test_a_request_is_no_longer_in_flight_however_it_ended(how: str) -> None:
    (backend,) = several = backends("a")
    gateway = gateway_of(*several, a_in_flight="1")
    for _ in range(5):
        if how == "refused":
            backend.failing = [errors.Unreachable("No.")]
        if how == "broken":
            backend.failing = [ValueError("a fault of our own")]
        client = gateway.chat(stream=how == "cut")
        if how == "whole":
            backend.calls[-1].whole(completion())
        elif how == "error":
            backend.calls[-1].whole(b"{}", 500)
        elif how == "cut":
            backend.calls[-1].head()
            backend.calls[-1].event(chunk("a"))
            backend.calls[-1].end(errors.Truncated("x"))
        elif how == "left":
            client.leave()
        assert gateway.targets[0].in_flight == 0
    assert len(backend.calls) == 5


# -- affinity and tiers --------------------------------------------------------------------------


def conversation(*texts: str) -> list[dict[str, str]]:
    """The messages of a conversation in which the user says the first, the third, ... of these."""
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]


def asked(gateway: Gateway, several: list[FakeBackend], **request: Any) -> str:
    """Send a chat and reply to it; return the name of the backend that was asked."""
    calls = {backend.name: len(backend.calls) for backend in several}
    gateway.chat(**{"model": "m", **request})
    (backend,) = (b for b in several if len(b.calls) > calls[b.name])
    backend.calls[-1].whole(completion())
    return backend.name


def test_requests_of_one_session_are_sent_to_one_backend() -> None:
    several = backends("a", "b", "c")
    gateway = gateway_of(*several, routing_affinity="session")
    found = {}
    for session in range(20):
        headers = {"X-Session-ID": f"session-{session}"}
        names = {asked(gateway, several, headers=headers) for _ in range(5)}
        names.add(asked(gateway, several, prompt_cache_key=f"session-{session}"))
        (found[session],) = names
    assert set(found.values()) == {"a", "b", "c"}


def test_the_key_of_a_session_is_not_forwarded_and_not_logged() -> None:
    several = backends("a", "b")
    gateway = gateway_of(*several, routing_affinity="session")
    name = asked(gateway, several, headers={"X-Session-ID": "very-secret"})
    (call,) = next(backend.calls for backend in several if backend.name == name)
    assert b"very-secret" not in call.body
    assert "very-secret" not in str(line_of(gateway.ended[0]))


def test_the_headers_of_a_session_are_a_setting() -> None:
    several = backends("a", "b", "c")
    gateway = gateway_of(
        *several, routing_affinity="session", routing_affinity_header="X-Chat, X-Task"
    )
    by_task = {asked(gateway, several, headers={"x-task": "1"}) for _ in range(6)}
    by_chat = {asked(gateway, several, headers={"X-Chat": "1", "X-Task": str(n)}) for n in range(6)}
    unknown = [asked(gateway, several, headers={"X-Session-ID": "1"}) for _ in range(6)]
    assert by_task == by_chat and len(by_task) == 1
    assert sorted(unknown) == ["a", "a", "b", "b", "c", "c"]


@pytest.mark.parametrize("value", ["", "x" * 513])
def test_a_session_that_is_not_usable_takes_turns(value: str) -> None:
    several = backends("a", "b")
    gateway = gateway_of(*several, routing_affinity="session")
    names = [asked(gateway, several, headers={"X-Session-ID": value}) for _ in range(4)]
    assert names == ["a", "b", "a", "b"]


def test_a_conversation_stays_with_the_backend_that_has_its_prompt() -> None:
    several = backends("a", "b", "c")
    gateway = gateway_of(*several, routing_affinity="prompt")
    found = set()
    for n in range(20):
        texts = [f"question {n}"]
        names = set()
        for turn in range(4):
            names.add(asked(gateway, several, messages=conversation(*texts)))
            texts += [f"answer {turn}", f"question {turn}"]
        found |= names
        assert len(names) == 1
    assert found == {"a", "b", "c"}


@pytest.mark.parametrize("affinity", ["off", "session"])
def test_without_a_key_the_same_conversation_takes_turns(affinity: str) -> None:
    several = backends("a", "b")
    gateway = gateway_of(*several, routing_affinity=affinity)
    names = [asked(gateway, several, messages=conversation("hi"), user="u") for _ in range(4)]
    assert names == ["a", "b", "a", "b"]


def test_the_user_is_the_key_of_a_session_if_the_operator_wants_this() -> None:
    several = backends("a", "b", "c")
    gateway = gateway_of(*several, routing_affinity="prompt", routing_affinity_user="yes")
    by_user = {
        n: {asked(gateway, several, user=f"u{n}", messages=conversation(t)) for t in "abcdef"}
        for n in range(12)
    }
    assert all(len(names) == 1 for names in by_user.values())
    assert set().union(*by_user.values()) == {"a", "b", "c"}


def test_a_conversation_whose_backend_fails_goes_to_the_next_one_and_comes_back() -> None:
    several = backends("a", "b", "c")
    gateway = gateway_of(*several, routing_affinity="prompt")
    name = asked(gateway, several, messages=conversation("hi"))
    own = next(backend for backend in several if backend.name == name)
    own.failing = [errors.Unreachable("No.")]
    gateway.chat(model="m", messages=conversation("hi"))
    _, other = gateway.api.router.targets[0], gateway.ended
    assert not other[1:]  # the next backend was asked and has not replied yet
    assert sum(target.in_flight for target in gateway.targets) == 1
    assert asked(gateway, several, messages=conversation("hi")) == name


def test_no_key_is_made_for_a_single_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a key was made")

    monkeypatch.setattr("gatewayd.wire.affinity.of_session", refuse)
    monkeypatch.setattr("gatewayd.wire.affinity.of_document", refuse)
    (backend,) = alone = backends("a")
    gateway = gateway_of(backend, routing_affinity="prompt")
    assert asked(gateway, alone, headers={"X-Session-ID": "1"}) == "a"
    two = backends("a", "b")
    gateway = gateway_of(*two, routing_affinity="prompt", a_models="m", b_models="n")
    assert asked(gateway, two, headers={"X-Session-ID": "1"}) == "a"


def test_the_next_tier_is_asked_while_the_one_before_is_full_or_down() -> None:
    several = a, b, hosted = backends("a", "b", "hosted")
    gateway = gateway_of(*several, a_in_flight="1", b_in_flight="1", hosted_priority="1")
    for _ in range(3):
        gateway.chat(model="m")
    assert [len(backend.calls) for backend in several] == [1, 1, 1]
    a.calls[0].whole(completion())
    assert asked(gateway, list(several)) == "a"
    for _ in range(FAILURES):
        a.failing = [errors.Unreachable("No.")]
        assert asked(gateway, [hosted, b]) == "hosted"
    a.failing = []
    assert asked(gateway, list(several)) == "hosted"  # a is ejected, b is full
    lines = [line_of(exchange) for exchange in gateway.ended]
    assert [(line.backend[-1], line.priority or 0) for line in lines[:2]] == [("a", 0), ("a", 0)]
    assert (lines[-1].backend, lines[-1].priority) == (["hosted"], 1)


def test_a_request_without_a_model_goes_by_priority_and_then_by_the_order_of_the_settings() -> None:
    several = backends("a", "b", "c")
    gateway = gateway_of(*several, a_priority="1")
    assert [asked(gateway, several, model=None) for _ in range(3)] == ["b", "b", "b"]


def test_backends_share_requests_without_a_key_by_their_weights() -> None:
    several = backends("a", "b")
    gateway = gateway_of(*several, b_weight="3")
    names = [asked(gateway, several) for _ in range(16)]
    assert names.count("b") == 12


# -- failover ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "problem",
    [
        errors.Unreachable("x"),
        errors.UnknownHost("x"),
        errors.TLSFailed("x"),
        errors.ConnectTimeout("x"),
    ],
    ids=lambda problem: type(problem).__name__,
)
def test_a_request_that_was_not_executed_is_sent_to_the_next_backend_and_each_attempt_is_logged(
    problem: errors.GatewayError,
) -> None:
    several = a, b, c = backends("a", "b", "c")
    gateway = gateway_of(*several)
    gateway.chat(model="m")  # c is the last in turn now, a has one in flight
    b.failing, c.failing = [problem], [problem]
    client = gateway.chat(model="m")
    a.calls[1].whole(completion())
    assert Answer(client).status == 200
    assert line_of(gateway.ended[0]).backend == ["b", "c", "a"]
    assert [target.in_flight for target in gateway.targets] == [1, 0, 0]


def test_if_no_backend_can_be_reached_the_client_gets_the_last_error() -> None:
    several = backends("a", "b")
    for backend in several:
        backend.failing = [errors.Unreachable("No.")]
    gateway = gateway_of(*several)
    answer = Answer(gateway.chat(model="m"))
    assert (answer.status, answer.code) == (502, "upstream_unreachable")
    assert answer.header("x-should-retry") is None  # nothing ran: try again
    assert line_of(gateway.ended[0]).backend == ["a", "b"]
    assert gateway.ended[0].end is End.BACKEND_UNREACHABLE


@pytest.mark.parametrize("status", [429, 503])
def test_if_all_backends_refuse_for_now_the_client_gets_the_last_refusal(status: int) -> None:
    a, b = backends("a", "b")
    gateway = gateway_of(a, b)
    client = gateway.chat(model="m")
    a.calls[0].whole(b'{"error":{"message":"first"}}', status)
    assert not client.value()
    b.calls[0].whole(b'{"error":{"message":"second"}}', status)
    assert (Answer(client).status, Answer(client).json["error"]["message"]) == (status, "second")


@pytest.mark.parametrize("status", [400, 404, 500, 501, 502, 504])
def test_any_other_error_status_is_the_answer(status: int) -> None:
    a, b = backends("a", "b")
    client = gateway_of(a, b).chat(model="m")
    a.calls[0].whole(b'{"error":{"message":"no"}}', status)
    assert Answer(client).status == status and not b.calls


def test_a_client_that_disconnects_ends_the_attempts() -> None:
    a, b = backends("a", "b")
    a.failing = [errors.Unreachable("No.")]
    gateway = gateway_of(a, b)
    client = gateway.chat(model="m")
    client.leave()
    assert b.calls[0].left == "cancelled" and gateway.ended[0].backends == ["a", "b"]
    assert [target.in_flight for target in gateway.targets] == [0, 0]


def test_no_other_backend_is_asked_after_a_comment_has_begun_the_stream() -> None:
    a, b = backends("a", "b")
    gateway = Gateway(a, b, settings=settings(timeouts_ping="1"))
    client = gateway.chat(stream=True, model="m")
    gateway.clock.advance(1)
    a.calls[0].answer.errback(errors.Unreachable("No."))
    answer = Answer(client)
    assert json.loads(answer.payloads[-1])["error"]["code"] == "upstream_unreachable"
    assert answer.closed and not answer.complete and not b.calls


def test_a_backend_is_not_asked_twice_if_it_is_the_only_usable_one() -> None:
    a, b = backends("a", "b")
    gateway = gateway_of(a, b, b_in_flight="1")
    gateway.chat(model="m")
    gateway.chat(model="m")
    a.failing = [errors.Unreachable("No.")]
    assert Answer(gateway.chat(model="m")).code == "upstream_unreachable"
    assert (len(a.calls), len(b.calls)) == (2, 1)
