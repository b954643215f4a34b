"""What holds at every endpoint: what crosses, what is changed, and how replies end; in memory."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.web.http import PotentialDataLoss

from gatewayd.api.app import HEALTH_PATHS
from gatewayd.exchange import End
from gatewayd.routing.health import State
from gatewayd.wire import errors
from gatewayd.wire.call import Call, Endpoint
from gatewayd.wire.endpoints import ENDPOINTS
from gatewayd.wire.responses import StoredCall
from tests.memory import EVENTS, Answer, FakeBackend, Gateway, settings
from tests.replies import (
    CHAT,
    JSON_PATHS,
    OPENAI_PATHS,
    READ_PATHS,
    SPEECH,
    STREAMS,
    UPLOAD_PATHS,
    endpoint,
    framed,
)
from tests.uploads import FORM, SOUND, form, upload

PROTOCOL = Path(__file__).parents[1] / "docs" / "protocol.rst"
STREAMED = b'{"stream":true,"stream_format":"sse","messages":[{"role":"user"}]}'
JSON_HEADERS = {"Content-Type": "application/json", "X-Request-ID": "req-1"}


# -- the table -------------------------------------------------------------------------------------


def section() -> str:
    _, _, rest = PROTOCOL.read_text().partition("The other endpoints\n---")
    return rest.partition("\nRequest ids\n---")[0]


def documented() -> dict[tuple[str, str], str]:
    """What ``docs/protocol.rst`` says of each endpoint's replies, by method and path."""
    rows = re.findall(r"   \* - (``[A-Z]+ (?:.+\n)+?)     - ((?:.+\n)+?)(?=   \* -|\n)", section())
    found: dict[tuple[str, str], str] = {}
    for names, text in rows:
        method = ""
        for other, path in re.findall(r"``([A-Z]+ |)(/[^`]+)``", names):
            method = other.strip() or method
            found[method, path] = text
    return found


def test_every_endpoint_is_documented() -> None:
    assert list(documented()) == [(row.method, row.path) for row in ENDPOINTS if row.path != CHAT]


def test_the_other_names_of_endpoints_are_documented() -> None:
    names = {name for row in ENDPOINTS for name in row.aliases} | set(HEALTH_PATHS)
    assert names <= set(re.findall(r"``(?:GET )?(/[^`]+)``", section()))


@pytest.mark.parametrize("row", [row for row in ENDPOINTS if row.path != CHAT], ids=str)
def test_the_events_that_end_a_stream_are_documented(row: Endpoint) -> None:
    text = documented()[row.method, row.path]
    ends = [kind for kind in row.ends if kind != "[DONE]"]
    assert all(f"``{kind}``" in text for kind in ends)


@pytest.mark.parametrize("row", ENDPOINTS, ids=lambda row: row.path)
def test_the_columns_of_a_row_agree(row: Endpoint) -> None:
    call: Call
    if row.request is StoredCall:
        call = row.request.parse(row, b"", b"", 64).located({"id": "x"}, b"/?stream=true")
    else:
        body = form(("stream", b"true")) if row.path in UPLOAD_PATHS else STREAMED
        call = row.request.parse(row, body, FORM.encode(), 64)
    assert call.stream is bool(row.ends)
    reader = call.reader("req-1", 64, None)
    if reader is None:
        assert row.opaque
    else:
        assert reader.ends_with_done is (row.ends == {"[DONE]"})
    assert (call.counting_usage() is not call) is row.usage_on_request


# -- what crosses ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", READ_PATHS)
def test_a_request_and_its_reply_keep_their_bytes(
    gateway: Gateway, backend: FakeBackend, path: str
) -> None:
    body = b'{ "model":"m" ,"input":["\\u00e9", 1.0], "prompt":"x","x":12345678901234567890}'
    client = gateway.request("POST", path, body, JSON_HEADERS)
    (call,) = backend.calls
    assert (call.call.path, call.body, call.call.stream) == (path, body, False)
    assert call.call.content_type == b"application/json" and call.request_id == "req-1"
    reply = b'{"id" : "theirs","model":"m", "choices":[{"index":0}],"data":[1.0, 1e0],\n "x":{}}'
    call.whole(reply)
    assert (Answer(client).status, Answer(client).body) == (200, reply)
    assert call.left in (None, "released") and gateway.end is End.COMPLETE
    assert gateway.ended[0].route == path and gateway.ended[0].model == "m"


