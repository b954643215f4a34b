"""Backends that fail before, during and after their reply, and what the client receives.

Each row of a table is one fault, played with a JSON reply and with an event stream. Slow rows (they
end by a clock) are played concurrently, in the background.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.certificates import certificate
from tests.faultbackend import FaultBackend, blackhole
from tests.integration.client import Client, ask
from tests.integration.expectations import (
    Case,
    Cut,
    Err,
    Expectation,
    Whole,
    check,
    check_error,
    play,
)
from tests.integration.gateways import (
    CONNECT,
    FIRST_BYTE,
    IDLE,
    MAX_REPLY,
    MIB,
    PATIENT,
    TOTAL,
    FastGateway,
    watched,
)
from tests.integration.healthprobe import HealthProbe, stolen_seconds
from tests.integration.processes import wait_for

WHOLE = Whole()
BAD = Err(502, "upstream_bad_response")
RESET = Err(502, "upstream_reset")
TRUNCATED = Err(502, "upstream_reset", "backend_truncated")
LATE = Err(504, "upstream_timeout", "backend_timeout", at=FIRST_BYTE)
STALLED = attrs.evolve(LATE, at=IDLE)
CUT = Cut(2, "upstream_reset")
CUT_BAD = Cut(2, "upstream_bad_response", "backend_error")
CUT_STALLED = Cut(2, "upstream_timeout", "backend_timeout", at=IDLE)


@attrs.frozen
class Row:
    """One fault, and the expectation with ``stream`` false and true; None = not played.

    :param slow: play the row in the background although its expectation has no time.
    """

    id: str
    fault: str
    json: Expectation | None
    sse: Expectation | None
    slow: bool = False

    def is_slow(self, expected: Expectation) -> bool:
        return self.slow or expected.at > 0


def both(id: str, fault: str, expected: Expectation, slow: bool = False) -> Row:
    return Row(id, fault, expected, expected, slow)


def passed(status: int) -> Err:
    return Err(
        status,
        "",
        "refused" if status < 500 else "backend_error",
        passed=True,
        ran=status >= 500 and status != 503,
    )


def replaced(status: int) -> Err:
    return attrs.evolve(passed(status), code="upstream_error", passed=False)


ROWS = [
    # The head of the reply.
    both("reply-hang", "hang", LATE),
    both("reply-head-without-content", f"head-immediately:{FIRST_BYTE + 2}", LATE),
    Row("reply-head-and-comments", f"head-immediately:{FIRST_BYTE + 2}:0.2", None, LATE),
    both("reply-garbage", "garbage", BAD),
    both("reply-http09", "http09", BAD),
    both("reply-reset-mid-headers", "reset-mid-headers", RESET),
    both("reply-close-mid-headers", "close-mid-headers", RESET),
    both("reply-stall-mid-headers", "stall-mid-headers", LATE),
    both("reply-100", "1xx", WHOLE),
    both("reply-five-103", "1xx:103:5", WHOLE),
    both("reply-1xx-flood", "1xx-flood", LATE),
    both("reply-switch", "switch", BAD),
    both("reply-huge-header", "huge-header:64KB", BAD),
    both("reply-many-headers", "many-headers:5000", BAD),
    both("reply-endless-headers", "endless-headers", BAD),
    *[both(f"reply-{code}", f"redirect:{code}", BAD) for code in (301, 302, 303, 304, 307, 308)],
    both("reply-elsewhere", "redirect:302:http://169.254.169.254/", BAD),
    *[
        both(f"reply-{code}", f"status:{code}", passed(code))
        for code in (400, 404, 413, 422, 429, 500, 503, 529)
    ],
    *[
        both(f"reply-{code}-{kind}", f"status:{code}:{kind}", replaced(code))
        for code in (400, 404, 413, 422, 429, 500, 503, 529)
        for kind in ("html", "text", "empty")
    ],
    both("reply-huge", "status:500:huge", replaced(500)),
    both("reply-its-own-401", "401-upstream", Err(502, "upstream_auth")),
    # A whole JSON body.
    Row("reply-reset-mid-body", "reset-mid-body", TRUNCATED, None),
    Row("reply-close-mid-body", "close-mid-body", TRUNCATED, None),
    Row("reply-chunked-truncated", "chunked-truncated", TRUNCATED, None),
    Row("reply-stall-mid-body", "stall-mid-body", STALLED, None),
    Row("reply-bad-chunk", "bad-chunk", BAD, None),
    Row("JSON-huge-trailer", "huge-trailer", BAD, None),
    Row("JSON-huge-extension", "huge-extension", BAD, None),
    Row("reply-until-close", "eof-body", WHOLE, WHOLE),
    Row("reply-until-close-too-early", "eof-body+end-after:2", TRUNCATED, CUT),
    *[
        both(f"reply-{kind}", f"json-body:{kind}", BAD)
        for kind in (
            "text", "null", "array", "string", "truncated", "empty", "shape", "noct", "nan",
            "bad-utf8", "deep",
        )
    ],
    both("reply-error200", "json-body:error200", Err(502, "", passed=True)),
    both("reply-gzip", "gzip", BAD),
    both("reply-br", "enc:br", BAD),
    *[both(f"reply-gzip-{how}", f"gzip-bad:{how}", BAD) for how in ("garbage", "crc", "truncated")],
    Row("reply-slow-bytes", "drip:1:0.008", WHOLE,
        Cut(None, "upstream_timeout", "backend_timeout", at=TOTAL), slow=True),
    Row("reply-too-slow-in-all", "drip:1:0.02",
        Err(504, "upstream_timeout", "backend_timeout", at=TOTAL), None),
    both("reply-slow-pieces", "drip:250:0.5", WHOLE, slow=True),
    both("reply-slow-first-byte", "slow-first-byte:2", WHOLE, slow=True),
    Row("reply-sse-for-json", "sse-for-json", BAD, WHOLE),
    both("reply-html", "ct:text/html", BAD),
    # The bytes of an event stream.
    both("stream-plain", "", WHOLE),
    both("stream-coalesce", "coalesce", WHOLE),
    both("stream-split-event", "split-event", WHOLE),
    both("stream-bytes", "bytes", WHOLE),
    both("stream-drip", "drip:7:0.001", WHOLE, slow=True),
    *[
        both(f"stream-{fault.replace(':', '-')}", fault, WHOLE)
        for fault in ("utf8", "split-utf8", "utf8+split-utf8", "utf8+drip:1:0",
                      "split-utf8+drip:1:0")
    ],
    *[
        both(f"stream-{fault}", fault, WHOLE)
        for fault in ("crlf", "cr", "no-space", "bom", "fields", "comments")
    ],
    both("stream-crlf-drip", "crlf+drip:1:0.001", WHOLE, slow=True),
    both("stream-multi-data", "multi-data", Whole(spaced=True)),
    both("stream-all-at-once", "bom+cr+fields+comments+drip:1:0", WHOLE),
    both("stream-no-done", "no-done", WHOLE),
    Row("stream-end-after", "end-after:2", None, CUT),
    Row("stream-close-mid-body", "close-mid-body:2", None, CUT),
    Row("stream-reset-mid-body", "reset-mid-body:2", None, CUT),
    Row("stream-chunked-truncated", "chunked-truncated:2", None, CUT),
    Row("stream-bad-chunk", "bad-chunk", None, Cut(2, "upstream_bad_response|upstream_reset")),
    Row("SSE-huge-trailer", "huge-trailer", None, Cut(2, "upstream_bad_response")),
    Row("SSE-huge-extension", "huge-extension", None, Cut(2, "upstream_bad_response")),
    Row("stream-until-close", "eof-body+end-after:3", None, Cut(3, "upstream_reset")),
    Row("stream-before-the-first-event", "close-mid-body:0", TRUNCATED, TRUNCATED),
    Row("stream-stall-after", "stall-after:2", STALLED, CUT_STALLED),
    Row("stream-stall-mid-event", "stall-mid-body:2", None, CUT_STALLED),
    Row("stream-stall-mid-first-event", "stall-mid-body:0", LATE, STALLED),
    Row("stream-pause", f"pause:1:{IDLE - 0.5}", WHOLE, WHOLE, slow=True),
    Row("stream-error-event", "error-event:2", WHOLE,
        Cut(2, "", "backend_error", passed=True)),
    Row("stream-error-and-done", "error-then-done:2", WHOLE,
        Cut(2, "", "backend_error", passed=True)),
    both("stream-surrogates", "surrogate-event", WHOLE),
    both("stream-tools", "tools", WHOLE),
    both("stream-usage-on-finish", "usage:finish", WHOLE),
    Row("stream-empty-stream", "empty-stream", WHOLE, BAD),
    Row("stream-comment-only", "comment-only", WHOLE, LATE),
    Row("pings-in-place-of-a-reply", "pings:0", WHOLE, LATE),
    Row("pings-after-two-events", "pings:2", WHOLE, CUT_STALLED),
    Row("chunks-without-text-after-two-events", "empty-chunks:2", WHOLE,
        Cut(None, "upstream_timeout", "backend_timeout")),
    both("null-in-place-of-the-first-event", "null-first", WHOLE),
    Row("a-document-with-an-open-choice", "json-for-sse+two-choices:open", WHOLE, TRUNCATED),
    Row("stream-huge-event", "huge-event:900KB", WHOLE, WHOLE),
    # Other promises of docs/protocol.rst.
    Row("promise-3-done-with-an-open-choice", "done-early:2", WHOLE, CUT),
    Row("promise-3-one-choice-of-two-open", "two-choices:open", WHOLE,
        Cut(None, "upstream_reset")),
    both("promise-3-two-choices", "two-choices", WHOLE),
    both("promise-3-empty-finish-reasons", "finish-empty", WHOLE),
    both("promise-3-nothing-behind-done", "after-done", WHOLE),
    Row("promise-3-an-event-that-is-no-json", "not-json:2", WHOLE, CUT_BAD),
    Row("promise-3-first-event-is-no-json", "not-json:0", WHOLE, BAD),
    both("agent-surplus", "surplus", WHOLE),
    both("agent-later-surplus", "surplus:0.05", WHOLE),
    *[
        both(f"agent-connection-{value.replace(', ', '-')}", f"conn-close-spelling:{value}", WHOLE)
        for value in ("close", "Close", "CLOSE, X", "X, close", "keep-alive, close")
    ],
]  # fmt: skip

CASES = [
    pytest.param(row, stream, id=f"{row.id}-{'sse' if stream else 'json'}")
    for row in ROWS
    for stream in (False, True)
    if (row.sse if stream else row.json) is not None
]


Played = dict[tuple[str, bool], "Future[Case]"]


@pytest.fixture(scope="module")
def slow(
    request: pytest.FixtureRequest, gateway: FastGateway, sim: FaultBackend
) -> Iterator[Played]:
    """The slow rows of this run, all of which are being played."""
    wanted = {
        (callspec.params["row"], callspec.params["stream"])
        for item in request.session.items
        if (callspec := getattr(item, "callspec", None))
        and "row" in callspec.params
        and item.path == request.path
    }
    with ThreadPoolExecutor(64) as pool:
        yield {
            (row.id, stream): pool.submit(play, gateway, sim, row.fault, stream)
            for row, stream in wanted
            if (expected := row.sse if stream else row.json) and row.is_slow(expected)
        }


@pytest.mark.parametrize(("row", "stream"), CASES)
def test_a_failing_backend(
    gateway: FastGateway, sim: FaultBackend, slow: Played, row: Row, stream: bool
) -> None:
    expected = row.sse if stream else row.json
    assert expected
    played = slow.get((row.id, stream))
    check(played.result() if played else play(gateway, sim, row.fault, stream), expected)
    assert sim.redirect_hits == 0


def test_a_json_reply_to_a_stream_request_becomes_a_stream(
    gateway: FastGateway, sim: FaultBackend
) -> None:
    """JSON is never sent as an event stream."""
    case = play(gateway, sim, "json-for-sse", True)
    *chunks, done = case.answer.payloads()
    sent = json.loads(case.record.want_json_as(case.answer.id))
    chunk = json.loads(chunks[0])
    assert done == b"[DONE]"
    assert (chunk["id"], chunk["object"]) == (case.answer.id, "chat.completion.chunk")
    assert chunk["choices"][0]["delta"] == sent["choices"][0]["message"]
    assert chunk["choices"][0]["finish_reason"] == "stop"
    assert case.answer.whole and gateway.line(case.answer.id)["end"] == "complete"


@pytest.mark.parametrize("fault", ["error-event:0", "error-then-done:0"])
def test_a_stream_that_begins_with_an_error_is_an_http_error(
    gateway: FastGateway, sim: FaultBackend, fault: str
) -> None:
    case = play(gateway, sim, fault, True)
    answer = case.answer
    assert (answer.status, answer.whole) == (502, True)
    assert answer.header("content-type") == ["application/json"]
    assert answer.json()["error"]["message"] == "sim failed on the way"
    assert gateway.line(answer.id)["end"] == "backend_error"


def test_a_reply_ends_with_done_although_the_backend_lingers(
    gateway: FastGateway, sim: FaultBackend
) -> None:
    case = play(gateway, sim, "done-linger:1.5", True)
    check(case, WHOLE)
    assert case.answer.last_at - case.record.sent_times[-1] < 0.25


def test_tokens_arrive_one_by_one(gateway: FastGateway, sim: FaultBackend) -> None:
    waited = stolen_seconds(gateway.pid)
    case = play(gateway, sim, "tokens:20:0.1", True)
    check(case, WHOLE)
    tokens = slice(1, 21)  # the first event is the role, the last the end
    arrivals = case.answer.arrivals[tokens]
    late = [a - s for a, s in zip(arrivals, case.record.sent_times[tokens], strict=True)]
    assert statistics.median(late) < 0.02
    assert max(late) < 0.1 + stolen_seconds(gateway.pid) - waited
    assert len(set(arrivals)) == 20


def test_many_streams_at_once_stay_apart(tmp_path: Path) -> None:
    with (
        FaultBackend() as sim,
        watched(FastGateway(tmp_path, sim.url, **PATIENT), sim) as daemon,
        ThreadPoolExecutor(100) as pool,
    ):
        cases = list(pool.map(lambda _: play(daemon, sim, "tokens:200", True), range(100)))
    for case in cases:
        WHOLE.check(case)
        assert len(case.records) == 1
    assert len({case.answer.id for case in cases}) == 100


# -- no connection -------------------------------------------------------------------------------


UNREACHABLE = Err(502, "upstream_unreachable", "backend_unreachable", ran=False)


@pytest.fixture(scope="module")
def door() -> Iterator[FaultBackend]:
    """A backend with faults of its port, and with a new connection for each request."""
    with FaultBackend(max_requests=1) as backend:
        yield backend


@pytest.fixture(scope="module")
def before_door(
    door: FaultBackend, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FastGateway]:
    with watched(FastGateway(tmp_path_factory.mktemp("door"), door.url), door) as daemon:
        yield daemon


@pytest.fixture
def closed(door: FaultBackend, before_door: FastGateway) -> Iterator[FaultBackend]:
    door.stop()
    try:
        yield door
    finally:
        door.start()


UNSENT: dict[str, Any] = {"end": "backend_unreachable", "ran": False}
STREAM = pytest.mark.parametrize("stream", [False, True], ids=["json", "sse"])


@STREAM
def test_a_closed_port(before_door: FastGateway, closed: FaultBackend, stream: bool) -> None:
    case = play(before_door, closed, "", stream)
    check(case, UNREACHABLE, attempts=0)
    assert case.answer.seconds < 0.2 + 0.3


@STREAM
@pytest.mark.parametrize("fault", ["reset-after-request", "close-after-request"])
def test_a_fresh_connection_that_dies(
    before_door: FastGateway, door: FaultBackend, fault: str, stream: bool
) -> None:
    """The backend may have executed the request, so it is not sent again."""
    check(play(before_door, door, fault, stream), RESET, attempts=1)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("reset", Err(502, "upstream_reset|upstream_unreachable")),
        ("close", Err(502, "upstream_reset|upstream_unreachable")),
        ("ssh-banner", BAD),
        ("garbage", BAD),
    ],
)
def test_a_port_that_speaks_no_http(
    before_door: FastGateway, door: FaultBackend, mode: str, expected: Err
) -> None:
    door.on_accept = mode
    try:
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(lambda s: play(before_door, door, "", s), (False, True)))
    finally:
        door.on_accept = "serve"
    for case in both:
        # The connection may end before or after the request was sent.
        unreachable = case.answer.json()["error"]["code"] == "upstream_unreachable"
        check(case, attrs.evolve(expected, **UNSENT) if unreachable else expected, attempts=0)
    door.wait_for(lambda: door.connections_open == 0)


@attrs.frozen
class Silent:
    """A silent port, which accepts connections or not, and the expectation of both kinds."""

    name: str
    url: str
    expected: Err


def test_a_port_that_is_silent(tmp_path: Path) -> None:
    """No answer to a SYN, a silent port, a stalled handshake; each with its own gateway."""
    pair = certificate(tmp_path, "silent")
    late = Err(504, "upstream_timeout", "backend_unreachable", at=CONNECT, ran=False)
    with (
        blackhole() as port,
        FaultBackend(on_accept="mute") as mute,
        FaultBackend(on_accept="tls-stall", tls=pair) as stalled,
        FaultBackend(on_accept="mute", tls=pair) as secure_mute,
        ThreadPoolExecutor(8) as pool,
    ):
        ports = [
            (Silent("no-syn", f"http://127.0.0.1:{port}", late), FaultBackend()),
            (Silent("mute", mute.url, LATE), mute),
            (Silent("stalled", stalled.url, late), stalled),
            (Silent("secure-mute", secure_mute.url, LATE), secure_mute),
        ]

        def play_both(silent: Silent, sim: FaultBackend) -> None:
            folder = tmp_path / silent.name
            folder.mkdir()
            with watched(FastGateway(folder, silent.url, tls_ca=pair[0])) as daemon:
                json, sse = (pool.submit(play, daemon, sim, "", s) for s in (False, True))
                for case in (json.result(), sse.result()):
                    check(case, silent.expected, attempts=0)
                wait_for(lambda: not sim.connections_open, 0.25, "the connections' end")

        for done in [pool.submit(play_both, *port) for port in ports]:
            done.result()


# -- TLS -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    folder = tmp_path_factory.mktemp("certificates")
    return {
        "good": certificate(folder, "good"),
        "unknown": certificate(folder, "unknown"),
        "expired": certificate(folder, "expired", days=-1),
        "wrong-host": certificate(folder, "wrong-host", host="127.0.0.2"),
    }


@pytest.fixture(scope="module")
def secure(
    certificates: dict[str, tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[FastGateway, FaultBackend]]:
    """A gateway that trusts all of these certificates except the unknown one."""
    folder = tmp_path_factory.mktemp("secure")
    trusted = folder / "trusted.pem"
    with trusted.open("wb") as file:
        for name, (pem, _) in certificates.items():
            if name != "unknown":
                with open(pem, "rb") as part:
                    file.write(part.read())
    with (
        FaultBackend(tls=certificates["good"], max_requests=1) as backend,
        watched(FastGateway(folder, backend.url, tls_ca=str(trusted)), backend) as daemon,
    ):
        yield daemon, backend


@STREAM
@pytest.mark.parametrize("fault", ["", "huge:4MB", "bytes"])
def test_tls(secure: tuple[FastGateway, FaultBackend], fault: str, stream: bool) -> None:
    check(play(*secure, fault, stream), WHOLE)


@STREAM
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("unknown", "certificate verify failed: self-signed certificate"),
        ("expired", "certificate verify failed: certificate has expired"),
        ("wrong-host", "certificate verify failed: it is not for 127.0.0.1"),
    ],
)
def test_a_certificate_that_cannot_be_verified(
    secure: tuple[FastGateway, FaultBackend],
    certificates: dict[str, tuple[str, str]],
    name: str,
    why: str,
    stream: bool,
) -> None:
    """The log says what is wrong with the certificate."""
    daemon, backend = secure
    good = backend.context
    backend.context = FaultBackend(tls=certificates[name]).context
    try:
        case = play(daemon, backend, "", stream)
    finally:
        backend.context = good
    check(case, Err(502, "upstream_tls", "backend_unreachable", ran=False), attempts=0)
    assert daemon.line(case.answer.id)["detail"] == why


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("tls-garbage", Err(502, "upstream_tls", "backend_unreachable", ran=False)),
        ("plain-http", Err(502, "upstream_tls", "backend_unreachable", ran=False)),
        ("reset", Err(502, "upstream_tls|upstream_unreachable", "backend_unreachable", ran=False)),
    ],
)
def test_a_port_that_speaks_no_tls(
    secure: tuple[FastGateway, FaultBackend], mode: str, expected: Err
) -> None:
    """No byte of the request is sent to it."""
    daemon, backend = secure
    backend.on_accept = mode
    try:
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(lambda s: play(daemon, backend, "", s), (False, True)))
    finally:
        backend.on_accept = "serve"
    for case in both:
        check(case, expected, attempts=0)


# -- with comments for the client while the backend is silent --------------------------------------


PING = 0.5


@pytest.fixture(scope="module")
def pinging(sim: FaultBackend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastGateway]:
    folder = tmp_path_factory.mktemp("pinging")
    with watched(FastGateway(folder, sim.url, timeouts_ping=f"{PING}"), sim) as daemon:
        yield daemon


PINGED = [
    ("pause:1:1.75", 3, WHOLE),
    ("slow-first-byte:1.75", 3, WHOLE),
    ("comment-only", 5, Cut(0, "upstream_timeout", "backend_timeout", at=FIRST_BYTE)),
    ("hang", 5, Cut(0, "upstream_timeout", "backend_timeout", at=FIRST_BYTE)),
    ("stall-after:2", 3, Cut(2, "upstream_timeout", "backend_timeout")),
    ("slow-first-byte:0.75+status:500:html", 1, Cut(0, "upstream_error", "backend_error")),
    ("slow-first-byte:0.75+close-mid-headers", 1, Cut(0, "upstream_reset", "backend_error")),
    ("slow-first-byte:0.75+error-event:0", 1, Cut(0, "", "backend_error", passed=True)),
]  # fmt: skip


@pytest.fixture(scope="module")
def pinged(pinging: FastGateway, sim: FaultBackend) -> Iterator[dict[str, Future[Case]]]:
    with ThreadPoolExecutor(len(PINGED)) as pool:
        yield {fault: pool.submit(play, pinging, sim, fault, True) for fault, _, _ in PINGED}


@pytest.mark.parametrize(("fault", "comments", "expected"), PINGED)
def test_silence_is_filled_with_comments(
    pinging: FastGateway,
    pinged: dict[str, Future[Case]],
    fault: str,
    comments: int,
    expected: Expectation,
) -> None:
    case = pinged[fault].result()
    answer = case.answer
    frames = zip(answer.arrivals, answer.frames(), strict=True)
    times = [at for at, frame in frames if frame.startswith(b":")]
    assert len(times) in (comments, comments + 1)
    assert all(PING - 0.1 < b - a < PING + 0.4 for a, b in pairwise(times))
    answer.body[:] = answer.body.replace(b": ping\n\n", b"")
    check(case, expected)


# -- too much --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "stream", "expected", "memory"),
    [
        ("huge-header:64KB", False, BAD, 1 * MIB),
        ("many-headers:5000", False, BAD, 1 * MIB),
        ("endless-headers", True, BAD, 1 * MIB),
        ("huge-trailer", True, Cut(2, "upstream_bad_response"), 1 * MIB),
        ("gzip-bomb:100MB", False, BAD, 10 * MIB),
        ("gzip-bomb:100MB", True, BAD, 10 * MIB),
        ("huge:20MB", False, BAD, 2 * MAX_REPLY),
        ("huge:50MB", True, WHOLE, 2 * MIB),
        ("huge-event:2MB", True, Cut(3, "upstream_bad_response", "backend_error"), 4 * MIB),
        ("no-newline", True, CUT_BAD, 4 * MIB),
        ("no-newline:50MB", True, CUT_BAD, 4 * MIB),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_too_much_costs_little(
    gateway: FastGateway,
    sim: FaultBackend,
    fault: str,
    stream: bool,
    expected: Expectation,
    memory: int,
) -> None:
    """Endless heads, replies and events; other clients are answered without delay."""
    play(gateway, sim, fault, stream)  # what every first time costs
    with HealthProbe(gateway) as probe:
        resident = gateway.reset_peak_memory()
        case = play(gateway, sim, fault, stream)
    grown, longest = gateway.memory("VmHWM") - resident, max(probe.delays)
    print(f"\n{fault}: {grown / MIB:.1f} MiB, longest delay {longest * 1000:.0f} ms")
    check(case, expected)
    assert grown < memory
    assert longest < 0.3


def test_a_refusal_of_the_gateways_own_says_so(gateway: FastGateway) -> None:
    """Rows of the table that no backend saw."""
    with Client(gateway.port) as client:
        client.sock.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nContent-Type: application/json\r\n"
            b"Content-Length: 2\r\n\r\n{}"
        )
        answer = client.answer("")
    assert answer.status == 400
    check_error(bytes(answer.body), "invalid_value", "invalid_request_error")


def test_the_log_line_has_the_stages(gateway: FastGateway, sim: FaultBackend) -> None:
    answer = ask(gateway, "pause:1:0.3", True)
    line = gateway.line(answer.id)
    assert line["events"] == len(answer.payloads()) - 1
    assert 250 < line["longest_gap_ms"] < line["total_ms"]
    assert line["first_byte_ms"] <= line["first_event_ms"] < line["total_ms"]
