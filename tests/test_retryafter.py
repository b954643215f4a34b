"""What a refusal says about the time to wait."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatewayd.wire.retryafter import seconds_to_wait, whole_seconds, with_wait

#: 1 January 2000, 00:00:00 UTC.
NOW = 946_684_800.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"7", 7),
        (b"0", 0),
        (b"0.5", 0.5),
        (b"Sat, 01 Jan 2000 00:00:30 GMT", 30),
        (b"Saturday, 01-Jan-00 00:00:30 GMT", 30),
        (b"Sat Jan  1 00:00:30 2000", 30),
        (b"Fri, 31 Dec 1999 23:59:59 GMT", 0),
        (b"", None),
        (b"-1", None),
        (b"soon", None),
        (b"1e9", None),
        (b"9" * 30, None),
        (b"\xff", None),
        (b"Sat, 99 Jan 2000 00:00:30 GMT", None),
    ],
)
def test_retry_after_is_a_number_or_a_date(value: bytes, seconds: float | None) -> None:
    assert seconds_to_wait([(b"retry-after", value)], NOW) == seconds


def test_milliseconds_count_first_if_they_are_a_number() -> None:
    seconds = (b"retry-after", b"7")
    assert seconds_to_wait([seconds, (b"retry-after-ms", b"1500")], NOW) == 1.5
    assert seconds_to_wait([(b"retry-after-ms", b"1500"), seconds], NOW) == 1.5
    assert seconds_to_wait([(b"retry-after-ms", b"x"), seconds], NOW) == 7
    assert seconds_to_wait([(b"x-ratelimit-reset", b"3")], NOW) is None


@given(st.binary(max_size=40))
def test_any_value_is_read_without_a_fault(value: bytes) -> None:
    seconds = seconds_to_wait([(b"retry-after", value), (b"retry-after-ms", value)], NOW)
    assert seconds is None or seconds >= 0


def test_a_time_is_replaced_and_the_other_headers_stay() -> None:
    before = [(b"retry-after", b"7"), (b"x-ratelimit-limit", b"1"), (b"retry-after-ms", b"7000")]
    assert with_wait(before, 2.1) == ((b"x-ratelimit-limit", b"1"), (b"retry-after", b"3"))
    assert [whole_seconds(s) for s in (0, 0.1, 1, 1.01)] == [1, 1, 1, 2]
