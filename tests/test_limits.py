"""How many requests a caller may send."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gatewayd.api.limits import Bucket
from gatewayd.exchange import End
from tests.callers import ALICE, BOB, bearer, guarded
from tests.memory import Answer, completion


def test_a_caller_has_its_own_limit_in_flight() -> None:
    gateway, backend = guarded(token_alice_in_flight="1")
    gateway.chat(headers=bearer(ALICE))
    refused = Answer(gateway.chat(headers=bearer(ALICE)))
    assert (refused.status, refused.code) == (429, "rate_limit_exceeded")
    assert int(refused.header("retry-after") or 0) >= 1
    gateway.chat(headers=bearer(BOB))
    backend.calls[0].whole(completion())
    gateway.chat(headers=bearer(ALICE))
    assert len(backend.calls) == 3


def test_a_caller_has_its_own_rate() -> None:
    gateway, backend = guarded(token_alice_requests_per_minute="2")
    for left in (b"1", b"0"):
        client = gateway.chat(headers=bearer(ALICE))
        backend.calls[-1].whole(completion())
        assert Answer(client).header("x-ratelimit-remaining-requests") == left.decode()
        assert Answer(client).header("x-ratelimit-limit-requests") == "2"
    refused = Answer(gateway.chat(headers=bearer(ALICE)))
    assert refused.status == 429 and refused.header("retry-after") == "30"
    assert refused.header("x-ratelimit-remaining-requests") == "0"
    gateway.chat(headers=bearer(BOB))
    gateway.clock.advance(30)
    gateway.chat(headers=bearer(ALICE))
    assert len(backend.calls) == 4
    assert [e.end for e in gateway.ended].count(End.REFUSED) == 1


@given(
    size=st.integers(1, 100),
    gaps=st.lists(st.floats(0, 30, allow_nan=False), min_size=1, max_size=200),
)
def test_no_minute_lets_more_than_two_buckets_through(size: int, gaps: list[float]) -> None:
    bucket, now, taken = Bucket(size, size, 0.0), 0.0, []
    for gap in gaps:
        now += gap
        if bucket.take(now):
            taken.append(now)
        else:
            assert bucket.next_in > 0
    for first in taken:
        assert sum(first <= at < first + 60 for at in taken) <= 2 * size
