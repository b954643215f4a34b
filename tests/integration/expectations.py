"""What a request must lead to: at the client, at the backend and in the access log.

A test names the fault of the backend and what the client must see: :class:`Whole`, :class:`Err` or
:class:`Cut`. :func:`check` compares that with the answer, the log line and the backend's record.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Protocol

import attrs

from tests.faultbackend import ConnectionRecord, FaultBackend, Record
from tests.integration.client import Answer, ask
from tests.integration.gateways import FastGateway
from tests.integration.processes import wait_for

#: Host names, paths, keys and Python names: no message for a client may contain them.
TELLING = re.compile(
    rb"127\.0\.0\.1|localhost|internal-host|/srv/|/site-packages|\.py\b|sk-sim|Traceback|twisted"
    rb"|Errno|\w(Error|Exception|Failure)\b",
)


@attrs.frozen
class Case:
    """One finished request, with its gateway, backend and answer."""

    daemon: FastGateway
    sim: FaultBackend
    stream: bool
    answer: Answer

    @property
    def records(self) -> list[Record]:
        return self.sim.records_for(self.answer.id)

    @property
    def record(self) -> Record:
        """The last record of this request at the backend."""
        return self.records[-1]


class Expectation(Protocol):
    """What the client must see."""

    @property
    def at(self) -> float:
        """The seconds that it must take; 0 = any."""

    def check(self, case: Case) -> str:
        """Compare; return the name of the End that the log line must have."""


def play(daemon: FastGateway, sim: FaultBackend, fault: str, stream: bool) -> Case:
    return Case(daemon, sim, stream, ask(daemon, fault, stream))


def check(case: Case, expected: Expectation, attempts: int = 1) -> None:
    """Check the answer, the log line, the records of the backend and the health of the gateway.

    :param attempts: how many times the backend must have seen the request.
    """
    answer, daemon = case.answer, case.daemon
    end = expected.check(case)
    assert answer.header("x-request-id") == [answer.id]
    assert answer.surplus == b""
    line = daemon.line(answer.id)
    assert (line["status"], line["end"], line["stream"]) == (answer.status, end, case.stream), line
    assert [record.violations for record in case.records] == [[]] * attempts
    for record in case.records:
        (connection,) = [c for c in case.sim.connections if c.number == record.connection]
        # The gateway closes a connection whose reply is incomplete. After a [DONE] it waits up to
        # 1 s for the end of the body.
        wait_for(partial(ended, record, connection), 2, f"the end of {connection}")
    if expected.at:
        assert case.records == [] or case.record.done or case.record.peer_left
        if case.records and case.record.peer_left:
            assert case.record.peer_left - answer.last_at < 0.25
    daemon.check_health()


def ended(record: Record, connection: ConnectionRecord) -> bool:
    return record.done or connection.closed is not None


def check_duration(seconds: float, at: float) -> None:
    assert at - 0.1 < seconds < at + 0.6, f"{seconds:.3f} s instead of {at} s"


@attrs.frozen
class Whole:
    """The whole reply, byte for byte.

    :param spaced: line ends between JSON tokens may have become spaces.
    """

    spaced: bool = False
    at: float = 0.0

    def check(self, case: Case) -> str:
        answer = case.answer
        assert (answer.status, answer.whole) == (200, True), answer
        if not case.stream:
            assert answer.header("content-type") == ["application/json"]
            assert bytes(answer.body) == case.record.want_json_as(answer.id)
            return "complete"
        check_stream_head(answer)
        want = case.record.want_as(answer.id)
        assert want
        if self.spaced:
            want = [payload.replace(b"\n", b" ") for payload in want]
        assert answer.payloads() == [*want, b"[DONE]"]
        assert answer.frames() == [b"data: " + payload for payload in [*want, b"[DONE]"]]
        if self.at:
            check_duration(answer.seconds, self.at)
        return "complete"


@attrs.frozen
class Err:
    """An HTTP error without any byte of a reply.

    :param code: of the envelope; alternatives separated by ``|``.
    :param passed: the envelope is the backend's.
    :param ran: the backend may have executed the request, so clients must not retry on their own.
    """

    status: int
    code: str
    end: str = "backend_error"
    at: float = 0.0
    passed: bool = False
    ran: bool = True

    def check(self, case: Case) -> str:
        answer = case.answer
        assert (answer.status, answer.whole) == (self.status, True), answer
        assert answer.header("content-type") == ["application/json"]
        assert answer.header("content-length") == [f"{len(answer.body)}"]
        assert answer.header("x-should-retry") == ["false"] * self.ran
        assert answer.header("location") == answer.header("set-cookie") == []
        if self.passed:
            assert bytes(answer.body) == case.record.want_json
        else:
            check_error(bytes(answer.body), self.code)
        if self.at:
            check_duration(answer.seconds, self.at)
        return self.end


@attrs.frozen
class Cut:
    """Some events, an error event, and the end of the connection without the last chunk.

    :param events: the number of events; None = any number of those that the backend sent.
    :param at: seconds after the last event, or after the request if ``events`` is None.
    :param passed: the error is the backend's.
    """

    events: int | None
    code: str
    end: str = "backend_truncated"
    at: float = 0.0
    passed: bool = False

    def check(self, case: Case) -> str:
        answer = case.answer
        assert (answer.status, answer.whole, answer.ended) == (200, False, "closed"), answer
        check_stream_head(answer)
        *events, error = answer.payloads()
        want = case.record.want_as(answer.id)
        if self.events is None:
            assert events == want[: len(events)]
        else:
            assert len(events) == self.events
            assert events == want[: self.events]
        if self.passed:
            assert json.loads(error)["error"]["message"] == "sim failed on the way"
        else:
            check_error(error, self.code)
        if self.at:
            since = answer.arrivals[-2] if self.events else answer.asked
            check_duration(answer.last_at - since, self.at)
        return self.end


def check_stream_head(answer: Answer) -> None:
    assert answer.header("content-type") == ["text/event-stream"]
    assert answer.header("cache-control") == ["no-cache"]
    assert answer.header("transfer-encoding") == ["chunked"]


def check_error(body: bytes, code: str, kind: str = "upstream_error") -> None:
    """Check an envelope of the gateway: its members, its code, and no internals in its text."""
    error = json.loads(body)["error"]
    assert json.loads(body).keys() == {"error"}
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"] and error["type"] == kind and error["code"] in code.split("|"), error
    assert not TELLING.search(body), body


def reached(sim: FaultBackend, ids: Iterable[str]) -> bool:
    """Whether the backend has received all of these requests and begun each stream."""
    seen = {r.request_id for r in sim.records if r.complete and (r.sent or not r.stream)}
    return seen.issuperset(ids)


def is_whole(answer: Answer, sim: FaultBackend) -> bool:
    """Whether the client received everything that the backend sent, byte for byte."""
    if (answer.status, answer.whole) != (200, True):
        return False
    (record,) = sim.records_for(answer.id)
    if not record.stream:
        return bytes(answer.body) == record.want_json_as(answer.id)
    return answer.payloads() == [*record.want_as(answer.id), b"[DONE]"]


def cancelled_at(record: Record) -> float | None:
    """When the backend saw that the gateway closed its connection; None if it did not."""
    return record.peer_left


def attempts_of(sim: FaultBackend) -> Counter[str]:
    """The number of times that the backend saw each request id."""
    return Counter(str(record.request_id) for record in sim.records)


def spread(samples: list[float]) -> str:
    """``p50 / p99 / max`` of times in seconds, as milliseconds."""
    ordered = sorted(samples)
    at = [ordered[int((len(ordered) - 1) * q)] * 1000 for q in (0.5, 0.99, 1)]
    return " / ".join(f"{value:.1f}" for value in at)
