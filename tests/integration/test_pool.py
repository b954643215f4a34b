"""Reuse of backend connections, and the few cases in which a request is sent again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests import faultbackend_faults
from tests.certificates import certificate
from tests.faultbackend import FaultBackend, blackhole
from tests.integration.client import Answer, ask
from tests.integration.expectations import Case, Err, Whole, attempts_of, check, play, spread
from tests.integration.gateways import CONNECT, FIRST_BYTE, PATIENT, FastGateway, watched
from tests.integration.processes import wait_for

STREAM = pytest.mark.parametrize("stream", [False, True], ids=["json", "sse"])
WHOLE = Whole()
RESET = Err(502, "upstream_reset")


#: Idle seconds between rounds of requests to a backend that closes connections after 1 s.
ROUNDS = (0.9, 0.97, 0.98, 0.99, 0.995, 1.0, 1.005, 1.01, 1.02, 1.1)
LANES = 16


@pytest.fixture(scope="module", autouse=True)
def idle_closer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Future[str]]:
    """A backend that closes idle connections after 1 s; runs while the other tests do."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(close_idle_connections, tmp_path_factory.mktemp("idle"))


def close_idle_connections(folder: Path) -> str:
    """Send rounds of :data:`LANES` concurrent requests, to have as many idle connections."""
    with (
        FaultBackend(keep_alive_seconds=1) as sim,
        watched(FastGateway(folder, sim.url), sim, warm=False) as daemon,
        ThreadPoolExecutor(LANES) as pool,
    ):
        answers = []
        for turn, seconds in enumerate(ROUNDS):
            lane = partial(ask, daemon, "slow-first-byte:0.05", turn % 2 == 0)
            answers += [future.result() for future in [pool.submit(lane) for _ in range(LANES)]]
            time.sleep(seconds)
        return report("closes idle connections after 1 s", sim, answers)


# -- connections that are used again ---------------------------------------------------------------


@STREAM
@pytest.mark.parametrize("how", ["rst", "fin"])
def test_an_idle_connection_that_dies_is_replaced(
    gateway: FastGateway, sim: FaultBackend, how: str, stream: bool
) -> None:
    first = play(gateway, sim, f"stale-next:{how}", stream)
    check(first, WHOLE)
    second = play(gateway, sim, "", stream)
    check(second, WHOLE, attempts=2)
    assert [record.killed for record in second.records] == [True, False]
    assert second.records[0].connection == first.record.connection


@STREAM
def test_it_is_replaced_once_only(gateway: FastGateway, sim: FaultBackend, stream: bool) -> None:
    first = play(gateway, sim, "", stream)
    check(first, WHOLE)
    case = play(gateway, sim, "reset-after-request", stream)
    check(case, RESET, attempts=2)
    kept, fresh = case.records
    assert kept.connection == first.record.connection != fresh.connection


@STREAM
def test_a_request_that_may_have_been_executed_is_not_sent_again(
    gateway: FastGateway, sim: FaultBackend, stream: bool
) -> None:
    """The connection fails later than a closed idle connection would."""
    check(play(gateway, sim, "", stream), WHOLE)
    check(play(gateway, sim, "slow-first-byte:1.2+reset-after-request", stream), RESET)


@STREAM
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("flaky:1:503", Err(503, "", passed=True, ran=False)),
        ("flaky:1:500", Err(500, "", passed=True)),
        ("flaky:1:429", Err(429, "", "refused", passed=True, ran=False)),
        ("flaky:1:reset-mid-headers", RESET),
    ],
    ids=["503", "500", "429", "reset-mid-headers"],
)
def test_one_backend_is_asked_once(
    gateway: FastGateway, sim: FaultBackend, fault: str, expected: Err, stream: bool
) -> None:
    check(play(gateway, sim, fault, stream), expected)


def test_a_backend_that_hangs_is_asked_once(gateway: FastGateway, sim: FaultBackend) -> None:
    late = Err(504, "upstream_timeout", "backend_timeout", at=FIRST_BYTE)
    with ThreadPoolExecutor(2) as pool:
        cases = list(pool.map(partial(play, gateway, sim, "flaky:1:hang"), (False, True)))
    for case in cases:
        check(case, late)


def test_requests_with_one_id_are_logged_separately(
    gateway: FastGateway, sim: FaultBackend
) -> None:
    for stream in (False, True, False):
        assert ask(gateway, "", stream, id="same-id").status == 200
    assert attempts_of(sim)["same-id"] == 3
    wait_for(lambda: len(gateway.lines()["same-id"]) == 3, 2, "three lines")


def test_a_hundred_connections_serve_two_hundred_requests(tmp_path: Path) -> None:
    with (
        FaultBackend() as sim,
        watched(FastGateway(tmp_path, sim.url, **PATIENT), sim) as daemon,
        ThreadPoolExecutor(100) as pool,
    ):
        for _ in range(2):
            cases = list(
                pool.map(lambda _: play(daemon, sim, "slow-first-byte:0.5", False), range(100))
            )
            for case in cases:
                WHOLE.check(case)
        assert sim.connections_total <= 100


