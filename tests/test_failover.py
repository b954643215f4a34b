"""Failing over, and callers who do not wait."""

from __future__ import annotations

import pytest

from gatewayd.backend.health import FAILURES
from gatewayd.exchange import End
from gatewayd.wire import errors
from tests.memory import Answer, FakeBackend, Gateway, completion
from tests.test_others import SPEECH
from tests.test_routing import backends, gateway_of
from tests.test_usage import post


def test_a_limit_holds_for_those_too_who_were_refused_elsewhere() -> None:
    a, b = backends("a", "b")
    gateway = gateway_of(a, b, b_in_flight="1")
    clients = [gateway.chat() for _ in range(3)]
    for call in list(a.calls):
        call.answer.errback(errors.Unreachable("No."))
    assert len(b.calls) == 1
    b.calls[0].whole(completion())
    assert [Answer(client).status for client in clients] == [200, 502, 502]


def test_a_trial_is_alone_even_when_others_were_refused_elsewhere() -> None:
    a, b = backends("a", "b")
    gateway = gateway_of(a, b)
    health = gateway.targets[1].health
    for _ in range(FAILURES):
        health.failed(health.asked())
    gateway.clock.advance(1)
    for _ in range(3):
        gateway.chat()
    for call in list(a.calls):
        call.answer.errback(errors.Unreachable("No."))
    assert len(b.calls) == 1


def test_a_caller_that_does_not_wait_ejects_nobody() -> None:
    gateway = gateway_of(*backends("a", "b"))
    for _ in range(20):
        client = gateway.chat(model="m", headers={"x-stainless-read-timeout": "0.1"})
        gateway.clock.advance(0.1)
        assert Answer(client).status == 504
        assert gateway.ended[-1].end is End.BACKEND_TIMEOUT
    assert gateway.api.router.states() == {"a": True, "b": True}
    assert [target.in_flight for target in gateway.targets] == [0, 0]


@pytest.mark.parametrize("kind", ["text/html", ""])
def test_a_page_in_place_of_speech_is_a_502(kind: str) -> None:
    backend = FakeBackend()
    client = post(Gateway(backend), SPEECH, input="hi")
    backend.calls[0].head(media_type=kind)
    assert (Answer(client).status, Answer(client).code) == (502, "upstream_bad_response")
