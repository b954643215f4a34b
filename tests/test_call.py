"""The types of requests: which media types are taken, and that a call is a value."""

from __future__ import annotations

import pytest

from gatewayd.wire.errors import UnsupportedMediaType
from tests.replies import CHAT, SPEECH, TRANSCRIPTIONS, endpoint
from tests.uploads import FORM, form

JSON = "application/json"


@pytest.mark.parametrize("value", [JSON, "Application/JSON; charset=utf-8", JSON + " ;x"])
def test_json_may_have_parameters(value: str) -> None:
    assert endpoint(CHAT).request.check_media_type([value.encode()]) == value.encode()


@pytest.mark.parametrize(
    ("path", "values"),
    [
        (CHAT, []),
        (CHAT, [JSON, JSON]),
        (CHAT, [FORM]),
        (CHAT, ["text/plain"]),
        (CHAT, ["application/jsonx"]),
        (CHAT, [JSON + "; \u00e9"]),
        (TRANSCRIPTIONS, []),
        (TRANSCRIPTIONS, [FORM, FORM]),
        (TRANSCRIPTIONS, [JSON]),
        (TRANSCRIPTIONS, ["multipart/form-data"]),
    ],
)
def test_another_media_type_is_refused(path: str, values: list[str]) -> None:
    with pytest.raises(UnsupportedMediaType):
        endpoint(path).request.check_media_type([value.encode() for value in values])


def test_a_call_makes_other_calls_and_stays_as_it_is() -> None:
    row = endpoint(TRANSCRIPTIONS)
    call = row.request.parse(row, form(("model", b"a"), ("stream", b"1")), FORM.encode(), 64)
    other = call.renamed("longer").renamed("b")
    assert (other.model, other.body) == ("b", form(("model", b"b"), ("stream", b"1")))
    assert (call.model, call.stream, other.stream) == ("a", True, True)
    assert call.counting_usage() is call


@pytest.mark.parametrize("path", [CHAT, SPEECH])
def test_a_call_is_shown_without_its_body(path: str) -> None:
    row = endpoint(path)
    body = b'{"model":"m","messages":[{"role":"user","content":"secret"}]}'
    call = row.request.parse(row, body, JSON.encode(), 64).renamed("other")
    assert "other" in repr(call) and "secret" not in repr(call)


def test_where_no_reply_is_read_there_is_no_reader() -> None:
    row = endpoint(SPEECH)
    call = row.request.parse(row, b"{}", JSON.encode(), 64)
    assert call.reader("req-1", 64, None) is None and call.opaque
