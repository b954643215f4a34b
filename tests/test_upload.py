"""Uploads: which model they are for, what crosses, and what is refused; in memory."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatewayd.wire.call import Call
from gatewayd.wire.upload import FormCall
from tests.memory import Answer, FakeBackend, Gateway, settings
from tests.replies import TRANSCRIPTIONS, UPLOAD_PATHS, endpoint
from tests.uploads import BOUNDARY, FORM, SOUND, form, sound, upload


def parsed(body: bytes) -> Call:
    return FormCall.parse(endpoint(TRANSCRIPTIONS), body, FORM.encode(), 64)


@pytest.mark.parametrize("path", UPLOAD_PATHS)
@pytest.mark.parametrize("first", [True, False])
def test_an_upload_is_sent_unchanged_to_the_backend_of_its_model(path: str, first: bool) -> None:
    a, b = FakeBackend("a"), FakeBackend("b")
    urls = {f"backend_{name}_url": "http://127.0.0.1:1" for name in ("a", "b")}
    gateway = Gateway(
        a, b, settings=settings(**urls, backend_a_models="x", backend_b_models="whisper-*")
    )
    end = f"--{BOUNDARY}--\r\n".encode()
    fields = form(("model", b"whisper-1"), ("language", "d\u00e9".encode())).removesuffix(end)
    body = (fields + sound() if first else sound() + fields) + end
    client = upload(gateway, body, path=path)
    (call,) = b.calls
    assert not a.calls
    assert (call.call.path, call.body) == (path, body)
    assert call.call.content_type == FORM.encode()
    call.whole(b'{"text" : "hello"}')
    assert Answer(client).body == b'{"text" : "hello"}'
    assert Answer(client).header("content-type") == "application/json"
    assert gateway.ended[0].model == "whisper-1" and gateway.ended[0].route == path


@pytest.mark.parametrize("model", [b"nick", b"m"])
def test_an_upload_for_an_alias_goes_out_under_the_real_name(
    gateway: Gateway, backend: FakeBackend, model: bytes
) -> None:
    client = upload(gateway, form(("file", b"nick"), ("model", model)))
    wanted = b"real" if model == b"nick" else model
    assert backend.calls[0].body == form(("file", b"nick"), ("model", wanted))
    backend.calls[0].whole(b"hello", media_type="text/plain")
    assert Answer(client).body == b"hello" and gateway.ended[0].model == model.decode()


def test_the_reply_to_an_upload_may_be_of_any_kind(gateway: Gateway, backend: FakeBackend) -> None:
    client = upload(gateway, form(("file", b"x")))
    backend.calls[0].whole(b"WEBVTT\n", media_type="text/vtt")
    assert Answer(client).body == b"WEBVTT\n"
    assert Answer(client).header("content-type") == "text/vtt"


@pytest.mark.parametrize("before", [b"", b"preamble\r\n"])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_the_form_of_an_alias_changes_in_its_model_alone(before: bytes, at: int) -> None:
    fields = [("prompt", b"nick"), ("file", b"nick\r\n\r\nnick" + SOUND)]
    fields.insert(at, ("model", b"nick"))
    body = before + form(*fields) + b"epilogue"
    call = parsed(body)
    fields[at] = ("model", "r\u00e9al".encode())
    assert call.renamed("r\u00e9al").body == before + form(*fields) + b"epilogue"


@given(
    st.lists(st.tuples(st.sampled_from(["prompt", "file", "x"]), st.binary(max_size=60))),
    st.integers(0, 5),
)
def test_every_other_field_stays_when_a_form_is_renamed(
    fields: list[tuple[str, bytes]], at: int
) -> None:
    asked, wanted = list(fields), list(fields)
    asked.insert(at, ("model", b"nick"))
    wanted.insert(at, ("model", b"real"))
    call = parsed(form(*asked))
    assert call.model == "nick" and call.renamed("real").body == form(*wanted)


def test_a_form_that_two_parsers_could_read_differently_is_refused(
    gateway: Gateway, backend: FakeBackend
) -> None:
    body = form(("model", b"a")).replace(b'name="model"', b"name=\"x\"; name*=UTF-8''model")
    answer = Answer(upload(gateway, body))
    assert (answer.status, answer.code) == (400, "invalid_value") and not backend.calls
    assert "differently" in answer.json["error"]["message"]


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 415),
        ("multipart/mixed; boundary=x", 415),
        ("multipart/form-data", 415),
        ("multipart/form-data; charset=utf-8", 400),
        ("multipart/form-data; boundary*=UTF-8''x; boundary=x", 400),
        ('multipart/form-data; boundary=""', 400),
    ],
)
def test_an_upload_must_be_a_form(
    gateway: Gateway, backend: FakeBackend, kind: str, status: int
) -> None:
    answer = Answer(upload(gateway, form(("model", b"a")), kind))
    assert answer.status == status and not backend.calls


def test_a_caller_may_upload_for_its_models_only() -> None:
    digest = hashlib.sha256(b"gw-a").hexdigest()
    backend = FakeBackend()
    gateway = Gateway(backend, settings=settings(token_a_sha256=digest, token_a_models="whisper-1"))
    headers = {"Content-Type": FORM, "Authorization": "Bearer gw-a"}
    for model, status in ((b"whisper-2", 403), (b"whisper-1", 0)):
        client = gateway.request("POST", TRANSCRIPTIONS, form(("model", model)), headers)
        assert Answer(client).status == status
    assert len(backend.calls) == 1
