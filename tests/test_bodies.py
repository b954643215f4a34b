"""Documents, errors and bytes read into steps, without a relay."""

from __future__ import annotations

import json

import pytest

from gatewayd.backend.interface import PlainReply
from gatewayd.relaying.bodies import MAX_ERROR_BODY, Bytes, Document, ErrorDocument
from gatewayd.relaying.receiver import Progress, Receiver, Step, Whole
from gatewayd.wire.choices import ChatReader
from gatewayd.wire.errors import BackendFailed, BadReply, Truncated
from gatewayd.wire.events import EventReader
from gatewayd.wire.sse import DONE
from tests.memory import completion

LIMIT = 10_000
ENVELOPE = b'{"error": {"message": "as it came", "code": "no_luck"}}'


def document(stream: bool = False) -> Document:
    return Document(ChatReader(None, False, 1, 64), stream, LIMIT)


def error_document(status: int = 500) -> ErrorDocument:
    headers = ((b"retry-after", b"7"),)
    return ErrorDocument(PlainReply(status, "application/json", headers, body=None))  # type: ignore[arg-type]


def fed(receiver: Receiver, body: bytes) -> Receiver:
    for at in range(0, len(body), 20):
        assert receiver.feed(body[at : at + 20]).outcome is None
    return receiver


# -- documents -----------------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [True, False])
def test_a_document_is_whole_at_its_end_and_keeps_its_bytes(exact: bool) -> None:
    body = completion("x", odd=1.0)
    assert fed(document(), body).close(exact) == Step(outcome=Whole(body))


def test_a_document_becomes_a_stream_for_a_client_that_asked_for_one() -> None:
    step = fed(document(stream=True), completion("hello")).close(True)
    event, done = step.frames.split(b"\n\n", 1)
    assert json.loads(event.removeprefix(b"data: "))["choices"][0]["delta"]["content"] == "hello"
    assert (done, step.events, step.outcome) == (DONE, 1, Whole())


def test_a_document_with_an_open_choice_makes_no_stream() -> None:
    body = completion().replace(b'"stop"', b"null")
    step = fed(document(stream=True), body).close(True)
    assert step.frames == b"" and isinstance(step.outcome, Truncated)


def test_a_document_of_another_kind_makes_no_stream() -> None:
    receiver = Document(EventReader(frozenset(), 64, None), True, LIMIT)
    assert isinstance(fed(receiver, b"{}").close(True).outcome, BadReply)


@pytest.mark.parametrize(("exact", "kind"), [(True, BadReply), (False, Truncated)])
def test_a_document_that_is_not_valid_was_cut_off_unless_its_framing_denies_it(
    exact: bool, kind: type[Exception]
) -> None:
    assert type(fed(document(), completion()[:30]).close(exact).outcome) is kind


@pytest.mark.parametrize("exact", [True, False])
def test_an_error_in_place_of_a_document_is_the_backends(exact: bool) -> None:
    outcome = fed(document(), ENVELOPE).close(exact).outcome
    assert isinstance(outcome, BackendFailed) and outcome.body() == ENVELOPE


def test_a_document_past_the_limit_is_not_gathered() -> None:
    receiver = document()
    assert receiver.feed(b"x" * LIMIT).outcome is None
    assert isinstance(receiver.feed(b"x").outcome, BadReply)


@pytest.mark.parametrize("receiver", [document(), error_document()])
def test_white_space_is_no_content(receiver: Receiver) -> None:
    assert receiver.feed(b" \r\n") == Step()
    assert receiver.feed(b"\n{") == Step(progress=Progress.CONTENT)


# -- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 429, 500, 503])
def test_an_error_is_passed_on_with_status_headers_and_envelope(status: int) -> None:
    outcome = fed(error_document(status), ENVELOPE).close(True).outcome
    assert isinstance(outcome, BackendFailed)
    assert (outcome.status, outcome.code) == (status, "no_luck")
    assert outcome.body() == ENVELOPE and outcome.headers == ((b"retry-after", b"7"),)


def test_a_long_error_is_judged_by_its_head() -> None:
    receiver = error_document(503)
    assert receiver.feed(b" " * MAX_ERROR_BODY).outcome is None
    outcome = receiver.feed(b" ").outcome
    assert isinstance(outcome, BackendFailed) and outcome.status == 503
    assert outcome.payload is None


# -- bytes ---------------------------------------------------------------------------------------


def test_bytes_cross_as_they_come() -> None:
    receiver = Bytes()
    assert receiver.feed(b"\x00RIFF") == Step(b"\x00RIFF", progress=Progress.CONTENT)
    assert receiver.close(True) == Step(outcome=Whole())


def test_bytes_are_whole_only_if_their_framing_says_so() -> None:
    assert isinstance(Bytes().close(False).outcome, Truncated)
