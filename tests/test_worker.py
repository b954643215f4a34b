"""What a worker is told over its standard input, in pieces of any size."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from gatewayd.daemon import worker
from gatewayd.daemon.worker import WORKER_NUMBER, Handover, Lifeline, Supervised, is_worker, message
from gatewayd.settings.model import Settings
from tests.memory import settings

FIRST = settings(backend_a_url="http://a", backend_a_api_key="secret")
SECOND = settings(gateway_api_title="second")


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The supervisor's end of standard input."""
    stdin, written = os.pipe()
    monkeypatch.setattr(worker, "_STDIN", stdin)
    monkeypatch.setenv(WORKER_NUMBER, "1")
    yield written
    os.close(stdin)
    try:
        os.close(written)
    except OSError:
        return  # the test did


def supervised(supervisor: int) -> Supervised:
    os.write(supervisor, message(Handover(FIRST, sockets=2, kept=True)))
    return Supervised()


def test_a_worker_reads_what_the_supervisor_has_handed_over(supervisor: int) -> None:
    told = supervised(supervisor)
    assert is_worker()
    assert told.number == 1
    assert told.load() == FIRST
    assert (told.handover.descriptors, told.handover.kept) == ([3, 4], True)
    key = told.load().backends[0].api_key
    assert key is not None and key.reveal() == "secret"


def test_a_worker_whose_supervisor_has_died_does_not_start(supervisor: int) -> None:
    os.write(supervisor, message(Handover(FIRST, 1, False))[:50])
    os.close(supervisor)
    with pytest.raises(SystemExit, match="supervisor has ended"):
        Supervised()


@pytest.mark.parametrize("size", [1, 3, 100_000])
def test_messages_are_read_whole_from_pieces_of_any_size(supervisor: int, size: int) -> None:
    told = supervised(supervisor)
    seen: list[Settings | str] = []
    lifeline = Lifeline(
        told,
        reload=lambda: seen.append(told.load()),
        reopen=lambda: seen.append("reopen"),
        lost=lambda: seen.append("lost"),
        reactor=None,
    )
    data = message(SECOND) + message(None) + message(FIRST)
    for start in range(0, len(data), size):
        os.write(supervisor, data[start : start + size])
        assert lifeline.doRead() is None
    assert seen == [SECOND, "reopen", FIRST]
    os.close(supervisor)
    end: Any = lifeline.doRead()
    assert isinstance(end, ConnectionDone)
    lifeline.connectionLost(Failure(end))
    assert seen[-1] == "lost"
