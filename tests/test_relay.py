"""A backend's reply on its way to the client, in memory and on a clock."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.web.http import PotentialDataLoss

from gatewayd.backend.interface import Clocks
from gatewayd.exchange import End
from gatewayd.wire import errors
from tests.memory import Answer, FakeBackend, Gateway, chunk, completion, settings

STREAM = [chunk("a"), chunk("b"), chunk(finish="stop")]


def as_events(*payloads: bytes) -> bytes:
    return b"".join(b"data: " + payload + b"\n\n" for payload in payloads)


def renamed(payload: bytes) -> bytes:
    return payload.replace(b"chatcmpl-1", b"req-1")


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(clocks=Clocks(first_byte=30, idle=10, total=100))


@pytest.fixture
def gateway(backend: FakeBackend) -> Iterator[Gateway]:
    gateway = Gateway(backend, settings=settings(timeouts_ping="0"))
    yield gateway
    assert not gateway.site.state.active, "an exchange has no end"
    assert len(gateway.ended) == len({id(exchange) for exchange in gateway.ended})


def the_end(gateway: Gateway) -> End | None:
    (exchange,) = gateway.ended
    return exchange.end


# -- what goes well ------------------------------------------------------------------------------


def test_events_are_relayed_one_by_one_with_the_request_id(
    gateway: Gateway, backend: FakeBackend
) -> None:
    client = gateway.chat(stream=True)
    call = backend.calls[0]
    call.head()
    assert client.value() == b""  # nothing is committed before the first event
    for n, payload in enumerate(STREAM, 1):
        call.event(payload)
        assert Answer(client).payloads == [renamed(p) for p in STREAM[:n]]
    call.event(b"[DONE]")
    answer = Answer(client)
    assert answer.status == 200 and answer.header("content-type") == "text/event-stream"
    assert answer.payloads == [*map(renamed, STREAM), b"[DONE]"] and answer.complete
    assert call.left == "released"
    assert the_end(gateway) is End.COMPLETE


def test_promise_7_a_whole_reply_keeps_its_bytes_but_for_the_id(
    gateway: Gateway, backend: FakeBackend
) -> None:
    client = gateway.chat()
    body = completion("x", odd=1.0, big=12345678901234567890)
    backend.calls[0].whole(body)
    answer = Answer(client)
    assert (answer.status, answer.body) == (200, renamed(body))
    assert not answer.closed and the_end(gateway) is End.COMPLETE


def test_a_whole_reply_to_a_streaming_request_becomes_one_chunk(
    gateway: Gateway, backend: FakeBackend
) -> None:
    client = gateway.chat(stream=True)
    backend.calls[0].whole(completion("hello", usage={"total_tokens": 3}))
    first, done = Answer(client).payloads
    assert json.loads(first)["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}
    ]
    assert done == b"[DONE]" and Answer(client).complete


def test_promise_7_the_body_reaches_the_backend_byte_for_byte(
    gateway: Gateway, backend: FakeBackend
) -> None:
    body = b'{ "messages":[{"role":"user","content":"\\u00e9"}],  "x":1.0, "y":1e0}'
    gateway.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    assert backend.calls[0].body == body
    backend.calls[0].whole(completion())


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", True),
        ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", False),
        ("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", False),
        ("no trace", False),
    ],
)
def test_a_trace_reaches_the_backend_and_the_log(
    gateway: Gateway, backend: FakeBackend, sent: str, kept: bool
) -> None:
    gateway.chat(headers={"traceparent": sent})
    backend.calls[0].whole(completion())
    expected = sent if kept else None
    assert backend.calls[0].traceparent == gateway.ended[0].traceparent == expected


# -- late commitment -------------------------------------------------------------------------------


def test_promise_2_a_failure_before_the_first_event_is_an_http_status(
    gateway: Gateway, backend: FakeBackend
) -> None:
    client = gateway.chat(stream=True)
    backend.calls[0].head()
    backend.calls[0].send(b"data: {")
    backend.calls[0].end(errors.Truncated("It broke off."))
    answer = Answer(client)
    assert (answer.status, answer.code) == (502, "upstream_reset")
    assert answer.header("x-should-retry") == "false"
    assert the_end(gateway) is End.BACKEND_TRUNCATED


def test_promise_2_a_first_event_that_is_an_error_becomes_an_http_status(
    gateway: Gateway, backend: FakeBackend
) -> None:
    client = gateway.chat(stream=True)
    backend.calls[0].head()
    payload = b'{"error": {"message":"too long", "type":"x", "code":400}}'
    backend.calls[0].event(payload)
    answer = Answer(client)
    assert (answer.status, answer.body) == (400, payload)
    assert backend.calls[0].left == "aborted"


def test_promise_2_another_backend_is_asked_if_the_first_cannot_have_executed_the_request() -> None:
    first, second = FakeBackend("first"), FakeBackend("second")
    first.failing = [errors.Unreachable("No.")]
    gateway = Gateway(first, second)
    client = gateway.chat()
    second.calls[0].whole(completion())
    assert Answer(client).status == 200
    assert gateway.ended[0].backends == ["first", "second"]


@pytest.mark.parametrize("status", [503, 429])
def test_promise_6_another_backend_is_asked_if_the_first_refuses_for_now(status: int) -> None:
    first, second = FakeBackend("first"), FakeBackend("second")
    gateway = Gateway(first, second)
    client = gateway.chat()
    first.calls[0].whole(b'{"error":{"message":"busy"}}', status)
    second.calls[0].whole(completion())
    assert Answer(client).status == 200


@pytest.mark.parametrize(
    "problem", [errors.ConnectionReset("No."), errors.BadReply("No."), errors.Truncated("No.")]
)
def test_promise_6_a_request_that_may_have_been_executed_is_not_retried(problem: Exception) -> None:
    first, second = FakeBackend("first"), FakeBackend("second")
    first.failing = [problem]
    gateway = Gateway(first, second)
    answer = Answer(gateway.chat())
    assert answer.status == 502 and answer.header("x-should-retry") == "false"
    assert not second.calls


# -- true ends -------------------------------------------------------------------------------------


def test_promise_3_a_failure_after_commit_is_an_error_event_and_no_last_chunk(
    gateway: Gateway, backend: FakeBackend
) -> None:
    client = gateway.chat(stream=True)
    backend.calls[0].head()
    backend.calls[0].event(STREAM[0])
    backend.calls[0].end(errors.Truncated("It broke off."))
    answer = Answer(client)
    first, last = answer.payloads
    assert first == renamed(STREAM[0])
    assert json.loads(last)["error"]["code"] == "upstream_reset"
    assert answer.closed and not answer.complete
    assert the_end(gateway) is End.BACKEND_TRUNCATED


def test_promise_3_a_missing_done_is_supplied_when_every_choice_is_finished(
    gateway: Gateway, backend: FakeBackend
) -> None:
    client = gateway.chat(stream=True)
    backend.calls[0].head()
    backend.calls[0].send(as_events(*STREAM))
    backend.calls[0].end()
    assert Answer(client).payloads[-1] == b"[DONE]" and Answer(client).complete


@pytest.mark.parametrize("last", [as_events(b"[DONE]"), b""], ids=["done", "end"])
def test_promise_3_a_choice_left_open_is_never_a_success(
    gateway: Gateway, backend: FakeBackend, last: bytes
) -> None:
    client = gateway.chat(stream=True)
    backend.calls[0].head()
    backend.calls[0].send(as_events(chunk("a"), chunk("b", index=1), chunk(finish="stop")))
    backend.calls[0].send(last)
    if not last:
        backend.calls[0].end()
    assert b"[DONE]" not in client.value() and not Answer(client).complete
    assert the_end(gateway) is End.BACKEND_TRUNCATED


def test_promise_3_nothing_follows_done(gateway: Gateway, backend: FakeBackend) -> None:
    client = gateway.chat(stream=True)
    backend.calls[0].head()
    backend.calls[0].send(as_events(*STREAM, b"[DONE]", chunk("more"), b"[DONE]"))
    assert Answer(client).payloads == [*map(renamed, STREAM), b"[DONE]"]


def test_promise_3_an_error_event_is_the_last_even_if_done_follows_it(
    gateway: Gateway, backend: FakeBackend
) -> None:
    client = gateway.chat(stream=True)
    backend.calls[0].head()
    problem = b'{"error":{"message":"engine died","code":500}}'
    backend.calls[0].send(as_events(STREAM[0], problem, b"[DONE]"))
    assert Answer(client).payloads == [renamed(STREAM[0]), problem]
    assert not Answer(client).complete and backend.calls[0].left == "aborted"


@pytest.mark.parametrize("finish", ['"finish_reason":null', '"x":0'])
@pytest.mark.parametrize("before", [b"", b'{"index":0,"finish_reason":"stop"},'])
def test_promise_3_a_document_with_an_open_choice_is_no_stream(
    gateway: Gateway, backend: FakeBackend, finish: str, before: bytes
) -> None:
    """It is judged as a stream is. An index that is repeated or missing hides no choice."""
    client = gateway.chat(stream=True)
    body = b'{"choices":[%b{"message":{"content":"a"},%b}]}' % (before, finish.encode())
    backend.calls[0].whole(body)
    assert (Answer(client).status, Answer(client).code) == (502, "upstream_reset")
    assert b"[DONE]" not in client.value() and the_end(gateway) is End.BACKEND_TRUNCATED


def test_a_request_for_a_document_gets_one_with_an_open_choice(
    gateway: Gateway, backend: FakeBackend
) -> None:
    client = gateway.chat()
    body = b'{"id":"req-1","choices":[{"index":0,"message":{},"finish_reason":null}]}'
    backend.calls[0].whole(body)
    assert (Answer(client).status, Answer(client).body) == (200, body)


@pytest.mark.parametrize("n", [2, 2000])
@pytest.mark.parametrize("last", [as_events(b"[DONE]"), b""], ids=["done", "end"])
def test_a_reply_with_fewer_choices_than_asked_for_is_whole_if_its_framing_says_so(
    gateway: Gateway, backend: FakeBackend, last: bytes, n: int
) -> None:
    for _ in range(5):
        client = gateway.chat(stream=True, n=n)
        call = backend.calls[-1]
        call.head()
        call.send(as_events(*STREAM) + last)
        if not last:
            call.end()
        assert Answer(client).payloads == [*map(renamed, STREAM), b"[DONE]"]
        assert gateway.ended[-1].end is End.COMPLETE and gateway.targets[0].available


@pytest.mark.parametrize(
    ("events", "begun"),
    [
        ((chunk("a"), chunk("b", index=1999), chunk(finish="stop")), True),
        ((b'{"choices":[]}',), True),
        ((b"null",), False),
    ],
    ids=["one of two", "none", "nothing"],
)
def test_promise_3_done_with_a_choice_open_or_none_is_an_error(
    gateway: Gateway, backend: FakeBackend, events: tuple[bytes, ...], begun: bool
) -> None:
    client = gateway.chat(stream=True, n=2000)
    backend.calls[0].head()
    backend.calls[0].send(as_events(*events, b"[DONE]"))
    assert b"[DONE]" not in client.value() and Answer(client).status == (200 if begun else 502)
    assert the_end(gateway) is (End.BACKEND_TRUNCATED if begun else End.BACKEND_ERROR)


def test_a_stream_with_too_many_choices_is_an_error(gateway: Gateway, backend: FakeBackend) -> None:
    client = gateway.chat(stream=True)
    backend.calls[0].head()
    backend.calls[0].send(as_events(*(chunk("a", index=index) for index in range(5000))))
    assert len(Answer(client).payloads) == 4097 and not Answer(client).complete
    assert json.loads(Answer(client).payloads[-1])["error"]["code"] == "upstream_bad_response"


@pytest.mark.parametrize("done", [b"data:[DONE]\n\n", b"data:  [DONE] \n\n", b"data: [DONE]\n\n"])
def test_done_may_have_white_space_around_it(
    gateway: Gateway, backend: FakeBackend, done: bytes
) -> None:
    client = gateway.chat(stream=True)
    backend.calls[0].head()
    backend.calls[0].send(as_events(*STREAM) + done)
    assert Answer(client).payloads == [*map(renamed, STREAM), b"[DONE]"]


WHOLE = as_events(*STREAM, b"[DONE]")


@given(
    cut=st.integers(0, len(WHOLE)),
    segments=st.lists(st.integers(0, len(WHOLE)), max_size=6),
    how=st.sampled_from([None, PotentialDataLoss(), errors.Truncated("Cut.")]),
)
def test_promise_3_wherever_a_stream_is_cut_the_client_gets_all_of_it_or_an_error(
    cut: int, segments: list[int], how: Exception | None
) -> None:
    backend = FakeBackend()
    gateway = Gateway(backend)
    client = gateway.chat(stream=True)
    call = backend.calls[0]
    call.head()
    edges = sorted({0, cut, *(s for s in segments if s < cut)})
    for start, stop in itertools.pairwise(edges):
        if call.left is None:
            call.send(WHOLE[start:stop])
    if call.left is None:
        call.end(how)
    answer = Answer(client)
    end = the_end(gateway)
    came = WHOLE[:cut].count(b"\n\n")
    if end is End.COMPLETE:
        assert answer.payloads == [*map(renamed, STREAM), b"[DONE]"] and answer.complete
        assert came >= len(STREAM) or (how is None or isinstance(how, PotentialDataLoss))
    elif answer.status == 200:
        assert b'"error"' in answer.payloads[-1] and not answer.complete and answer.closed
        expected = [renamed(p) for p in STREAM]
        assert answer.payloads[:-1] == expected[: len(answer.payloads) - 1]
        assert came <= len(answer.payloads) - 1 <= came + 1 and came <= len(STREAM)
    else:
        assert answer.status == 502 and answer.json["error"]["message"]
        assert not came


# -- leaving cancels -------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("phase", ["asking", "head", "body"])
def test_promise_4_a_client_that_disconnects_cancels_its_backend_request_at_once(
    gateway: Gateway, backend: FakeBackend, phase: str, stream: bool
) -> None:
    client = gateway.chat(stream=stream)
    call = backend.calls[0]
    if phase != "asking":
        call.head(media_type="text/event-stream" if stream else "application/json")
    if phase == "body":
        call.send(as_events(STREAM[0]) if stream else b'{"id"')
    client.leave()
    assert call.left == ("cancelled" if phase == "asking" else "aborted")
    assert the_end(gateway) is End.CLIENT_GONE
    assert gateway.ended[0].status == (200 if stream and phase == "body" else 499)
    assert not gateway.clock.getDelayedCalls()


def test_promise_4_pipelined_bytes_do_not_hide_a_disconnect(
    gateway: Gateway, backend: FakeBackend
) -> None:
    client = gateway.chat()
    client.protocol.dataReceived(b"x" * 20_000)
    assert client.producerState == "producing"  # else a disconnect would not be seen
    client.leave()
    assert backend.calls[0].left == "cancelled"


def test_a_client_that_pipelines_without_end_is_cut_off(
    gateway: Gateway, backend: FakeBackend
) -> None:
    client = gateway.chat()
    client.protocol.dataReceived(b"x" * 70_000)
    assert client.aborted and backend.calls[0].left == "cancelled"


# -- bounded memory --------------------------------------------------------------------------------


def test_promise_5_a_slow_reader_pauses_its_backend(gateway: Gateway, backend: FakeBackend) -> None:
    client = gateway.chat(stream=True)
    call = backend.calls[0]
    call.head()
    call.event(STREAM[0])
    client.protocol.outgoing.pauseProducing()
    assert call.paused
    gateway.clock.advance(50)  # no clock of the backend runs while it is paused
    client.protocol.outgoing.resumeProducing()
    assert not call.paused and call.left is None
    gateway.clock.advance(10)
    assert the_end(gateway) is End.BACKEND_TIMEOUT


def test_promise_5_an_event_and_a_reply_have_limits() -> None:
    backend = FakeBackend()
    gateway = Gateway(backend, settings=settings(limits_event="1000", limits_reply="2000"))
    client = gateway.chat(stream=True)
    backend.calls[0].head()
    backend.calls[0].send(b"data: " + b"x" * 1001)
    assert Answer(client).code == "upstream_bad_response"
    client = gateway.chat()
    backend.calls[1].head(media_type="application/json")
    backend.calls[1].send(b" " * 2001)
    assert Answer(client).code == "upstream_bad_response"
    assert [call.left for call in backend.calls] == ["aborted", "aborted"]


def test_a_client_that_takes_nothing_is_cut_off_after_client_write() -> None:
    backend = FakeBackend(clocks=Clocks())
    gateway = Gateway(backend, settings=settings(timeouts_client_write="3", timeouts_ping="0"))
    client = gateway.chat(stream=True)
    backend.calls[0].head()
    backend.calls[0].event(STREAM[0])
    client.protocol.outgoing.pauseProducing()
    gateway.clock.pump([0.25] * 11)
    assert not client.aborted
    gateway.clock.pump([0.25] * 2)
    assert client.aborted and backend.calls[0].left == "aborted"


# -- clocks ----------------------------------------------------------------------------------------


def test_promise_9_first_byte_runs_until_content_and_comments_are_none(
    gateway: Gateway, backend: FakeBackend
) -> None:
    client = gateway.chat(stream=True)
    backend.calls[0].head()
    for _ in range(29):
        gateway.clock.advance(1)
        backend.calls[0].send(b": ping\n\n")
    assert client.value() == b""
    gateway.clock.advance(1)
    assert (Answer(client).status, Answer(client).code) == (504, "upstream_timeout")
    assert backend.calls[0].left == "aborted"


def test_promise_9_idle_runs_between_bytes_of_content(
    gateway: Gateway, backend: FakeBackend
) -> None:
    client = gateway.chat(stream=True)
    call = backend.calls[0]
    call.head()
    call.event(STREAM[0])
    slow = as_events(STREAM[1])
    for piece in (slow[:10], slow[10:20], slow[20:]):
        gateway.clock.advance(9)
        call.send(piece)  # data of an event is content
    for _ in range(10):
        assert call.left is None
        call.send(b": still here\n\n")  # a comment is not
        gateway.clock.advance(1)
    assert call.left == "aborted"
    assert json.loads(Answer(client).payloads[-1])["error"]["code"] == "upstream_timeout"
    assert the_end(gateway) is End.BACKEND_TIMEOUT


EMPTY = {
    "no data": b"data\ndata:\n\n",
    "white space": b"data:   \n\n",
    "named": b'event: ping\ndata: {"type":"ping"}\n\n',
    "in pieces": b'event: keepalive\ndata: {"type":',  # the end of it comes with the next one
    "null": b"data: null\n\n",
    "no choice": b'data: {"choices":[]}\n\n',
    "empty text": as_events(chunk()),
}


@pytest.mark.parametrize("kind", EMPTY)
@pytest.mark.parametrize("clock", ["first_byte", "idle"])
def test_promise_9_events_without_content_delay_no_clock(
    gateway: Gateway, backend: FakeBackend, kind: str, clock: str
) -> None:
    client = gateway.chat(stream=True)
    call = backend.calls[0]
    call.head()
    if clock == "idle" or kind == "empty text":  # the first of these begins a choice
        call.send(as_events(chunk("a"), chunk("b")))
        clock = "idle"
    for _ in range(30 if clock == "first_byte" else 10):
        assert call.left is None
        call.send(EMPTY[kind])
        gateway.clock.advance(0.5)
        if kind == "in pieces":
            call.send(b'"keepalive"}\n\n')
        gateway.clock.advance(0.5)
    assert call.left == "aborted" and the_end(gateway) is End.BACKEND_TIMEOUT
    assert f"({clock})".encode() in client.value()


@pytest.mark.parametrize("clock", ["first_byte", "idle"])
def test_promise_9_a_ping_in_two_pieces_delays_a_clock_by_no_more_than_itself(
    gateway: Gateway, backend: FakeBackend, clock: str
) -> None:
    client = gateway.chat(stream=True)
    call = backend.calls[0]
    call.head()
    if clock == "idle":
        call.event(chunk("a"))
    gateway.clock.advance(29.5 if clock == "first_byte" else 9.5)
    call.send(b"event: ping\ndata: {")
    gateway.clock.advance(1)
    assert call.left is None
    call.send(b"}\n\n")
    gateway.clock.advance(0.01)
    assert call.left == "aborted" and f"({clock})".encode() in client.value()


def test_promise_9_an_event_that_begins_and_stalls_runs_into_idle(
    gateway: Gateway, backend: FakeBackend
) -> None:
    gateway.chat(stream=True)
    call = backend.calls[0]
    call.head()
    call.send(b'data: {"cho')
    gateway.clock.advance(9.9)
    assert call.left is None
    gateway.clock.advance(0.2)
    assert call.left == "aborted"


def test_empty_chunks_cross_and_are_no_first_token(gateway: Gateway, backend: FakeBackend) -> None:
    client = gateway.chat(stream=True)
    call = backend.calls[0]
    call.head()
    gateway.clock.advance(1)
    call.event(b'{"id":"req-1","choices":[],"prompt_filter_results":[]}')
    assert len(Answer(client).payloads) == 1
    gateway.clock.advance(2)
    call.send(as_events(*STREAM, b"[DONE]"))
    (exchange,) = gateway.ended
    assert (exchange.first_byte, exchange.first_event) == (3, 3)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("part", ["document", "event", "half an event"])
def test_promise_9_idle_runs_also_if_no_other_clock_does(stream: bool, part: str) -> None:
    if stream != (part != "document"):
        return
    backend = FakeBackend(clocks=Clocks(idle=5))
    gateway = Gateway(backend, settings=settings(timeouts_ping="0"))
    gateway.chat(stream=stream)
    (call,) = backend.calls
    call.head(media_type="text/event-stream" if stream else "application/json")
    gateway.clock.advance(1000)
    sent = {"document": b'{"id"', "event": as_events(STREAM[0]), "half an event": b"data: {"}
    call.send(sent[part])
    gateway.clock.pump([0.5] * 9)
    assert call.left is None
    gateway.clock.pump([0.5] * 2)
    assert call.left == "aborted" and the_end(gateway) is End.BACKEND_TIMEOUT


def test_promise_9_white_space_before_a_document_is_no_content(
    gateway: Gateway, backend: FakeBackend
) -> None:
    client = gateway.chat()
    backend.calls[0].head(media_type="application/json")
    for _ in range(29):
        backend.calls[0].send(b"\n")
        gateway.clock.advance(1)
    assert not client.value()
    gateway.clock.advance(1)
    assert Answer(client).status == 504 and "first_byte" in Answer(client).json["error"]["message"]


def test_promise_9_total_runs_whatever_comes(gateway: Gateway, backend: FakeBackend) -> None:
    client = gateway.chat(stream=True)
    backend.calls[0].head()
    for _ in range(100):
        assert not Answer(client).closed
        backend.calls[0].event(STREAM[0])
        gateway.clock.advance(1)
    assert Answer(client).closed and not Answer(client).complete


@pytest.mark.parametrize("header", ["x-stainless-read-timeout", "X-Stainless-Timeout"])
def test_a_request_ends_when_the_callers_own_timeout_is_over(
    gateway: Gateway, backend: FakeBackend, header: str
) -> None:
    client = gateway.chat(headers={header: "5"})
    gateway.clock.advance(4.9)
    assert backend.calls[0].left is None
    gateway.clock.advance(0.2)
    assert Answer(client).status == 504 and backend.calls[0].left == "cancelled"


def test_promise_9_pings_fill_the_backends_silence_and_reset_no_clock() -> None:
    backend = FakeBackend(clocks=Clocks(first_byte=3))
    gateway = Gateway(backend, settings=settings(timeouts_ping="1"))
    client = gateway.chat(stream=True)
    gateway.clock.pump([0.5] * 5)
    answer = Answer(client)
    assert answer.status == 200 and answer.body == b": ping\n\n" * 2
    gateway.clock.pump([0.5] * 2)
    answer = Answer(client)
    assert json.loads(answer.payloads[-1])["error"]["code"] == "upstream_timeout"
    assert answer.closed and not answer.complete


def test_after_a_ping_an_error_status_can_only_be_sent_in_band() -> None:
    backend = FakeBackend()
    gateway = Gateway(backend, settings=settings(timeouts_ping="1"))
    client = gateway.chat(stream=True)
    gateway.clock.advance(1)
    backend.calls[0].whole(b'{"error":{"message":"no"}}', 500)
    assert Answer(client).payloads == [b'{"error":{"message":"no"}}']
    assert not Answer(client).complete
    assert gateway.ended[0].status == 200 and gateway.ended[0].end is End.BACKEND_ERROR


def test_a_reply_is_not_pinged_when_it_is_no_stream() -> None:
    backend = FakeBackend()
    gateway = Gateway(backend, settings=settings(timeouts_ping="1"))
    client = gateway.chat()
    gateway.clock.advance(100)
    assert client.value() == b""
    backend.calls[0].whole(completion())
    assert Answer(client).status == 200


# -- statuses ------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 404, 413, 422, 429, 500, 503, 529])
def test_an_error_status_is_kept_and_so_is_an_envelope(
    gateway: Gateway, backend: FakeBackend, status: int
) -> None:
    client = gateway.chat()
    body = b'{"error" : {"message":"as it came", "code":7}}'
    backend.calls[0].whole(body, status)
    assert (Answer(client).status, Answer(client).body) == (status, body)


def test_a_page_in_place_of_an_envelope_is_replaced(gateway: Gateway, backend: FakeBackend) -> None:
    client = gateway.chat()
    backend.calls[0].whole(b"<html>/srv/secret</html>", 500, "text/html")
    assert Answer(client).status == 500
    assert set(Answer(client).json["error"]) == {"message", "type", "param", "code"}
    assert b"secret" not in client.value()


@pytest.mark.parametrize(
    ("status", "code"), [(401, "upstream_auth"), (302, "upstream_bad_response")]
)
def test_a_status_that_a_client_must_not_act_on_becomes_a_502(
    gateway: Gateway, backend: FakeBackend, status: int, code: str
) -> None:
    client = gateway.chat()
    backend.calls[0].head(status, "application/json")
    assert (Answer(client).status, Answer(client).code) == (502, code)
    assert backend.calls[0].left == "aborted"
