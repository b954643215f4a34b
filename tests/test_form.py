"""Forms: what is read, and that a form which parsers could read differently is refused."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatewayd.wire.errors import InvalidValue
from gatewayd.wire.form import MAX_HEAD, MAX_PARTS, boundary, read

B = "x7MA4YWxk"
KNOWN = ("model", "stream")


def part(disposition: str, value: bytes = b"a", *more: str) -> bytes:
    lines = [f"--{B}", f"Content-Disposition: {disposition}", *more, "", ""]
    return "\r\n".join(lines).encode() + value + b"\r\n"


def named(name: str, value: bytes = b"a", *more: str) -> bytes:
    return part(f'form-data; name="{name}"', value, *more)


END = f"--{B}--\r\n".encode()
MODEL = named("model")


def fields(body: bytes) -> dict[str, str]:
    found = read(body, B.encode(), KNOWN)
    for field in found.values():
        assert body[field.start : field.end] == field.value.encode()
    return {name: field.value for name, field in found.items()}


def refusal(body: bytes) -> str:
    with pytest.raises(InvalidValue) as caught:
        fields(body)
    assert len(caught.value.message) < 200
    return caught.value.message


@pytest.mark.parametrize(
    "disposition",
    [
        'form-data; name="model"',
        "form-data; name=model",
        'Form-Data;name="model"',
        'form-data ; NAME="model" ; x="y"',
    ],
)
@pytest.mark.parametrize(
    "more",
    [
        (),
        ("Content-Type: text/plain",),
        ('Content-Type: text/plain; charset="utf-8"',),
        ("content-type: Text/Plain;charset=UTF-8",),
        ("Content-Transfer-Encoding: 8bit",),
        ("Content-Transfer-Encoding: BINARY ",),
        ("Content-Length: 1", "X-Other: caf\u00e9"),
    ],
    ids=str,
)
def test_the_spellings_of_clients_are_read(disposition: str, more: tuple[str, ...]) -> None:
    assert fields(part(disposition, b"a", *more) + END) == {"model": "a"}


@pytest.mark.parametrize(
    "file",
    [
        'filename="a.wav"',
        'filename="caf\u00e9; part 2.wav"',
        'filename="C:\\dir\\a.wav"',
        'filename="a%22b.wav"',
        "filename=\"a.wav\"; filename*=utf-8''a%3B%20name%3Dmodel.wav",
    ],
)
def test_names_of_files_may_be_unusual(file: str) -> None:
    upload = part(f'form-data; name="file"; {file}', b"\r\n\r\n\0", "Content-Type: audio/wav")
    assert fields(upload + MODEL + END) == {"model": "a"} == fields(MODEL + upload + END)


@pytest.mark.parametrize("name", ["language", "timestamp_granularities[]", "x.y", "models"])
def test_other_fields_are_not_read(name: str) -> None:
    assert fields(named(name, b"\xff") + named(name) + MODEL + END) == {"model": "a"}


def test_text_before_and_after_the_form_is_ignored() -> None:
    assert fields(b"preamble\r\n" + MODEL + END + b"epilogue") == {"model": "a"}
    assert fields(MODEL + END.rstrip()) == {"model": "a"}
    assert fields(named("model", b"") + END) == {"model": ""}
    assert fields(END) == {}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (MODEL + MODEL, "twice"),
        (part('form-data; name="model"; filename="m"'), "file"),
        (part("form-data; name=\"model\"; filename*=utf-8''m"), "file"),
        (part("form-data; name=\"x\"; name*=UTF-8''model"), "differently"),
        (part("form-data; name*=UTF-8''model"), "differently"),
        (part('form-data; name*0="mo"; name*1="del"'), "pieces"),
        (part('form-data; name="x"; name="model"'), "twice"),
        (part('form-data; name="x"; NAME="model"'), "twice"),
        (part('form-data; name="file"; filename="a; name=model"'), "quotes"),
        (part(r'form-data; name="file"; filename="a\"; name=\"model"'), "malformed"),
        (part(r'form-data; name="mod\el"'), "plain"),
        (part('form-data; name="mod%65l"'), "plain"),
        (part('form-data; name="x=model"'), "plain"),
        (part('form-data; name=" model"'), "plain"),
        (part("form-data; name='model'"), "plain"),
        (part('form-data; name="mode\u017f"'), "plain"),
        (part('form-data; name = "model"'), "malformed"),
        (part('form-data; name="model" x'), "malformed"),
        (part("form-data"), "plain"),
        (part('attachment; name="model"'), "valid"),
        (part('form-data, form-data; name="model"'), "valid"),
        (named("MODEL"), "case"),
        (named("Stream"), "case"),
        (named("_charset_", b"utf-7"), "_charset_"),
        (named("x", b"a", 'Content-Disposition: form-data; name="model"'), "header twice"),
        (named("x", b"a", 'content-disposition: form-data; name="model"'), "header twice"),
        (named("x", b"a", "Content-Transfer-Encoding: base64"), "Transfer-Encoding"),
        (named("model", b"=61", "Content-Transfer-Encoding: quoted-printable"), "Transfer"),
        (named("model", b"a", "Content-Type: text/plain; charset=utf-16"), "UTF-8"),
        (named("model", b"a", "Content-Type: application/json"), "UTF-8"),
        (named("model", b"\xff"), "UTF-8"),
        (named("x", b"ab", "Content-Length: 1"), "Content-Length"),
        (named("x", b"a", "X-Folded: 1", ' name="model"'), "valid"),
        (named("x", b"a", "X-Folded : 1"), "valid"),
        (named("x", b"a", "X: a\nContent-Disposition: form-data"), "valid"),
        (named("x", b"a", "X: " + "a" * MAX_HEAD), "valid"),
        (f"--{B}\r\n\r\na\r\n".encode(), "valid"),
        (f"--{B}\r\na\r\n".encode(), "valid"),
        (MODEL.replace(b"\r\n\r\na", b"\r\n"), "valid"),
        (MODEL.replace(b"\r\n", b"\n"), "valid"),
        (b"junk" + MODEL, "valid"),
        (b"junk\n" + MODEL, "valid"),
        (MODEL.replace(B.encode(), B.encode() + b" ", 1), "valid"),
        (MODEL.replace(B.encode(), B.encode() + b"z", 1), "valid"),
        (named("file", f"a\n--{B}\r\n".encode() + b"b") + MODEL, "valid"),
        (named("x") * (MAX_PARTS + 1), "more than"),
        (b"", "valid"),
        (END + MODEL, "valid"),
    ],
    ids=range(48),
)
def test_a_form_that_parsers_could_read_differently_is_refused(body: bytes, reason: str) -> None:
    if body:
        body += END
    assert reason in refusal(body)


@pytest.mark.parametrize("end", [b"", b"--", f"--{B}".encode(), f"--{B}\r\n".encode()])
def test_a_form_that_is_cut_is_refused(end: bytes) -> None:
    refusal(MODEL + end)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("multipart/form-data; boundary=abc", b"abc"),
        ("Multipart/Form-Data;Boundary=abc", b"abc"),
        ('multipart/form-data; boundary="a b(c)"', b"a b(c)"),
        ("multipart/form-data; charset=UTF-8; boundary=abc", b"abc"),
        ("multipart/form-data; boundary=----WebKitFormBoundary7MA4", b"----WebKitFormBoundary7MA4"),
        ("multipart/form-data; boundary=" + "a" * 70, b"a" * 70),
    ],
)
def test_the_boundary_is_read(kind: str, expected: bytes) -> None:
    assert boundary(kind.encode()) == expected


@pytest.mark.parametrize(
    "kind",
    [
        "multipart/form-data",
        "multipart/form-data; charset=utf-8",
        "multipart/mixed; boundary=abc",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        "multipart/form-data; boundary=abc; boundary=def",
        "multipart/form-data; boundary=abc; Boundary=def",
        "multipart/form-data; boundary=abc; boundary*=UTF-8''def",
        "multipart/form-data; boundary*0=a; boundary*1=b",
        "multipart/form-data; boundary=ab/cd",
        'multipart/form-data; boundary="a\\b"',
        'multipart/form-data; boundary="a"b',
        'multipart/form-data; x="; boundary=def"; boundary=abc',
        'multipart/form-data; boundary="abc "',
        "multipart/form-data; boundary=abc, multipart/form-data; boundary=def",
        "multipart/form-data; charset=utf-7; boundary=abc",
        "multipart/form-data; boundary=" + "a" * 71,
    ],
)
def test_a_boundary_that_two_parsers_could_read_differently_is_refused(kind: str) -> None:
    with pytest.raises(InvalidValue):
        boundary(kind.encode())


CONTENT = st.lists(st.sampled_from([b"\r\n", b"\n", b"--", b"x7", b"\0", b"a", b":", b'"'])).map(
    b"".join
)


@given(
    st.lists(st.tuples(st.sampled_from(["prompt", "file", "x"]), CONTENT), max_size=5),
    st.integers(0, 5),
)
def test_the_content_of_other_fields_is_not_read(others: list[tuple[str, bytes]], at: int) -> None:
    parts: list[Any] = [named(name, value) for name, value in others]
    parts.insert(at, MODEL)
    assert fields(b"".join(parts) + END) == {"model": "a"}


@given(st.binary(max_size=200), st.integers(0, 300), st.integers(0, 300))
def test_any_bytes_are_a_form_or_refused(noise: bytes, start: int, stop: int) -> None:
    body = named("file", b"\0") + MODEL + END
    with contextlib.suppress(InvalidValue):
        fields(body[:start] + noise + body[stop:])
