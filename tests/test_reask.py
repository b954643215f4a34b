"""``reask = before-commit``: another backend is asked after one that may have run, in memory."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.web.http import PotentialDataLoss

from gatewayd.backend.interface import Clocks
from gatewayd.exchange import End
from gatewayd.wire import errors
from tests.memory import Answer, Asked, ClientTransport, FakeBackend, Gateway, chunk, completion
from tests.memory import settings as settings_of

CLOCKS = Clocks(first_byte=30, idle=10, total=200)


class World:
    """A gateway with some backends, which checks at each request that no other one is alive."""

    def __init__(
        self, count: int = 2, reask: bool = True, patience: float = 0, **values: str
    ) -> None:
        clocks = Clocks(CLOCKS.first_byte, CLOCKS.idle, CLOCKS.total, patience)
        self.backends = [FakeBackend(f"b{n}", clocks, reask) for n in range(count)]
        self.gateway = Gateway(*self.backends, settings=settings_of(**values))
        self.overlaps: list[str] = []
        for backend in self.backends:
            self._watch(backend)

    def _watch(self, backend: FakeBackend) -> None:
        send = backend.send

        def watched(*arguments: object) -> object:
            if self.alive:
                self.overlaps.append(f"{backend.name} was asked while {self.alive} was alive")
            return send(*arguments)  # type: ignore[arg-type]

        backend.send = watched  # type: ignore[method-assign, assignment]

    @property
    def calls(self) -> list[Asked]:
        return [call for backend in self.backends for call in backend.calls]

    @property
    def alive(self) -> list[str]:
        """The backends whose request was neither left nor has ended."""
        return [b.name for b in self.backends for call in b.calls if call.alive]

    def chat(self, stream: bool = True) -> ClientTransport:
        return self.gateway.chat(stream, model="m")

    def turn(self, seconds: float = 0) -> None:
        self.gateway.clock.advance(seconds)

    def call(self, number: int) -> Asked:
        """The last request of the backend with this number."""
        return self.backends[number].calls[-1]

    def asked(self) -> list[int]:
        """How many requests each backend has received."""
        return [len(backend.calls) for backend in self.backends]

    def tried(self) -> list[tuple[str, str, str]]:
        (exchange,) = self.gateway.ended
        return [(each.backend, each.end, each.code) for each in exchange.tried or ()]

    def check(self) -> None:
        """Nothing is left over, and no two executions were alive at one time."""
        assert self.overlaps == [] and not self.gateway.site.state.active
        assert [target.in_flight for target in self.gateway.targets] == [0] * len(self.backends)
        assert not self.alive


def good(call: Asked, stream: bool = True, head: bool = True) -> None:
    if stream:
        if head:
            call.head()
        call.event(chunk("a"))
        call.event(chunk(finish="stop"))
        call.event(b"[DONE]")
    else:
        call.whole(completion())


def reset(call: Asked) -> None:
    call.lose(errors.ConnectionReset("It closed."))


def bad_head(call: Asked) -> None:
    call.lose(errors.BadReply("No HTTP."))


def failed(status: int) -> Callable[[Asked], None]:
    def fail(call: Asked) -> None:
        call.whole(b'{"error":{"message":"no","code":"own"}}', status)

    return fail


def wrong_type(call: Asked) -> None:
    call.head(media_type="text/html")


def redirect(call: Asked) -> None:
    call.head(302, "text/html")


def broken_json(call: Asked) -> None:
    call.whole(b"{")


def half_a_document(call: Asked) -> None:
    call.head(media_type="application/json")
    call.send(b'{"choices"')
    call.end(errors.Truncated("Cut."))


def error_first(call: Asked) -> None:
    call.head()
    call.event(b'{"error":{"message":"no","code":"own"}}')


def empty_stream(call: Asked) -> None:
    call.head()
    call.send(b": comment\n\n")
    call.end()


def only_done(call: Asked) -> None:
    call.head()
    call.event(b"[DONE]")


def half_an_event(call: Asked) -> None:
    call.head()
    call.send(b"data: {")
    call.end(PotentialDataLoss())


STREAMS = [
    (reset, "upstream_reset"),
    (bad_head, "upstream_bad_response"),
    (failed(500), "own"),
    (failed(529), "own"),
    (failed(501), "own"),
    (failed(401), "upstream_auth"),
    (wrong_type, "upstream_bad_response"),
    (redirect, "upstream_bad_response"),
    (broken_json, "upstream_bad_response"),
    (half_a_document, "upstream_reset"),
    (error_first, "own"),
    (empty_stream, "upstream_bad_response"),
    (only_done, "upstream_bad_response"),
    (half_an_event, "upstream_bad_response"),
]
OF_STREAMS = (error_first, empty_stream, only_done, half_an_event)
DOCUMENTS = [each for each in STREAMS if each[0] not in OF_STREAMS]
ALL = [(True, *each) for each in STREAMS] + [(False, *each) for each in DOCUMENTS]
Fault = Callable[[Asked], None]


@pytest.mark.parametrize(("stream", "fault", "code"), ALL)
def test_a_backend_that_fails_before_commit_is_left_and_then_the_next_is_asked(
    stream: bool, fault: Fault, code: str
) -> None:
    world = World()
    client = world.chat(stream)
    fault(world.call(0))
    assert not world.alive and world.asked() == [1, 0]  # it is left first
    world.turn()
    assert world.asked() == [1, 1]
    good(world.call(1), stream)
    answer = Answer(client)
    assert answer.status == 200 and answer.complete
    assert answer.header("x-should-retry") is None
    (exchange,) = world.gateway.ended
    assert exchange.end is End.COMPLETE and exchange.backends == ["b0", "b1"]
    ((name, _, found),) = world.tried()
    assert name == "b0" and found in (code, "upstream_error")
    world.check()


@pytest.mark.parametrize(("stream", "fault", "code"), ALL)
def test_without_reask_no_other_backend_is_asked(stream: bool, fault: Fault, code: str) -> None:
    world = World(reask=False)
    client = world.chat(stream)
    fault(world.call(0))
    world.turn()
    assert world.asked() == [1, 0] and Answer(client).status >= 500
    assert Answer(client).header("x-should-retry") == "false"
    assert world.tried() == []
    world.check()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [400, 404, 408, 413, 422])
def test_a_4xx_is_the_answer(stream: bool, status: int) -> None:
    world = World()
    client = world.chat(stream)
    failed(status)(world.call(0))
    world.turn()
    assert (Answer(client).status, world.asked()) == (status, [1, 0])
    world.check()


def test_an_error_event_with_the_status_of_a_client_error_is_the_answer() -> None:
    world = World()
    client = world.chat()
    world.call(0).head()
    world.call(0).event(b'{"error":{"message":"too long","code":400}}')
    world.turn()
    assert (Answer(client).status, world.asked()) == (400, [1, 0])
    world.check()


def test_after_the_first_event_no_other_backend_is_asked() -> None:
    world = World()
    client = world.chat()
    world.call(0).head()
    world.call(0).event(chunk("a"))
    world.call(0).end(errors.Truncated("Cut."))
    world.turn()
    assert world.asked() == [1, 0] and not Answer(client).complete
    assert world.gateway.end is End.BACKEND_TRUNCATED
    world.check()


@pytest.mark.parametrize("more", [b"", b": comment\n\n"])
def test_a_backend_that_is_silent_for_first_byte_is_left(more: bytes) -> None:
    world = World(timeouts_ping="0")
    client = world.chat()
    world.call(0).head()
    if more:
        world.call(0).send(more)
    world.turn(CLOCKS.first_byte)
    assert world.call(0).left == "aborted" and world.asked() == [1, 1]
    good(world.call(1))
    assert Answer(client).complete and Answer(client).status == 200
    assert world.tried() == [("b0", "backend_timeout", "upstream_timeout")]
    world.check()


def test_a_document_that_stalls_is_asked_of_another_backend() -> None:
    world = World()
    client = world.chat(stream=False)
    world.call(0).head(media_type="application/json")
    world.call(0).send(b'{"choices"')
    world.turn(CLOCKS.idle)
    assert world.call(0).left == "aborted"
    world.turn()
    good(world.call(1), stream=False)
    assert Answer(client).status == 200
    world.check()


def test_total_and_the_clients_own_timeout_end_the_request() -> None:
    for headers, seconds in (({}, CLOCKS.total), ({"x-stainless-read-timeout": "20"}, 20)):
        world = World(timeouts_ping="0")
        world.backends[0].clocks = Clocks(total=CLOCKS.total)
        client = world.gateway.chat(True, headers, model="m")
        world.turn(seconds)
        world.turn()
        assert (Answer(client).status, world.asked()) == (504, [1, 0])
        world.check()


def test_the_head_of_an_error_is_enough_and_its_connection_is_closed() -> None:
    world = World()
    client = world.chat()
    world.call(0).head(500, "application/json")
    assert world.call(0).left == "aborted" and world.asked() == [1, 0]
    world.turn()
    good(world.call(1))
    assert Answer(client).status == 200
    world.check()


# -- how often -----------------------------------------------------------------------------------


@pytest.mark.parametrize("attempts", [1, 2, 3])
def test_attempts_bounds_the_backends_that_may_have_run(attempts: int) -> None:
    world = World(4, routing_attempts=str(attempts))
    client = world.chat()
    for number in range(attempts):
        reset(world.call(number))
        world.turn()
    assert world.asked() == [1] * attempts + [0] * (4 - attempts)
    answer = Answer(client)
    assert (answer.status, answer.code) == (502, "upstream_reset")
    assert answer.header("x-should-retry") == "false"
    world.check()


def test_backends_that_cannot_have_run_do_not_count() -> None:
    world = World(4)
    for backend in world.backends[:2]:
        backend.failing = [errors.Unreachable("No.")]
    client = world.chat()
    assert world.asked() == [1, 1, 1, 0]
    reset(world.call(2))
    world.turn()
    good(world.call(3))
    assert Answer(client).status == 200
    assert [name for name, _, _ in world.tried()] == ["b0", "b1", "b2"]
    world.check()


def test_a_request_that_may_have_run_tells_the_client_so_whatever_comes_last() -> None:
    for problem, status in (
        (errors.Unreachable("No."), 502),
        (errors.BackendFailed("Busy.", status=429), 429),
    ):
        world = World()
        client = world.chat()
        world.backends[1].failing = [problem]
        reset(world.call(0))
        world.turn()
        answer = Answer(client)
        assert (answer.status, answer.header("x-should-retry")) == (status, "false")
        assert len(world.tried()) == 2
        world.check()


def test_the_error_of_a_backend_that_answered_says_more() -> None:
    world = World()
    client = world.chat()
    world.backends[1].failing = [errors.Unreachable("No.")]
    failed(500)(world.call(0))  # its head is enough
    world.turn()
    assert (Answer(client).status, Answer(client).code) == (500, "upstream_error")
    world.check()


def test_the_setting_of_the_backend_that_failed_counts() -> None:
    world = World(3)
    world.backends[1].reask = False
    client = world.chat()
    reset(world.call(0))
    world.turn()
    reset(world.call(1))
    world.turn()
    assert world.asked() == [1, 1, 0] and Answer(client).status == 502
    world.check()


def test_nothing_is_asked_again_while_the_gateway_shuts_down() -> None:
    world = World()
    client = world.chat()
    world.gateway.site.state.draining = True
    reset(world.call(0))
    world.turn()
    assert world.asked() == [1, 0] and Answer(client).status == 502
    world.check()


# -- between two backends --------------------------------------------------------------------------


def test_a_client_that_leaves_between_two_backends_has_no_further_one_asked() -> None:
    world = World()
    client = world.chat()
    reset(world.call(0))
    client.leave()
    world.turn()
    assert world.asked() == [1, 0] and world.gateway.end is End.CLIENT_GONE
    world.check()


def test_a_stop_between_two_backends_ends_the_request() -> None:
    world = World()
    client = world.chat()
    reset(world.call(0))
    (exchange,) = world.gateway.site.state.active
    assert exchange.stop is not None
    exchange.stop(errors.Drained())
    world.turn()
    assert world.asked() == [1, 0] and Answer(client).code == "draining"
    world.check()


def test_a_backend_that_becomes_full_between_two_is_not_asked() -> None:
    world = World(backend_b1_url="http://127.0.0.1:1", backend_b1_in_flight="1")
    client = world.chat()
    reset(world.call(0))
    world.gateway.targets[1].in_flight += 1
    world.turn()
    world.gateway.targets[1].in_flight -= 1
    assert world.asked() == [1, 0]
    assert (Answer(client).status, Answer(client).header("x-should-retry")) == (502, "false")
    world.check()


# -- the ping --------------------------------------------------------------------------------------


def test_a_backend_that_fails_before_the_ping_is_replaced() -> None:
    world = World(timeouts_ping="1")
    client = world.chat()
    world.turn(0.5)
    reset(world.call(0))
    world.turn()
    good(world.call(1))
    answer = Answer(client)
    assert answer.status == 200 and b": ping" not in answer.body and answer.complete
    world.check()


@pytest.mark.parametrize(("fault", "code"), STREAMS)
def test_after_comments_alone_a_backend_is_replaced_as_well(fault: Fault, code: str) -> None:
    world = World(timeouts_ping="1")
    client = world.chat()
    world.turn(1)
    world.turn(1)
    assert Answer(client).status == 200 and Answer(client).payloads == []
    fault(world.call(0))
    world.turn()
    assert world.asked() == [1, 1]
    world.turn(1)  # another comment
    good(world.call(1))
    answer = Answer(client)
    assert answer.body.count(b": ping") == 3 and answer.complete
    assert answer.payloads[-1] == b"[DONE]" and len(answer.payloads) == 3
    assert world.gateway.end is End.COMPLETE
    world.check()


def test_after_comments_the_last_failure_is_an_error_event() -> None:
    world = World(timeouts_ping="1")
    client = world.chat()
    world.turn(1)
    reset(world.call(0))
    world.turn()
    failed(500)(world.call(1))
    world.turn()
    answer = Answer(client)
    assert json.loads(answer.payloads[-1])["error"]["code"] == "own" and not answer.complete
    world.check()


def test_after_comments_a_refusal_goes_to_the_next_backend_too() -> None:
    world = World(timeouts_ping="1")
    client = world.chat()
    world.turn(1)
    failed(503)(world.call(0))
    good(world.call(1))
    assert Answer(client).complete and world.gateway.end is End.COMPLETE
    world.check()


def test_a_slow_client_pauses_the_backend_that_replaced_the_first() -> None:
    world = World(timeouts_ping="1")
    client = world.chat()
    world.turn(1)
    reset(world.call(0))
    world.turn()
    world.call(1).head()
    producer = client.producer
    assert producer is not None
    producer.pauseProducing()
    assert world.call(1).paused
    producer.resumeProducing()
    assert not world.call(1).paused
    good(world.call(1), head=False)
    assert Answer(client).complete
    world.check()


# -- patience --------------------------------------------------------------------------------------


def test_a_backend_that_takes_longer_than_its_patience_is_left_for_another() -> None:
    world = World(patience=5)
    client = world.chat()
    world.call(0).head()
    world.turn(4)
    assert world.asked() == [1, 0]
    world.turn(1)
    assert world.call(0).left == "aborted" and world.asked() == [1, 1]
    good(world.call(1))
    assert Answer(client).complete
    assert world.tried() == [("b0", "backend_timeout", "patience")]
    world.check()


def test_content_ends_the_patience() -> None:
    world = World(patience=5)
    client = world.chat()
    world.call(0).head()
    world.call(0).event(chunk("a"))
    world.turn(6)
    world.turn()
    assert world.asked() == [1, 0]
    world.call(0).event(chunk(finish="stop"))
    world.call(0).event(b"[DONE]")
    assert Answer(client).complete
    world.check()


@pytest.mark.parametrize("count", [1, 2])
def test_where_no_other_backend_can_be_asked_the_wait_goes_on(count: int) -> None:
    world = World(count, patience=5)
    for target in world.gateway.targets[1:]:
        target.health.check_loading()
    client = world.chat()
    for _ in range(5):
        world.turn(5)
    assert world.asked() == [1, 0][:count] and world.call(0).left is None
    good(world.call(0))
    assert Answer(client).complete
    world.check()


def test_patience_does_not_turn_a_slow_reply_into_an_error() -> None:
    """The backend that was left is asked again if no other one can be reached."""
    world = World(patience=5)
    client = world.chat()
    world.backends[1].failing = [errors.Unreachable("No.")]
    world.turn(5)
    world.turn()
    assert world.asked() == [2, 1]
    world.turn(10)  # the second time it may take long
    good(world.call(0))
    assert Answer(client).complete
    assert [name for name, _, _ in world.tried()] == ["b0", "b1"]
    world.check()


def test_the_last_attempt_may_take_as_long_as_first_byte() -> None:
    world = World(3, patience=5, timeouts_ping="0")
    client = world.chat()
    world.turn(5)
    world.turn()
    for _ in range(5):
        world.turn(5)
    assert world.asked() == [1, 1, 0]
    world.turn(5)
    assert (Answer(client).status, Answer(client).code) == (504, "upstream_timeout")
    assert Answer(client).header("x-should-retry") == "false"
    world.check()


def test_the_overall_clock_runs_on() -> None:
    world = World(patience=5, timeouts_ping="0")
    for backend in world.backends:
        backend.clocks = Clocks(total=8, patience=5)
    client = world.chat()
    world.turn(5)
    world.turn()
    world.turn(3)
    assert Answer(client).status == 504 and world.asked() == [1, 1]
    world.check()


@pytest.mark.parametrize(("patience", "healthy"), [(1, True), (5, False)])
def test_a_backend_that_was_left_counts_as_one_whose_client_gave_up(
    patience: float, healthy: bool
) -> None:
    world = World(patience=patience)
    for _ in range(3):
        for target in world.gateway.targets[1:]:
            target.turn, target.in_flight = 10**6, 50
        world.chat()
        world.turn(patience)
        world.turn()
        good(world.call(1))
    assert world.asked() == [3, 3]
    assert world.gateway.targets[0].health.usable is healthy
    assert world.gateway.targets[0].health.usable_as_last_resort  # it is not dead


# -- whatever comes --------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, len(STREAMS)), st.integers(0, 2)), min_size=6, max_size=6))
def test_promise_6_no_two_executions_are_alive_at_one_time(
    plan: list[tuple[int, int]],
) -> None:
    world = World(5, patience=4, timeouts_ping="2", routing_attempts="3")
    client = world.chat()
    for fault, wait in plan:
        world.turn(wait)
        world.turn()
        alive = [call for call in world.calls if call.alive]
        if not alive:
            break
        (call,) = alive
        (STREAMS[fault][0] if fault < len(STREAMS) else good)(call)
    world.turn(CLOCKS.total)
    world.turn()
    (exchange,) = world.gateway.ended
    answer = Answer(client)
    assert answer.complete is (exchange.end is End.COMPLETE) or answer.status != 200
    assert sum(world.asked()) <= 3
    world.check()
