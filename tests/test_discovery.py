"""What backends are asked about themselves: when, and what follows for requests. On a clock."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure

from gatewayd.daemon.periodic import Periodic
from gatewayd.routing.discovery import ANSWER_SECONDS, ASK_SECONDS, JITTER, RETRY_SECONDS, Discovery
from gatewayd.wire import errors
from tests.memory import Answer, FakeBackend, Gateway, backend_settings, fails, settings

#: Seconds after which the next question has been asked.
ASKED_AGAIN = ASK_SECONDS * (1 + JITTER) + 1
RETRIED = RETRY_SECONDS * (1 + JITTER) + 1


class AskedBackend(FakeBackend):
    """Counts the questions; with ``silent`` it does not answer them."""

    def __init__(self, name: str, *models: str, slots: int | None = None) -> None:
        super().__init__(name)
        self.silent = False
        self.said_slots = slots
        self.asked_models: list[Deferred[Any]] = []
        self.asked_slots: list[Deferred[Any]] = []
        self.lists(*models)

    def lists(self, *models: str) -> None:
        self.listed = {m: {"id": m, "object": "model"} for m in models}

    def models(self, request_id: str) -> Deferred[dict[str, Any]]:
        self.asked_models.append(Deferred() if self.silent else super().models(request_id))
        return self.asked_models[-1]

    def slots(self, request_id: str) -> Deferred[int | None]:
        self.asked_slots.append(Deferred() if self.silent else super().slots(request_id))
        return self.asked_slots[-1]


class World:
    """A gateway in front of these backends, whose discovery runs as the daemon runs it."""

    def __init__(self, *backends: FakeBackend, start: bool = True, **values: str) -> None:
        self.gateway = Gateway(*backends, settings=settings(**backend_settings(**values)))
        self.discovery = Discovery(self.gateway.api.router, self.gateway.clock)
        if start:
            self.start()

    def start(self) -> None:
        Periodic(1.0, self.discovery.check, self.gateway.clock).startService()

    def advance(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.gateway.clock.advance(1)

    def answer(self, model: str) -> Answer:
        return Answer(self.gateway.chat(model=model))


@contextmanager
def daemon_log() -> Iterator[list[str]]:
    """The lines that are logged."""
    lines: list[str] = []
    with capturedLogs() as events:
        yield lines
    lines += [formatEvent(event) for event in events]


def refused() -> errors.Unreachable:
    return errors.Unreachable("The backend refused the connection.")


# -- models = auto ---------------------------------------------------------------------------------


def test_a_backend_with_auto_serves_what_it_lists_and_nothing_else() -> None:
    a, b = AskedBackend("a", "x", "both"), AskedBackend("b", "y", "both")
    world = World(a, b, a_models="auto", b_models="auto")
    for model in ("x", "x", "y", "both", "both"):
        world.gateway.chat(model=model)
    assert (len(a.calls), len(b.calls)) == (3, 2)
    answer = world.answer("z")
    assert (answer.status, answer.code) == (404, "model_not_found")
    assert "x, both, y" in answer.json["error"]["message"]


def test_auto_goes_with_names_globs_and_aliases() -> None:
    a, b = AskedBackend("a", "x"), AskedBackend("b")
    world = World(a, b, a_models="auto, fast = x, lora-*", b_models="other")
    for model in ("x", "fast", "lora-1"):
        world.gateway.chat(model=model)
    assert [b'"model":"x"' in call.body.replace(b" ", b"") for call in a.calls] == [
        True,
        True,
        False,
    ]
    assert world.answer("real").code == "model_not_found"


def test_a_model_of_ollama_may_be_named_without_its_default_tag() -> None:
    a, b = AskedBackend("a", "llama3.2:latest", "qwen3:0.6b"), AskedBackend("b", "z")
    world = World(a, b, a_models="auto", b_models="auto")
    world.gateway.chat(model="llama3.2")
    world.gateway.chat(model="qwen3:0.6b")
    assert [b"llama3.2:latest" in call.body for call in a.calls] == [False, False]
    assert len(a.calls) == 2
    assert world.answer("qwen3").code == "model_not_found"
    assert world.answer("llama3.2:1b").code == "model_not_found"


def test_before_its_first_list_a_backend_is_asked_for_what_no_other_is_known_to_serve() -> None:
    a, b = AskedBackend("a", "x"), AskedBackend("b", "y")
    b.silent = True
    world = World(a, b, a_models="auto", b_models="auto")
    world.gateway.chat(model="x")
    world.gateway.chat(model="y")
    assert (len(a.calls), len(b.calls)) == (1, 1)
    b.asked_models[0].callback({"y": {"id": "y"}})
    assert world.answer("z").code == "model_not_found"
    world.gateway.chat(model="y")
    assert (len(a.calls), len(b.calls)) == (1, 2)


def test_a_request_in_the_first_moment_is_not_refused() -> None:
    a, b = AskedBackend("a", "x"), AskedBackend("b", "y")
    world = World(a, b, start=False, a_models="auto", b_models="auto")
    world.gateway.chat(model="y")
    assert len(a.calls) + len(b.calls) == 1
    world.start()
    world.gateway.chat(model="y")
    assert b.calls


def test_the_list_of_models_uses_the_same_lists() -> None:
    a, b = AskedBackend("a", "x"), AskedBackend("b", "y")
    world = World(a, b, a_models="auto", b_models="auto, z = y")
    listed = Answer(world.gateway.request("GET", "/v1/models")).json["data"]
    assert [entry["id"] for entry in listed] == ["x", "y", "z"]
    assert len(a.asked_models) == len(b.asked_models) == 1


def test_a_request_without_a_model_goes_to_the_first_backend_that_is_not_bound_to_names() -> None:
    a, b, c = (AskedBackend(name, name) for name in "abc")
    world = World(a, b, c, a_models="a", b_models="auto", c_models="auto")
    world.gateway.chat()
    assert [len(backend.calls) for backend in (a, b, c)] == [0, 1, 0]


# -- no models -------------------------------------------------------------------------------------


def test_the_only_backend_is_asked_for_every_model_and_never_for_its_list() -> None:
    a = AskedBackend("a", "x")
    world = World(a)
    world.gateway.chat(model="anything")
    world.advance(ASKED_AGAIN)
    assert len(a.calls) == 1 and not a.asked_models and not a.asked_slots
    assert world.discovery.known() == {}


def test_several_backends_are_asked_first_for_what_they_list_then_for_any_model() -> None:
    a, b = AskedBackend("a", "x"), AskedBackend("b", "y")
    world = World(a, b)
    for _ in range(4):
        world.gateway.chat(model="y")
    assert (len(a.calls), len(b.calls)) == (0, 4)
    for _ in range(6):  # both are asked: llama.cpp serves any name
        world.gateway.chat(model="unlisted")
    assert (len(a.calls), len(b.calls)) == (5, 5)
    world.gateway.chat()
    assert len(a.calls) == 6


def test_backends_without_a_list_share_every_model() -> None:
    a, b = AskedBackend("a"), AskedBackend("b")
    a.listed = b.listed = errors.BadReply("The backend refused to list its models.")
    world = World(a, b)
    for _ in range(4):
        world.gateway.chat(model="m")
    assert (len(a.calls), len(b.calls)) == (2, 2)


def test_a_backend_with_models_is_not_asked_for_its_list() -> None:
    a, b = AskedBackend("a", "x"), AskedBackend("b", "y")
    world = World(a, b, a_models="x, y-*", b_models="auto")
    assert not a.asked_models and len(b.asked_models) == 1
    assert world.discovery.known() == {"b": True}


# -- when it is asked ------------------------------------------------------------------------------


def test_the_list_is_renewed_regularly_but_not_at_the_same_time_by_all() -> None:
    a = AskedBackend("a", "x")
    world = World(a, a_models="auto")
    moments = []
    for _ in range(2000):
        before = len(a.asked_models)
        world.advance(1)
        if len(a.asked_models) > before:
            moments.append(world.gateway.clock.seconds())
    gaps = {late - early for early, late in itertools.pairwise(moments)}
    assert ASK_SECONDS * (1 - JITTER) <= min(gaps) < max(gaps) <= ASK_SECONDS * (1 + JITTER) + 1


def test_a_model_that_appears_is_served_and_one_that_goes_is_not() -> None:
    a = AskedBackend("a", "x")
    world = World(a, a_models="auto")
    a.lists("y")
    assert world.answer("y").code == "model_not_found"
    with daemon_log() as lines:
        world.advance(ASKED_AGAIN)
    world.gateway.chat(model="y")
    assert len(a.calls) == 1 and world.answer("x").code == "model_not_found"
    assert lines == ["backend a lists these models: y"]


def test_a_model_that_nobody_lists_has_the_lists_fetched_soon_but_not_for_each_request() -> None:
    a, b = AskedBackend("a", "x"), AskedBackend("b", "y")
    world = World(a, b, a_models="auto", b_models="named")
    world.advance(RETRY_SECONDS)
    a.lists("x", "new")
    assert world.answer("new").code == "model_not_found"
    world.advance(1)
    world.gateway.chat(model="new")
    assert len(a.calls) == 1 and len(a.asked_models) == 2 and not b.asked_models
    for _ in range(int(2 * RETRY_SECONDS)):
        assert world.answer("never").code == "model_not_found"
        world.advance(1)
    assert len(a.asked_models) == 4


def test_a_failure_keeps_the_list_and_is_logged_once() -> None:
    a, b = AskedBackend("a", "x"), AskedBackend("b", "y")
    world = World(a, b, a_models="auto", b_models="auto")
    a.listed = refused()
    with daemon_log() as lines:
        world.advance(5 * ASKED_AGAIN)
    assert lines == [
        "backend a keeps its list of models, because a newer one did not come: "
        "The backend refused the connection."
    ]
    assert world.discovery.known() == {"a": False, "b": True}
    world.gateway.chat(model="x")
    assert len(a.calls) == 1
    assert world.answer("z").code == "model_not_found"
    a.lists("x")
    with daemon_log() as lines:
        world.advance(ASKED_AGAIN)
    assert lines == ["backend a lists these models: x"]
    assert world.discovery.known() == {"a": True, "b": True}


def test_a_first_list_that_fails_is_logged_once_and_asked_for_again_soon() -> None:
    a, b = AskedBackend("a"), AskedBackend("b", "y")
    a.listed = errors.BadReply("The backend refused to list its models.", detail="status 404")
    with daemon_log() as lines:
        world = World(a, b, a_models="auto", b_models="auto")
        world.advance(10 * RETRIED)
    assert lines == [
        "backend a is asked for models that no other backend lists, because its list did not come: "
        "The backend refused to list its models. status 404",
        "backend b lists these models: y",
    ]
    world.gateway.chat(model="z")
    assert len(a.calls) == 1
    a.lists("x")
    world.advance(ASKED_AGAIN)
    assert world.answer("z").code == "model_not_found"


def test_after_failures_it_is_asked_again_soon_then_less_often() -> None:
    a = AskedBackend("a")
    a.listed = refused()
    world = World(a, a_models="auto")
    world.advance(RETRIED)
    assert len(a.asked_models) == 2
    world.advance(10 * ASKED_AGAIN)
    asked = len(a.asked_models)
    world.advance(10 * ASKED_AGAIN)
    assert 10 <= len(a.asked_models) - asked <= 16
    a.lists("x")
    world.advance(ASKED_AGAIN)
    a.listed, asked = refused(), len(a.asked_models)
    world.advance(ASKED_AGAIN + RETRIED)
    assert len(a.asked_models) >= asked + 2


def test_a_backend_that_is_healthy_again_is_asked_at_once() -> None:
    a = AskedBackend("a", "x", slots=1)
    world = World(a, a_models="auto", a_in_flight="auto")
    health = world.gateway.targets[0].health
    for _ in range(3):
        fails(health)
    world.advance(2)
    asked = len(a.asked_models)
    a.lists("x", "new")
    a.said_slots = 2
    health.succeeded()
    world.advance(1)
    assert len(a.asked_models) == asked + 1
    world.gateway.chat(model="new")
    world.gateway.chat(model="new")
    assert len(a.calls) == 2


def test_a_question_to_a_backend_that_was_down_is_asked_anew_when_it_is_healthy() -> None:
    a = AskedBackend("a")
    a.silent = True
    world = World(a, start=False, a_models="auto")
    health = world.gateway.targets[0].health
    for _ in range(3):
        fails(health)
    world.start()
    assert len(a.asked_models) == 1 and not a.asked_models[0].called
    a.silent = False
    a.lists("x")
    health.succeeded()
    world.advance(1)
    assert len(a.asked_models) == 2 and a.asked_models[0].called  # the first is cancelled
    assert world.discovery.known() == {"a": True}


def test_an_answer_that_does_not_come_is_given_up() -> None:
    a, b = AskedBackend("a", "x", slots=1), AskedBackend("b", "y")
    a.silent = True
    world = World(a, b, a_models="auto", a_in_flight="auto", b_models="auto")
    world.advance(ANSWER_SECONDS - 1)
    assert not a.asked_models[0].called and not a.asked_slots[0].called
    world.advance(1)
    assert a.asked_models[0].called and a.asked_slots[0].called  # cancelled
    world.advance(RETRIED)
    assert len(a.asked_models) == len(a.asked_slots) == 2


def test_a_stop_cancels_what_is_being_asked_and_logs_nothing() -> None:
    a = AskedBackend("a", "x", slots=1)
    a.silent = True
    world = World(a, start=False, a_models="auto", a_in_flight="auto")
    world.discovery.check()
    with daemon_log() as lines:
        world.discovery.stop()
    assert a.asked_models[0].called and a.asked_slots[0].called and not lines
    assert not world.gateway.clock.getDelayedCalls()


def test_a_client_that_waits_for_the_list_and_the_discovery_share_one_request() -> None:
    a = AskedBackend("a", "x")
    a.silent = True
    world = World(a, a_models="auto")
    client = world.gateway.request("GET", "/v1/models")
    world.advance(3)
    assert Answer(client).code == "upstream_timeout" and not a.asked_models[0].called
    a.asked_models[0].callback({"x": {"id": "x"}})
    assert len(a.asked_models) == 1
    answer = Answer(world.gateway.request("GET", "/v1/models"))
    assert [entry["id"] for entry in answer.json["data"]] == ["x"]


def test_a_long_list_is_logged_in_part() -> None:
    a = AskedBackend("a", *(f"m{n}" for n in range(1000)))
    with daemon_log() as lines:
        World(a, a_models="auto")
    (line,) = lines
    assert line.startswith("backend a lists these models: m0, m1, ") and line.endswith("m19, ...")


# -- in_flight = auto ------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 4])
def test_a_backend_gets_as_many_requests_as_it_has_slots(slots: int) -> None:
    a, b = AskedBackend("a", slots=slots), AskedBackend("b")
    world = World(a, b, a_models="m", a_in_flight="auto", b_models="m", b_in_flight="100")
    for _ in range(20):
        world.gateway.chat(model="m")
    assert (len(a.calls), len(b.calls)) == (slots, 20 - slots)
    assert not b.asked_slots and not a.asked_models


def test_a_full_backend_without_another_one_is_an_error_at_once() -> None:
    a = AskedBackend("a", slots=1)
    world = World(a, a_in_flight="auto")
    world.gateway.chat()
    answer = Answer(world.gateway.chat())
    assert (answer.status, answer.code) == (503, "overloaded")


def test_a_backend_that_does_not_say_how_many_slots_it_has_is_not_limited() -> None:
    a = AskedBackend("a", slots=None)
    with daemon_log() as lines:
        world = World(a, a_in_flight="auto")
        for _ in range(20):
            world.gateway.chat()
        world.advance(3 * ASKED_AGAIN)
    assert len(a.calls) == 20
    assert lines == [
        "backend a does not say how many slots it has, so its requests are not limited"
    ]
    assert world.discovery.known() == {"a": True}


def test_a_failure_keeps_the_number_of_slots() -> None:
    a = AskedBackend("a", slots=1)
    world = World(a, a_in_flight="auto")
    a.said_slots = refused()
    with daemon_log() as lines:
        world.advance(5 * ASKED_AGAIN)
    assert lines == [
        "backend a did not say how many slots it has, its limit stays 1: "
        "The backend refused the connection."
    ]
    world.gateway.chat()
    assert Answer(world.gateway.chat()).code == "overloaded"
    a.said_slots = 2
    world.advance(ASKED_AGAIN)
    world.gateway.chat()
    assert len(a.calls) == 2


def test_a_fault_of_the_gateway_while_asking_is_logged_and_ends_nothing() -> None:
    class Broken(AskedBackend):
        def slots(self, request_id: str) -> Deferred[int | None]:
            raise KeyError("a fault of our own code")

    with capturedLogs() as events:
        world = World(Broken("a"), a_in_flight="auto")
        world.advance(3 * RETRIED)
    (failure,) = (event["log_failure"] for event in events if "log_failure" in event)
    assert isinstance(failure, Failure) and failure.check(KeyError)
    world.gateway.chat()
