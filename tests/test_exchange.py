"""One exchange, one id, one end."""

import os
import re
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatewayd.exchange import End, Exchange, request_id


def made_here(found: str) -> bool:
    return str(uuid.UUID(found)) == found


# -- the id --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "candidate",
    [
        b"x",
        b"123e4567-e89b-12d3-a456-426614174000",
        b"AZaz09._:/+=@~-",
        b"a" * 128,
    ],
)
def test_a_valid_id_is_kept(candidate: bytes) -> None:
    assert request_id([candidate]) == candidate.decode()


@pytest.mark.parametrize(
    "candidates",
    [
        [],
        [b""],
        [b"a" * 129],
        [b"a" * 8000],
        [b"a b"],
        [b'a"'],
        [b"a\\b"],
        [b"a\tb"],
        [b"a\n"],
        [b"\xc3\xa9"],
        [b"\xe9"],
        [b"\x1b[31m"],
        [b"<script>"],
        [b"${jndi:ldap}"],
        [b"a,b"],
        [b"a", b"a"],
        [b"a", b"b"],
    ],
    ids=lambda candidates: repr(candidates)[:30],
)
def test_any_other_id_is_replaced_as_a_whole(candidates: list[bytes]) -> None:
    first, second = request_id(candidates), request_id(candidates)
    assert made_here(first)
    assert made_here(second)
    assert first != second


def test_ids_made_here_are_random_uuids_and_all_differ() -> None:
    made = [uuid.UUID(request_id(())) for _ in range(1000)]
    assert {(each.version, each.variant) for each in made} == {(4, uuid.RFC_4122)}
    assert len(set(made)) == len(made)


def test_a_forked_process_makes_other_ids() -> None:
    request_id(())  # random bytes for further ids are in memory now
    receiving, sending = os.pipe()
    child = os.fork()
    if not child:
        os.write(sending, request_id(()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(receiving, 100).decode() not in [request_id(()) for _ in range(300)]
    os.close(receiving)
    os.close(sending)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=140), max_size=2))
def test_every_id_is_safe_in_a_header_and_a_log(candidates: list[bytes]) -> None:
    found = request_id(candidates)
    assert re.fullmatch(r"[A-Za-z0-9._:/+=@~-]{1,128}", found)
    assert [found.encode()] == candidates or made_here(found)


# -- the end -------------------------------------------------------------------------------------


def test_an_exchange_ends_once_and_the_first_end_counts() -> None:
    told: list[tuple[End | None, float, str, str]] = []
    exchange = Exchange(
        "a", 1.0, "192.0.2.1", on_end=lambda e: told.append((e.end, e.ended, e.code, e.detail))
    )
    assert exchange.finish(End.BACKEND_TIMEOUT, 5.0, code="upstream_timeout", detail="idle")
    assert not exchange.finish(End.COMPLETE, 6.0)
    assert not exchange.finish(End.BACKEND_TIMEOUT, 7.0, code="other")
    assert told == [(End.BACKEND_TIMEOUT, 5.0, "upstream_timeout", "idle")]
    assert (exchange.end, exchange.ended, exchange.code) == (
        End.BACKEND_TIMEOUT,
        5.0,
        "upstream_timeout",
    )


def test_ending_an_exchange_again_within_on_end_calls_it_once() -> None:
    told: list[End | None] = []

    def again(exchange: Exchange) -> None:
        told.append(exchange.end)
        assert not exchange.finish(End.INTERNAL, 9.0)

    exchange = Exchange("a", 1.0, "192.0.2.1", again)
    assert exchange.finish(End.COMPLETE, 5.0)
    assert told == [End.COMPLETE]
    assert exchange.ended == 5.0


def test_two_exchanges_are_never_the_same() -> None:
    one, other = (Exchange("a", 1.0, "192.0.2.1", print) for _ in range(2))
    one.backends.append("gpu1")
    assert one != other
    assert other.backends == []
    assert len({one, other}) == 2


def test_the_names_of_the_ends_are_those_of_the_log() -> None:
    assert [str(end) for end in End] == [
        "complete",
        "refused",
        "client_gone",
        "backend_unreachable",
        "backend_error",
        "backend_truncated",
        "backend_timeout",
        "drained",
        "internal",
    ]