def test_the_newest_idle_connection_is_used(gateway: FastGateway, sim: FaultBackend) -> None:
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda _: ask(gateway, "slow-first-byte:0.2"), range(20)))
    used = {play(gateway, sim, "", False).record.connection for _ in range(10)}
    assert len(used) == 1


@STREAM
@pytest.mark.parametrize(
    "fault", ["status:500:huge", "redirect:302", "huge:9MB+json-for-sse", "surplus", "eof-body"]
)
def test_a_connection_is_not_kept(
    gateway: FastGateway, sim: FaultBackend, fault: str, stream: bool
) -> None:
    case = play(gateway, sim, fault, stream)
    (connection,) = [c for c in sim.connections if c.number == case.record.connection]
    wait_for(lambda: connection.closed, 1, f"the end of {connection}")
    check(play(gateway, sim, "", stream), WHOLE)


@STREAM
def test_it_is_used_again_over_tls(tmp_path: Path, stream: bool) -> None:
    pair = certificate(tmp_path, "sim")
    with (
        FaultBackend(tls=pair) as sim,
        watched(FastGateway(tmp_path, sim.url, tls_ca=pair[0]), sim, warm=False) as daemon,
    ):
        for _ in range(3):  # one when that before it is at its end for everybody
            check(play(daemon, sim, "", stream), WHOLE)
        assert sim.connections_total == 1
        for how in ("rst", "fin"):
            check(play(daemon, sim, f"stale-next:{how}", stream), WHOLE)
            check(play(daemon, sim, "", stream), WHOLE, attempts=2)