@pytest.mark.parametrize("path", JSON_PATHS)
def test_an_alias_changes_the_model_of_a_request_and_nothing_else(
    gateway: Gateway, backend: FakeBackend, path: str
) -> None:
    body = b'{"input":{"model":"nick"}, "model" :  "nick","y":1.0 }'
    gateway.request("POST", path, body, JSON_HEADERS)
    assert backend.calls[0].body == b'{"input":{"model":"nick"}, "model" :  "real","y":1.0 }'


@pytest.mark.parametrize("path", READ_PATHS)
def test_the_reply_to_a_request_for_an_alias_carries_the_alias(
    gateway: Gateway, backend: FakeBackend, path: str
) -> None:
    client = gateway.post(path, model="nick")
    reply = b'{"x":{"model":"real"},"model":"real" , "choices":[{"index":0,"text":"real"}],"y":1.0}'
    backend.calls[0].whole(reply)
    assert Answer(client).body == reply.replace(b'"model":"real" ,', b'"model":"nick" ,')


@pytest.mark.parametrize("path", STREAMS)
@pytest.mark.parametrize("model", ["m", "nick"])
def test_a_stream_keeps_its_event_lines_and_payloads_but_for_the_aliased_name(
    gateway: Gateway, backend: FakeBackend, path: str, model: str
) -> None:
    client = gateway.post(path, model=model, stream=True)
    (call,) = backend.calls
    assert call.call.stream
    call.head()
    stream = framed(STREAMS[path])
    call.send(stream)
    answer = Answer(client)
    assert answer.status == 200 and answer.header("content-type") == EVENTS
    wanted = stream if model == "m" else stream.replace(b'"model": "real"', b'"model": "nick"')
    assert answer.body == wanted and answer.complete
    assert stream.count(b'"model": "real"') > 0  # otherwise the test proves nothing
    assert call.left == "released" and gateway.end is End.COMPLETE


@pytest.mark.parametrize("path", STREAMS)
@pytest.mark.parametrize("how", [None, PotentialDataLoss()], ids=["end", "eof"])
def test_a_stream_that_ends_before_its_last_event_is_an_error(
    gateway: Gateway, backend: FakeBackend, path: str, how: Exception | None
) -> None:
    client = gateway.post(path, stream=True)
    backend.calls[0].head()
    backend.calls[0].send(framed(STREAMS[path][:-2]))
    backend.calls[0].end(how)
    answer = Answer(client)
    assert answer.body.startswith(framed(STREAMS[path][:-2])) and b'"error"' in answer.payloads[-1]
    assert answer.closed and not answer.complete and b"[DONE]" not in answer.body
    assert gateway.end is End.BACKEND_TRUNCATED


@given(
    path=st.sampled_from(sorted(STREAMS)),
    data=st.data(),
    how=st.sampled_from([None, PotentialDataLoss(), errors.Truncated("Cut.")]),
)
def test_promise_3_wherever_a_stream_is_cut_the_client_gets_all_or_an_error(
    path: str, data: st.DataObject, how: Exception | None
) -> None:
    stream = framed(STREAMS[path])
    cut = data.draw(st.integers(0, len(stream)))
    segments = data.draw(st.lists(st.integers(0, cut), max_size=6))
    backend = FakeBackend()
    gateway = Gateway(backend)
    client = gateway.post(path, stream=True)
    (call,) = backend.calls
    call.head()
    for start, stop in itertools.pairwise(sorted({0, cut, *segments})):
        if call.left is None:
            call.send(stream[start:stop])
    if call.left is None:
        call.end(how)
    answer = Answer(client)
    came = stream[:cut].count(b"\n\n")
    if gateway.end is End.COMPLETE:
        assert answer.body == stream and answer.complete
    elif answer.status == 200:
        error = b"data: " + answer.payloads[-1] + b"\n\n"
        assert error.startswith((b'data: {"error"', b'data: {"type":"error"'))
        assert answer.closed and not answer.complete
        relayed = answer.body.removesuffix(error).removesuffix(b"event: error\n")
        assert stream.startswith(relayed) and came < len(STREAMS[path])
        assert came <= relayed.count(b"\n\n") <= came + 1
    else:
        assert answer.status == 502 and answer.json["error"]["message"]
        assert not came


