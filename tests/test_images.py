"""Images: forms and JSON, and when a stream of images is complete; in memory."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.web.http import PotentialDataLoss

from gatewayd.exchange import End
from tests.memory import Answer, FakeBackend, Gateway
from tests.replies import framed, typed
from tests.uploads import form, upload

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
KINDS = {GENERATIONS: "image_generation", EDITS: "image_edit"}


def partial(path: str, index: int = 0) -> tuple[str, bytes]:
    return typed(f"{KINDS[path]}.partial_image", b64_json="AAAA", partial_image_index=index)


def finished(path: str) -> tuple[str, bytes]:
    usage = {"input_tokens": 5, "output_tokens": 40}
    return typed(f"{KINDS[path]}.completed", b64_json="BBBB", usage=usage)


def asked(gateway: Gateway, path: str, n: int | None = None) -> Any:
    """Ask for a stream of images: as a form for edits, as JSON for others."""
    more = {} if n is None else {"n": n}
    if path == EDITS:
        fields = [(name, str(value).encode()) for name, value in more.items()]
        return upload(gateway, form(("stream", b"true"), ("image[]", b"x"), *fields), path=path)
    return gateway.post(path, prompt="otter", stream=True, partial_images=1, **more)


@pytest.mark.parametrize("path", KINDS)
def test_a_stream_ends_with_the_finished_image(
    gateway: Gateway, backend: FakeBackend, path: str
) -> None:
    client = asked(gateway, path)
    (call,) = backend.calls
    call.head()
    call.send(framed([partial(path), finished(path)]) + b"data: [DONE]\n\n")
    answer = Answer(client)
    assert answer.body == framed([partial(path), finished(path)]) and answer.complete
    assert gateway.end is End.COMPLETE and gateway.ended[0].usage.completion_tokens == 40


@pytest.mark.parametrize("path", KINDS)
def test_a_stream_of_several_images_ends_with_the_last(
    gateway: Gateway, backend: FakeBackend, path: str
) -> None:
    client = asked(gateway, path, 2)
    (call,) = backend.calls
    call.head()
    events = [partial(path), finished(path), partial(path), finished(path)]
    for event in events[:-1]:
        call.send(framed([event]))
        assert not Answer(client).complete
    call.send(framed(events[-1:]))
    assert Answer(client).body == framed(events) and Answer(client).complete


@pytest.mark.parametrize("path", KINDS)
@pytest.mark.parametrize(
    ("events", "how", "end"),
    [
        ("c", None, End.COMPLETE),  # fewer than asked for, as chats may be
        ("cp", None, End.BACKEND_TRUNCATED),
        ("c", PotentialDataLoss(), End.BACKEND_TRUNCATED),
        ("p", None, End.BACKEND_TRUNCATED),
    ],
)
def test_a_stream_with_fewer_images_needs_a_framed_end(
    gateway: Gateway, backend: FakeBackend, path: str, events: str, how: Any, end: End
) -> None:
    client = asked(gateway, path, 2)
    (call,) = backend.calls
    call.head()
    made = {"c": finished(path), "p": partial(path)}
    call.send(framed([made[event] for event in events]))
    call.end(how)
    assert gateway.end is end and Answer(client).complete is (end is End.COMPLETE)


def test_a_ping_after_the_last_image_does_not_undo_it(
    gateway: Gateway, backend: FakeBackend
) -> None:
    client = asked(gateway, GENERATIONS, 2)
    (call,) = backend.calls
    call.head()
    call.send(framed([finished(GENERATIONS), typed("keepalive")]) + b"data: null\n\n")
    call.end()
    assert Answer(client).complete and gateway.end is End.COMPLETE


@pytest.mark.parametrize("path", KINDS)
def test_an_error_event_ends_a_stream_of_images(
    gateway: Gateway, backend: FakeBackend, path: str
) -> None:
    client = asked(gateway, path)
    (call,) = backend.calls
    call.head()
    call.send(framed([partial(path), typed("error", error={"message": "no", "code": "x"})]))
    assert b'"no"' in Answer(client).payloads[-1] and not Answer(client).complete
    assert gateway.end is End.BACKEND_ERROR


@pytest.mark.parametrize("path", KINDS)
def test_images_without_a_stream_are_a_document(
    gateway: Gateway, backend: FakeBackend, path: str
) -> None:
    if path == EDITS:
        client = upload(gateway, form(("model", b"nick"), ("n", b"2"), ("image", b"x")), path=path)
    else:
        client = gateway.post(path, model="nick", prompt="otter", n=2)
    reply = b'{"created":1, "data":[{"b64_json":"AAAA"}],"usage":{"input_tokens":5}}'
    backend.calls[0].whole(reply)
    assert Answer(client).body == reply and gateway.ended[0].usage.prompt_tokens == 5


@pytest.mark.parametrize("model", ["nick", "m"])
def test_an_edit_may_be_json(gateway: Gateway, backend: FakeBackend, model: str) -> None:
    client = gateway.post(EDITS, model=model, images=[{"image_url": "data:,"}], stream=True)
    (call,) = backend.calls
    assert call.call.content_type == b"application/json" and call.call.stream
    assert json.loads(call.body)["model"] == ("real" if model == "nick" else model)
    call.head()
    call.send(framed([finished(EDITS)]))
    assert Answer(client).complete


@pytest.mark.parametrize("n", ["x", "2.0", "-1", "99999", "1e9", " 2"])
def test_an_odd_number_of_images_is_judged_by_the_backend(
    gateway: Gateway, backend: FakeBackend, n: str
) -> None:
    """The backend may make several, so the first one does not end the stream."""
    upload(gateway, form(("n", n.encode()), ("stream", b"1"), ("image", b"x")), path=EDITS)
    gateway.post(GENERATIONS, n=n, stream=True)
    for call, path in zip(backend.calls, (EDITS, GENERATIONS), strict=True):
        call.head()
        call.send(framed([finished(path)]))
        assert call.left is None
        call.send(framed([finished(path)]))
        call.end()
    assert [exchange.end for exchange in gateway.ended] == [End.COMPLETE] * 2


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded"])
def test_an_edit_of_another_media_type_is_refused(gateway: Gateway, kind: str) -> None:
    answer = Answer(gateway.request("POST", EDITS, b"x", {"Content-Type": kind}))
    assert answer.code == "unsupported_media_type" and "or JSON" in answer.json["error"]["message"]


def test_variations_have_no_streams(gateway: Gateway, backend: FakeBackend) -> None:
    upload(gateway, form(("stream", b"true"), ("image", b"x")), path="/v1/images/variations")
    assert not backend.calls[0].call.stream