def test_a_connection_with_surplus_bytes_in_the_same_segment_is_not_kept(
    gateway: FastGateway, sim: FaultBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes after a reply are never used, however early they arrive."""
    body = b'{"id":"x","object":"chat.completion","choices":[{"index":0,"finish_reason":"stop"}]}'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    data = head % len(body) + body + faultbackend_faults.SURPLUS
    send = partial(faultbackend_faults.instead, data=data)
    monkeypatch.setitem(faultbackend_faults.FAULTS, "one-segment", send)
    case = play(gateway, sim, "one-segment", False)
    assert (case.answer.status, case.answer.json()["object"]) == (200, "chat.completion")
    assert b"stolen" not in case.answer.body
    (connection,) = [c for c in sim.connections if c.number == case.record.connection]
    wait_for(lambda: connection.closed, 1, f"the end of {connection}")
    check(play(gateway, sim, "", False), WHOLE)


# -- backends that close connections ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sim"),
    [
        ("closes after each reply", FaultBackend(close_after_reply=True)),
        ("closes after 100 replies", FaultBackend(max_requests=100)),
        ("announces both", FaultBackend(max_requests=7, advertise_keep_alive=True)),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_backends_that_close_connections(name: str, sim: FaultBackend, tmp_path: Path) -> None:
    with (
        sim,
        watched(FastGateway(tmp_path, sim.url), sim) as daemon,
        ThreadPoolExecutor(20) as pool,
    ):
        sim.reset()
        answers = list(pool.map(lambda n: ask(daemon, "", stream=n % 2 == 0), range(300)))
        print(report(name, sim, answers))
        if not sim.close_after_reply:
            assert not [record for record in sim.records if record.killed]
            assert set(attempts_of(sim).values()) == {1}
        daemon.check_health()


def test_backends_that_close_idle_connections(idle_closer: Future[str]) -> None:
    """It closes without notice after 1 s, just when the next request is sent."""
    print(idle_closer.result())


def report(name: str, sim: FaultBackend, answers: list[Answer]) -> str:
    """Check that no client got an error; print how many requests the backend saw twice."""
    wrong = [answer for answer in answers if (answer.status, answer.whole) != (200, True)]
    assert wrong == []
    attempts = attempts_of(sim)
    done = [record for record in sim.records if record.done]
    assert len(done) == len(answers)  # however often it was asked, each was answered once
    assert max(attempts.values()) <= 2
    return (
        f"\n{name}: {len(answers)} requests, {len(wrong)} errors, "
        f"{sum(attempts.values()) - len(answers)} sent twice, "
        f"{sim.connections_total} connections"
    )


# -- backends that are down ------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["down", "reset"])
def test_a_backend_that_is_down_gets_few_requests(mode: str, tmp_path: Path) -> None:
    sim = FaultBackend(on_accept="reset").start()
    try:
        if mode == "down":
            sim.stop()
        with (
            watched(FastGateway(tmp_path, sim.url)) as daemon,
            ThreadPoolExecutor(200) as pool,
        ):
            before = daemon.cpu_seconds()
            answers = list(pool.map(lambda n: ask(daemon, "", stream=n % 2 == 0), range(500)))
            assert {answer.status for answer in answers} == {502}
            assert sim.connections_total <= 500
            used = daemon.cpu_seconds() - before
            print(f"\n{mode}: {used / 500 * 1000:.1f} ms of CPU time for each request")
            idle = daemon.cpu_seconds()
            time.sleep(0.5)
            assert daemon.cpu_seconds() - idle < 0.1
            daemon.check_health()
    finally:
        sim.stop()


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[FaultBackend, FaultBackend]]:
    with FaultBackend() as first, FaultBackend() as second:
        yield first, second


@pytest.fixture(scope="module")
def two(
    pair: tuple[FaultBackend, FaultBackend], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FastGateway]:
    """A gateway with two backends."""
    first, second = pair
    folder = tmp_path_factory.mktemp("two")
    with watched(FastGateway(folder, first.url, second.url), first, second) as daemon:
        yield daemon


@STREAM
@pytest.mark.parametrize("kind", ["503", "429", "huge-503"])
def test_the_second_backend_is_asked_when_the_first_refuses(
    two: FastGateway,
    pair: tuple[FaultBackend, FaultBackend],
    kind: str,
    stream: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    huge = partial(faultbackend_faults.status, code=503, kind="huge")
    monkeypatch.setitem(faultbackend_faults.FAULTS, "huge-503", huge)
    case = play_flaky(two, pair, kind, stream)
    check(case, WHOLE)
    assert len(pair[0].records_for(case.answer.id)) == 1
    assert two.line(case.answer.id)["backend"] == ["b0", "b1"]


@STREAM
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("500", Err(500, "", passed=True)),
        ("400", Err(400, "", "refused", passed=True, ran=False)),
        ("422", Err(422, "", "refused", passed=True, ran=False)),
        ("reset-mid-headers", RESET),
        ("garbage", Err(502, "upstream_bad_response")),
    ],
    ids=["500", "400", "422", "reset-mid-headers", "garbage"],
)
def test_the_second_backend_is_not_asked_when_the_first_may_have_run(
    two: FastGateway,
    pair: tuple[FaultBackend, FaultBackend],
    kind: str,
    expected: Err,
    stream: bool,
) -> None:
    """Promise 6. A request that one backend rejects is not sent to another."""
    first, second = pair
    case = play_flaky(two, pair, kind, stream)
    check(Case(two, first, stream, case.answer), expected)
    assert second.records_for(case.answer.id) == []


def play_flaky(
    daemon: FastGateway, pair: tuple[FaultBackend, FaultBackend], kind: str, stream: bool
) -> Case:
    """Play a fault of the first backend only."""
    # It must be healthy, or it would get no request.
    wait_for(lambda: first_is_asked(daemon), 20, "the first backend's recovery")
    second = pair[1]
    id = f"two-{kind}-{stream}"
    second.flaky_seen[id] = 1
    return Case(daemon, second, stream, ask(daemon, f"flaky:1:{kind}", stream, id=id, model=None))


def first_is_asked(daemon: FastGateway) -> bool:
    answer = ask(daemon, model=None)
    return answer.status == 200 and daemon.line(answer.id)["backend"] == ["b0"]


def test_the_second_backend_is_asked_when_the_first_cannot_be_reached(tmp_path: Path) -> None:
    """One backend has a closed port, the other does not answer a SYN."""
    with blackhole() as port, FaultBackend() as sim, FaultBackend() as closed:
        closed.stop()
        for name, url, limit in (
            ("closed", closed.url, 0.1),
            ("no-syn", f"http://127.0.0.1:{port}", CONNECT + 0.1),
        ):
            folder = tmp_path / name
            folder.mkdir()
            with watched(FastGateway(folder, url, sim.url), sim, warm=False) as daemon:
                for stream in (False, True):
                    case = Case(daemon, sim, stream, ask(daemon, "", stream, model=None))
                    check(case, WHOLE)
                    assert case.answer.seconds < limit + 0.3
                    assert daemon.line(case.answer.id)["backend"] == ["b0", "b1"]


def test_a_backend_that_is_back_is_used_again(tmp_path: Path) -> None:
    """All backends are down."""
    with (
        FaultBackend() as first,
        FaultBackend() as second,
        watched(FastGateway(tmp_path, first.url, second.url), first, second) as daemon,
    ):
        first.stop()
        answers = [ask(daemon, "", stream) for stream in (False, True) * 10]
        assert {answer.status for answer in answers} == {200}
        assert not [a for a in answers if a.seconds > 0.5]
        print(f"\none of two backends down: {spread([a.seconds for a in answers])} ms")
        second.stop()
        for stream in (False, True):
            check(
                play(daemon, second, "", stream),
                Err(502, "upstream_unreachable", "backend_unreachable", ran=False),
                attempts=0,
            )
        first.start()
        wait_for(lambda: ask(daemon).status == 200, 30, "the first backend's return")
        second.start()