@pytest.mark.parametrize("path", OPENAI_PATHS)
@pytest.mark.parametrize(
    "reply", [b'{"error":{"message":"no","code":500}}', b'{"type":"error","error":{"message":""}}']
)
def test_an_error_under_a_200_is_an_error(
    gateway: Gateway, backend: FakeBackend, path: str, reply: bytes
) -> None:
    client = gateway.post(path)
    backend.calls[0].whole(reply)
    assert (Answer(client).status, Answer(client).body) == (502, reply)
    assert gateway.end is End.BACKEND_ERROR


@pytest.mark.parametrize("path", READ_PATHS)
@pytest.mark.parametrize(
    "reply", [b"", b"{", b"null", b'"x"', b'{"a":NaN}', b'{"a":"\xff"}', b"[1", b"[" * 100]
)
def test_a_reply_that_cannot_be_read_is_a_502(
    gateway: Gateway, backend: FakeBackend, path: str, reply: bytes
) -> None:
    client = gateway.post(path)
    backend.calls[0].whole(reply)
    assert (Answer(client).status, Answer(client).code) == (502, "upstream_bad_response")


@pytest.mark.parametrize("path", READ_PATHS)
def test_a_reply_that_breaks_off_is_a_502(
    gateway: Gateway, backend: FakeBackend, path: str
) -> None:
    client = gateway.post(path)
    backend.calls[0].head(media_type="application/json")
    backend.calls[0].send(b'{"data":[]')
    backend.calls[0].end(errors.Truncated("It broke off."))
    assert (Answer(client).status, Answer(client).code) == (502, "upstream_reset")


@pytest.mark.parametrize("path", [p for p in READ_PATHS if not endpoint(p).ends])
def test_a_request_for_a_stream_is_not_one_at_an_endpoint_without_streams(
    gateway: Gateway, backend: FakeBackend, path: str
) -> None:
    client = gateway.post(path, stream=True)
    assert not backend.calls[0].call.stream and b'"stream": true' in backend.calls[0].body
    backend.calls[0].whole(b'{"data":[]}')
    assert Answer(client).body == b'{"data":[]}' and not gateway.ended[0].stream


@pytest.mark.parametrize("path", ["/v1/embeddings", "/pooling"])
@pytest.mark.parametrize("cut", [False, True])
def test_vectors_may_be_bytes(gateway: Gateway, backend: FakeBackend, path: str, cut: bool) -> None:
    client = gateway.post(path, input="a", encoding_format="bytes")
    (call,) = backend.calls
    call.head(media_type="application/octet-stream")
    call.send(b"\x00\x01")
    call.end(PotentialDataLoss() if cut else None)
    assert Answer(client).body == b"\x00\x01" and Answer(client).complete is not cut
    assert Answer(client).header("content-type") == "application/octet-stream"
    assert gateway.end is (End.BACKEND_TRUNCATED if cut else End.COMPLETE)


@pytest.mark.parametrize("status", [400, 404, 405, 422, 501])
@pytest.mark.parametrize("path", [*OPENAI_PATHS, SPEECH])
def test_an_endpoint_that_the_backend_does_not_have_answers_as_the_backend_does(
    gateway: Gateway, backend: FakeBackend, path: str, status: int
) -> None:
    reply = b'{"error" : {"message":"not here","code":%d}}' % status
    for _ in range(5):
        client = gateway.post(path)
        backend.calls[-1].whole(reply, status)
        assert (Answer(client).status, Answer(client).body) == (status, reply)
    assert gateway.targets[0].health.state is State.HEALTHY  # it may have other endpoints


@pytest.mark.parametrize("path", [*JSON_PATHS, *UPLOAD_PATHS])
def test_the_echo_refuses_all_but_chats_and_says_why(path: str) -> None:
    gateway = Gateway()
    if path in JSON_PATHS:
        client = gateway.post(path, model="echo")
    else:
        client = upload(gateway, form(("model", b"echo")), path=path)
    answer = Answer(client)
    assert (answer.status, answer.code) == (404, "unknown_url")
    assert "No backend is configured" in answer.json["error"]["message"]
    assert Answer(gateway.request("GET", path)).status == 405


