"""One operation whose result is shared."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred

from gatewayd.backend.shared import Shared


class Operations:
    """Begins operations that the test ends."""

    def __init__(self) -> None:
        self.begun: list[Deferred[str]] = []

    def begin(self) -> Deferred[str]:
        self.begun.append(Deferred())
        return self.begun[-1]


def results(*waiters: Deferred[str]) -> list[Any]:
    found: list[Any] = []
    for waiter in waiters:
        waiter.addBoth(found.append)
    return found


def test_all_waiters_get_the_result_and_a_later_one_begins_a_new_operation() -> None:
    operations = Operations()
    shared = Shared(operations.begin, cancels=True)
    found = results(shared.get(), shared.get())
    operations.begun[0].callback("a")
    assert found == ["a", "a"] and len(operations.begun) == 1
    found = results(shared.get())
    operations.begun[1].errback(KeyError("b"))
    assert found[0].check(KeyError)


def test_an_operation_that_cannot_begin_fails_its_waiter() -> None:
    def broken() -> Deferred[str]:
        raise KeyError("a")

    assert results(Shared(broken, cancels=True).get())[0].check(KeyError)


@pytest.mark.parametrize("cancels", [True, False])
def test_cancelling_affects_one_waiter_and_the_last_one_may_end_the_operation(
    cancels: bool,
) -> None:
    operations = Operations()
    shared = Shared(operations.begin, cancels)
    waiters = [shared.get(), shared.get()]
    found = results(*waiters)
    waiters[0].cancel()
    assert found[0].check(CancelledError) and not operations.begun[0].called
    waiters[1].cancel()
    assert found[1].check(CancelledError) and operations.begun[0].called == cancels


def test_a_waiter_that_another_one_cancels_in_its_callback_is_left_out() -> None:
    operations = Operations()
    shared = Shared(operations.begin, cancels=True)
    first, second = shared.get(), shared.get()
    first.addCallback(lambda _: second.cancel())
    found = results(second)
    operations.begun[0].callback("a")
    assert found[0].check(CancelledError)
