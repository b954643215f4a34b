"""The list of models of one backend, on a clock."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from gatewayd.routing.listing import FRESH_SECONDS, Listing
from gatewayd.wire import errors
from gatewayd.wire.models import decode_list
from tests.memory import FakeBackend


class Waiting(FakeBackend):
    """Answers when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Deferred[dict[str, Any]]] = []

    def models(self, request_id: str) -> Deferred[dict[str, Any]]:
        self.asked.append(Deferred())
        return self.asked[-1]


def test_nothing_is_known_before_the_first_list() -> None:
    listing = Listing()
    assert not listing.known and listing.entries == {} and listing.names == frozenset()


def test_an_empty_list_is_known() -> None:
    backend, listing = FakeBackend(), Listing()
    backend.listed = {}
    listing.fetch(backend, "1", Clock(), 1)
    assert listing.known and listing.names == frozenset()


def test_the_names_have_the_aliases_of_llama_cpp() -> None:
    backend, listing = FakeBackend(), Listing()
    backend.listed = dict(decode_list(b'{"data": [{"id": "a", "aliases": ["a", "b"]}]}', 9))
    listing.fetch(backend, "1", Clock(), 1)
    assert listing.names == {"a", "b"} and list(listing.entries) == ["a"]


def test_a_list_stays_while_later_ones_fail() -> None:
    backend, listing, clock = FakeBackend(), Listing(), Clock()
    listing.fetch(backend, "1", clock, 1)
    backend.listed = errors.Unreachable("No.")
    failed: list[object] = []
    listing.fetch(backend, "2", clock, 1).addErrback(failed.append)
    assert failed and listing.known and listing.names == {"m"}


def test_those_who_wait_share_one_request_and_each_has_its_own_time() -> None:
    backend, listing, clock = Waiting(), Listing(), Clock()
    failed: list[Any] = []
    patient = listing.fetch(backend, "1", clock, 10)
    listing.fetch(backend, "2", clock, 2).addErrback(failed.append)
    clock.advance(2)
    assert len(backend.asked) == 1 and not backend.asked[0].called
    assert failed[0].check(errors.UpstreamTimeout)
    backend.asked[0].callback({"x": {"id": "x"}})
    assert patient.result == {"x": {"id": "x"}} and not clock.getDelayedCalls()


def test_a_request_that_nobody_waits_for_is_cancelled() -> None:
    backend, listing, clock = Waiting(), Listing(), Clock()
    waiting = [listing.fetch(backend, "1", clock, 9) for _ in range(2)]
    for each in waiting:
        each.addErrback(lambda _: None)
        assert not backend.asked[0].called
        each.cancel()
    assert backend.asked[0].called
    listing.fetch(backend, "2", clock, 9)
    assert len(backend.asked) == 2


def test_a_list_that_was_fetched_lately_is_not_fetched_for_a_client() -> None:
    backend, listing, clock = Waiting(), Listing(), Clock()
    listing.fetch(backend, "1", clock, 9)
    backend.asked[0].callback({})
    assert listing.for_client(backend, "2", clock).result == {}
    clock.advance(FRESH_SECONDS + 0.1)
    assert listing.for_client(backend, "3", clock).result == {}
    assert len(backend.asked) == 2