@pytest.mark.parametrize("path", [CHAT, *JSON_PATHS])
@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"[]", "invalid_json"),
        (b'{"model":"a","model":"b"}', "invalid_json"),
        (b'{"model":5}', "invalid_value"),
        (b'{"stream":"yes"}', "invalid_value"),
    ],
)
def test_a_request_that_two_parsers_could_read_differently_is_refused(
    gateway: Gateway, backend: FakeBackend, path: str, body: bytes, code: str
) -> None:
    answer = Answer(gateway.request("POST", path, body, JSON_HEADERS))
    assert (answer.status, answer.code) == (400, code) and not backend.calls


def test_speech_is_passed_on_as_it_comes(gateway: Gateway, backend: FakeBackend) -> None:
    client = gateway.post(SPEECH, model="nick", input="hi")
    (call,) = backend.calls
    call.head(media_type="audio/mpeg", headers=((b"retry-after", b"1"),))
    assert client.value() == b""  # the reply has not begun
    for n in range(0, len(SOUND), 1000):
        call.send(SOUND[n : n + 1000])
        assert Answer(client).body == SOUND[: n + 1000] and not Answer(client).complete
    call.end()
    answer = Answer(client)
    assert answer.status == 200 and answer.header("content-type") == "audio/mpeg"
    assert answer.body == SOUND and answer.complete and not answer.closed
    assert gateway.end is End.COMPLETE


@pytest.mark.parametrize("how", [PotentialDataLoss(), errors.Truncated("x")], ids=["eof", "cut"])
@pytest.mark.parametrize("sent", [b"", SOUND], ids=["nothing", "some"])
def test_speech_is_whole_only_when_its_framing_says_so(
    gateway: Gateway, backend: FakeBackend, how: Exception, sent: bytes
) -> None:
    client = gateway.post(SPEECH, input="hi")
    backend.calls[0].head(media_type="audio/mpeg")
    if sent:
        backend.calls[0].send(sent)
    backend.calls[0].end(how)
    answer = Answer(client)
    if sent:
        assert answer.body == sent  # the gateway adds nothing to the audio
        assert answer.closed and not answer.complete
    else:
        assert (answer.status, answer.code) == (502, "upstream_reset")
    assert gateway.end is End.BACKEND_TRUNCATED


def test_speech_without_a_sound_is_whole_and_had_no_first_byte(
    gateway: Gateway, backend: FakeBackend
) -> None:
    client = gateway.post(SPEECH, input="")
    backend.calls[0].head(media_type="audio/mpeg")
    backend.calls[0].end()
    answer = Answer(client)
    assert (answer.status, answer.body, answer.complete) == (200, b"", True)
    assert gateway.ended[0].first_event is None


def test_speech_that_stalls_is_cut(backend: FakeBackend) -> None:
    gateway = Gateway(backend, settings=settings(timeouts_ping="1"))
    client = gateway.post(SPEECH, input="hi", stream=True)
    gateway.clock.advance(5)
    assert client.value() == b""  # no comments before the audio
    backend.calls[0].head(media_type="audio/mpeg")
    backend.calls[0].send(SOUND)
    gateway.clock.pump([1] * 119)
    assert Answer(client).body == SOUND and not Answer(client).closed  # nor within it
    gateway.clock.advance(1)
    assert Answer(client).body == SOUND and Answer(client).closed and not Answer(client).complete
    assert gateway.end is End.BACKEND_TIMEOUT


def test_a_client_that_leaves_stops_the_speech(gateway: Gateway, backend: FakeBackend) -> None:
    client = gateway.post(SPEECH, input="hi")
    backend.calls[0].head(media_type="audio/mpeg")
    backend.calls[0].send(SOUND)
    client.protocol.outgoing.pauseProducing()
    assert backend.calls[0].paused
    client.leave()
    assert backend.calls[0].left == "aborted" and gateway.end is End.CLIENT_GONE


def test_an_error_in_place_of_speech_is_an_error(gateway: Gateway, backend: FakeBackend) -> None:
    client = gateway.post(SPEECH, input="hi")
    backend.calls[0].whole(b'{"error":{"message":"no voice"}}', 400)
    assert Answer(client).status == 400 and Answer(client).json["error"]["message"] == "no voice"
