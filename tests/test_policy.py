"""Who has answered, and the model that is asked if a prompt is too long for another one."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from twisted.internet.task import Clock

from gatewayd.exchange import End
from gatewayd.relaying.policy import headers_for
from gatewayd.routing.router import Candidate
from gatewayd.routing.target import Target
from gatewayd.telemetry.access import as_json
from gatewayd.wire import errors
from tests.callers import ALICE, HASHES, bearer
from tests.memory import (
    Answer,
    ClientTransport,
    FakeBackend,
    Gateway,
    backends,
    chunk,
    completion,
    gateway_of,
)
from tests.replies import CHAT, endpoint

TOO_LONG = b'{"error":{"message":"too long","type":"x","code":"context_length_exceeded"}}'
BODY = b'{ "model":"small",  "messages":[{"role":"user","content":"\\u00e9"}], "x":1.0}'


def who(client: ClientTransport) -> tuple[str | None, str | None]:
    answer = Answer(client)
    return answer.header("x-gatewayd-backend"), answer.header("x-gatewayd-model")


def good(backend: FakeBackend, stream: bool = False, model: str = "real") -> None:
    call = backend.calls[-1]
    if stream:
        call.head()
        call.event(chunk("a", model=model))
        call.event(chunk(finish="stop", model=model))
        call.event(b"[DONE]")
    else:
        call.whole(completion(model=model))


# -- show_backend ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("show", "model", "expected"),
    [
        ("yes", "alias", ("a", "real")),
        ("yes", "real", ("a", None)),
        ("no", "alias", (None, None)),
    ],
)
def test_the_client_may_see_who_has_answered(
    stream: bool, show: str, model: str, expected: tuple[str | None, str | None]
) -> None:
    (a,) = backends("a")
    gateway = gateway_of(a, a_models="alias = real, real", routing_show_backend=show)
    client = gateway.chat(stream, model=model)
    good(a, stream)
    assert who(client) == expected and Answer(client).complete


def test_an_error_names_the_backend_that_it_came_from() -> None:
    a, b = backends("a", "b")
    gateway = gateway_of(a, b, routing_show_backend="yes")
    b.failing = [errors.Unreachable("No.")]
    client = gateway.chat(model="m")
    a.calls[0].head(503, "application/json")  # it says more than the one that was not reached
    assert Answer(client).status == 503 and who(client) == ("a", None)


def test_an_error_of_the_gateway_names_none() -> None:
    (a,) = backends("a")
    gateway = gateway_of(a, a_models="m", routing_show_backend="yes")
    assert who(gateway.chat(model="other")) == (None, None)
    gateway.chat(model="m")
    (exchange,) = gateway.site.state.active
    client = gateway.chat(model="m")
    exchange = next(e for e in gateway.site.state.active if e is not exchange)
    assert exchange.stop is not None
    exchange.stop(errors.Drained())
    assert who(client) == (None, None)


@pytest.mark.parametrize(("reask", "named"), [(False, "a"), (True, None)])
def test_a_ping_names_a_backend_only_if_no_other_one_can_replace_it(
    reask: bool, named: str | None
) -> None:
    a, b = FakeBackend("a", reask=reask), FakeBackend("b", reask=reask)
    gateway = gateway_of(a, b, routing_show_backend="yes", timeouts_ping="1")
    client = gateway.chat(True, model="m")
    gateway.clock.advance(1)
    good(a, stream=True)
    assert who(client) == (named, None) and Answer(client).complete


@pytest.mark.parametrize("values", [{"routing_show_backend": "yes"}, {}])
def test_a_web_page_may_read_the_names(values: dict[str, str]) -> None:
    gateway = gateway_of(*backends("a"), **values)
    answer = Answer(gateway.chat(headers={"Origin": "http://localhost"}))
    del answer
    client = gateway.request("GET", "/v1/models", headers={"Origin": "http://localhost"})
    exposed = Answer(client).header("access-control-expose-headers") or ""
    assert ("X-Gatewayd-Backend, X-Gatewayd-Model" in exposed) is bool(values)


def test_a_name_that_is_not_ascii_is_percent_encoded() -> None:
    call = endpoint(CHAT).request.parse(
        endpoint(CHAT), BODY.replace(b"small", "ü%/ x".encode()), b"application/json", 64
    )
    candidate = Candidate(Target(FakeBackend("a"), Clock()), "größe 100%")
    shown = dict(headers_for(candidate, call, False, True))
    assert shown[b"x-gatewayd-model"] == b"gr%C3%B6%C3%9Fe 100%25"
    told = dict(headers_for(candidate, call, True, False))  # an alias is not resolved
    assert told[b"x-gatewayd-model"] == b"%C3%BC%25/ x"


# -- fallback_models -------------------------------------------------------------------------------


def world(**values: str) -> tuple[FakeBackend, FakeBackend, Gateway]:
    a, b = backends("a", "b")
    known = {"a_models": "small", "b_models": "large", "routing_fallback_models": "small -> large"}
    return a, b, gateway_of(a, b, **{**known, **values})


def ask(
    gateway: Gateway, stream: bool = False, more: Mapping[str, str] | None = None
) -> ClientTransport:
    body = BODY.replace(b'"x"', b'"stream":true,"x"') if stream else BODY
    headers = {"Content-Type": "application/json", "X-Request-ID": "req-1", **(more or {})}
    return gateway.request("POST", "/v1/chat/completions", body, headers)


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_goes_to_the_declared_model(stream: bool) -> None:
    a, b, gateway = world()
    client = ask(gateway, stream)
    a.calls[0].whole(TOO_LONG, 400)
    assert b.calls[0].body == a.calls[0].body.replace(b'"small"', b'"large"')  # and no other byte
    good(b, stream, "large-2024")
    answer = Answer(client)
    assert answer.status == 200 and answer.complete
    assert who(client) == ("b", "large")
    assert b'"model": "large-2024"' in answer.body  # as the backend named it
    (exchange,) = gateway.ended
    assert exchange.end is End.COMPLETE and exchange.model == "small"
    line = json.loads(as_json(exchange))
    assert (line["fallback"], line["backend"]) == ("large", ["a", "b"])
    assert [(each["end"], each["code"]) for each in line["attempts"]] == [
        ("refused", "context_length_exceeded"),
        ("complete", None),
    ]
    assert [target.in_flight for target in gateway.targets] == [0, 0]


def test_an_error_event_before_the_reply_does_the_same_after_its_backend_was_left() -> None:
    a, b, gateway = world()
    client = ask(gateway, stream=True)
    a.calls[0].head()
    a.calls[0].event(TOO_LONG.replace(b'"context_length_exceeded"', b"400").replace(
        b'"x"', b'"exceed_context_size_error"'
    ))  # fmt: skip
    assert a.calls[0].left == "aborted" and not b.calls
    gateway.clock.advance(0)
    good(b, stream=True)
    assert Answer(client).complete and who(client) == ("b", "large")


def test_a_ping_names_the_other_model_even_if_its_backend_can_still_change() -> None:
    several = [FakeBackend(name, reask=True) for name in ("a", "b", "c")]
    gateway = gateway_of(
        *several,
        **{"a_models": "small", "b_models": "large = real", "c_models": "large"},
        routing_fallback_models="small -> large",
        routing_affinity="off",
        routing_show_backend="yes",
        timeouts_ping="1",
    )
    client = ask(gateway, stream=True)
    several[0].calls[0].whole(TOO_LONG, 400)
    gateway.clock.advance(1)
    assert who(client) == (None, "large")
    good(several[1], stream=True)
    assert Answer(client).complete


def test_a_chain_of_fallbacks_ends_with_the_last() -> None:
    chain = "small -> large\nlarge -> huge"
    a, b, gateway = world(b_models="large, huge", routing_fallback_models=chain)
    client = ask(gateway)
    a.calls[0].whole(TOO_LONG, 400)
    b.calls[0].whole(TOO_LONG, 400)
    assert json.loads(b.calls[1].body)["model"] == "huge"
    b.calls[1].whole(TOO_LONG, 400)
    assert (Answer(client).status, Answer(client).body) == (400, TOO_LONG)
    assert who(client) == ("b", "huge") and gateway.end is End.REFUSED


def test_an_alias_of_the_fallback_is_asked_by_its_real_name_and_not_resolved() -> None:
    a, b, gateway = world(b_models="large = secret-70b")
    client = ask(gateway)
    a.calls[0].whole(TOO_LONG, 400)
    assert json.loads(b.calls[0].body)["model"] == "secret-70b"
    good(b, model="secret-70b")
    assert who(client) == ("b", "large") and b"secret" not in client.value()
    assert Answer(client).json["model"] == "large"


def test_if_the_fallback_fails_its_error_is_the_answer() -> None:
    a, b, gateway = world()
    b.failing = [errors.Unreachable("No.")]
    client = ask(gateway)
    a.calls[0].whole(TOO_LONG, 400)
    assert (Answer(client).status, Answer(client).code) == (502, "upstream_unreachable")
    assert Answer(client).header("x-should-retry") is None and who(client) == ("b", "large")


@pytest.mark.parametrize("why", ["unknown", "full", "draining", "other error", "other model"])
def test_otherwise_the_error_of_the_first_model_crosses(why: str) -> None:
    a, b, gateway = world(
        **{"b_models": "else"} if why == "unknown" else {},
        **{"routing_fallback_models": "tiny -> large"} if why == "other model" else {},
    )
    client = ask(gateway)
    gateway.targets[1]._limit = 0 if why == "full" else None
    gateway.site.state.draining = why == "draining"
    body = b'{"error":{"message":"no"}}' if why == "other error" else TOO_LONG
    a.calls[0].whole(body, 400)
    assert (Answer(client).status, Answer(client).body) == (400, body)
    assert who(client) == (None, None) and not b.calls


def test_a_caller_that_may_not_use_the_fallback_does_not_get_it() -> None:
    a, b = backends("a", "b")
    gateway = gateway_of(
        a, b, a_models="small", b_models="large",
        routing_fallback_models="small -> large", token_alice_models="small", **HASHES,
    )  # fmt: skip
    client = ask(gateway, more=bearer(ALICE))
    a.calls[0].whole(TOO_LONG, 400)
    assert Answer(client).status == 400 and not b.calls


def test_after_a_ping_the_error_is_an_event() -> None:
    a, b, gateway = world(timeouts_ping="1")
    client = ask(gateway, stream=True)
    gateway.clock.advance(1)
    a.calls[0].whole(TOO_LONG, 400)
    assert not b.calls and b"context_length_exceeded" in client.value()
    assert not Answer(client).complete
