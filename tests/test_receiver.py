"""What holds for every receiver."""

from __future__ import annotations

import pytest

from gatewayd.backend.interface import PlainReply
from gatewayd.relaying.bodies import Bytes, Document, ErrorDocument
from gatewayd.relaying.events import Events
from gatewayd.relaying.receiver import Receiver, Step, judged
from gatewayd.wire.choices import ChatReader
from gatewayd.wire.errors import BadReply, ConnectionReset, Truncated

REPLY = PlainReply(500, "application/json", (), body=None)  # type: ignore[arg-type]  # not read here


def receivers() -> list[Receiver]:
    reader = ChatReader(None, False, 1, 64)
    return [Document(reader, False, 9), ErrorDocument(REPLY), Bytes(), Events(reader, 9)]


@pytest.mark.parametrize("exact", [True, False])
def test_the_end_of_a_body_always_has_an_outcome(exact: bool) -> None:
    for receiver in receivers():
        assert receiver.close(exact).outcome is not None


def test_a_step_says_nothing_by_default_and_no_fast_path_is_open() -> None:
    assert not any((Step().frames, Step().events, Step().partial, Step().outcome))
    assert all(receiver.fast is None for receiver in receivers())


def test_only_framing_tells_a_reply_that_is_not_valid_from_one_that_was_cut_off() -> None:
    bad, reset = BadReply("Bad."), ConnectionReset("Reset.")
    assert judged(bad, exact=True) is bad
    assert isinstance(judged(bad, exact=False), Truncated)
    assert judged(reset, exact=False) is reset
