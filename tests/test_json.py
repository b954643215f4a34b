"""JSON as two parsers must agree on it; one member replaced, all other bytes kept."""

import json as stdlib
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import Raw, Struct
from msgspec.json import Decoder

from gatewayd.wire import json
from gatewayd.wire.json import NotJSON

DEPTH = 64

property_test = settings(deadline=None, max_examples=150)

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(-(10**300), 10**300),
        st.floats(allow_nan=False, allow_infinity=False),
        TEXTS,
        st.sampled_from(['"', "\\", "[{", "id", '"id":', "\x00", "🎉", "\\ud83d", "\u2028"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(TEXTS | st.just("id"), inner, max_size=4)
    ),
    max_leaves=12,
)
SPACES = st.text(alphabet=" \t\r\n", max_size=2).map(str.encode)


@st.composite
def written(draw: st.DrawFn, value: Any) -> bytes:
    """A value in one of its spellings."""
    text = stdlib.dumps(
        value,
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.sampled_from([None, 0, 1])),
        separators=draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", "\r\n: ")])),
    )
    return text.encode("utf-8")


def read(body: bytes) -> Any:
    return stdlib.loads(body.decode("utf-8"))


def seconds(body: bytes) -> float:
    """The processor time that refusing a document takes."""
    began = time.process_time()
    with pytest.raises(NotJSON):
        json.parse(body, DEPTH)
    return time.process_time() - began


# -- parse ---------------------------------------------------------------------------------------


@property_test
@given(VALUES.flatmap(written), SPACES, SPACES)
@example(b"-0.0", b"", b"")
@example(b'{"a": 1e5, "b": [1E+2, -0, 1.50]}', b"\n", b" ")
@example(b'["\\ud83c\\udf89", 123456789012345678901234567890]', b"", b"")
def test_a_valid_document_is_read_as_the_standard_library_reads_it(
    body: bytes, before: bytes, after: bytes
) -> None:
    body = before + body + after
    assert json.parse(body, DEPTH) == read(body)


MISTAKES = [
    b"",
    b" ",
    b'{"a":',
    b"{} {}",
    b"{}x",
    b"1 2",
    b"[1,]",
    b'{"a":1,}',
    b"{,}",
    b"{'a':1}",
    b"{a:1}",
    b"// no\n{}",
    b"{}/* no */",
    b"tru",
    b"True",
    b"01",
    b"1.",
    b".5",
    b"+1",
    b"0x10",
    b"1_000",
    b'"a',
    b'"\t"',
    b'"\x00"',
    b'"\\x41"',
    b'"\\u12"',
    b"[1}",
    b"[}",
    b"]",
    b"\x0b1",
    b"\xc2\xa01",
]


@pytest.mark.parametrize("body", MISTAKES)
def test_bytes_that_are_not_json_are_refused(body: bytes) -> None:
    with pytest.raises(NotJSON):
        json.parse(body, DEPTH)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":1,"a":1}',
        b'{"a":1,"b":{},"a":null}',
        b'{"model":"x","\\u006dodel":"y"}',
        b'{"\\/":1,"/":2}',
        b'[[{"x":[{"a":1,"a":2}]}]]',
        b'{"messages":[{"role":"user","content":"a","content":"b"}]}',
        b'{"a":{"b":1,"b":1},"c":1}',
        '{"ä":1,"\\u00E4":2}'.encode(),
        b'{"\\ud83c\\udf89":1,"\xf0\x9f\x8e\x89":2}',
    ],
)
def test_a_key_that_comes_twice_is_refused_at_every_depth(body: bytes) -> None:
    with pytest.raises(NotJSON, match="twice"):
        json.parse(body, DEPTH)


@pytest.mark.parametrize(
    "number",
    [
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"1e999",
        b"-1e999",
        b"1.0E400",
        pytest.param(b"9" * 400, id="400 digits"),
        pytest.param(b"-" + b"9" * 5000, id="5000 digits"),
        pytest.param(b"9" * 400 + b".5", id="400 digits with a fraction"),
    ],
)
@pytest.mark.parametrize("frame", [b"%b", b'{"a":[%b]}'])
def test_a_number_that_no_float_holds_is_refused(frame: bytes, number: bytes) -> None:
    with pytest.raises(NotJSON):
        json.parse(frame % number, DEPTH)


@pytest.mark.parametrize(
    "body",
    [
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        "{}".encode("utf-16-le"),
        "{}".encode("utf-16-be"),
        "{}".encode("utf-32"),
        "{}".encode("utf-32-le"),
        "{}".encode("utf-32-be"),
        b'"\xff"',
        b'"\xc0\xaf"',
        b'"\xe0\x80\xaf"',
        b'"\xed\xa0\xbd\xed\xb8\x80"',
        b'"\xf4\x90\x80\x80"',
        b'"\xe2\x82"',
        b'"\xe2',
        b'{"\xff":1}',
    ],
)
def test_other_encodings_and_wrong_utf8_are_refused(body: bytes) -> None:
    with pytest.raises(NotJSON):
        json.parse(body, DEPTH)


@pytest.mark.parametrize("half", [b"\\ud83c", b"\\uDF89", b"\\uDf89\\uD83C", b"\\ud83c\\u0041"])
@pytest.mark.parametrize("frame", [b'"%b"', b'{"%b":1}', b'{"a":["x%by"]}'])
def test_half_of_a_surrogate_pair_is_refused(frame: bytes, half: bytes) -> None:
    with pytest.raises(NotJSON, match="surrogate"):
        json.parse(frame % half, DEPTH)


def test_whole_pairs_and_what_only_looks_like_half_of_one_pass() -> None:
    assert json.parse(b'["\\ud83c\\udf89", "\\\\ud83c"]', DEPTH) == ["🎉", "\\ud83c"]


def test_the_reason_never_quotes_the_document() -> None:
    for body in (b'{"secret":1,"secret":2}', b"[secret]", b'"secret', b'"secret\xff"', b"{}secret"):
        with pytest.raises(NotJSON) as caught:
            json.parse(body, DEPTH)
        assert "secret" not in str(caught.value)


@property_test
@given(
    st.one_of(
        st.binary(max_size=40),
        st.text(alphabet='[]{}:,"\\u0dD8ceEfNaI1.- \n', max_size=30).map(str.encode),
        st.tuples(VALUES.flatmap(written), st.integers(0, 99), st.binary(max_size=2)).map(
            lambda t: t[0][: t[1]] + t[2] + t[0][t[1] + 1 :]
        ),
    )
)
def test_any_bytes_are_refused_or_read_as_the_standard_library_reads_them(body: bytes) -> None:
    try:
        value = json.parse(body, DEPTH)
    except NotJSON:
        return
    assert value == read(body)


# -- depth ---------------------------------------------------------------------------------------


def nested(openers: str, levels: int) -> bytes:
    """``levels`` nested arrays and objects, in the order of ``openers``."""
    kinds = [openers[i % len(openers)] for i in range(levels)]
    inner = "1"
    for kind in reversed(kinds):
        inner = f"[{inner}]" if kind == "[" else f'{{"a":{inner}}}'
    return inner.encode()


@pytest.mark.parametrize("depth", [1, 2, 3, 64])
@pytest.mark.parametrize("openers", ["[", "{", "[{", "{["])
def test_exactly_the_limit_may_nest(openers: str, depth: int) -> None:
    body = nested(openers, depth)
    assert json.parse(body, depth) == read(body)
    assert bytes(json.decode(body, Decoder(Raw), depth)) == body
    with pytest.raises(NotJSON, match="deep"):
        json.parse(nested(openers, depth + 1), depth)
    with pytest.raises(NotJSON, match="deep"):
        json.decode(nested(openers, depth + 1), Decoder(Raw), depth)


def test_many_brackets_side_by_side_or_in_strings_are_not_deep() -> None:
    side_by_side = b"[" + b"[],{}," * 200 + b"[]]"
    in_strings = b'["%b%b","\\"[[[]]]","[[["]' % (b"[{" * 200, b"}]" * 200)
    for body in (side_by_side, in_strings):
        assert json.parse(body, 2) == read(body)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'[{"a":' * 50_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"tools":[{"function":{"parameters":' + b"[" * 100_000 + b"}}]}",
        b'{"tools":[{"function":{"parameters":' + b'{"a":' * 100_000 + b"}}]}",
        b"[" * 100_000 + b"}" * 100_000,
    ],
    ids=lambda body: body[:40].decode(),
)
def test_very_deep_nesting_is_refused_quickly(body: bytes) -> None:
    assert seconds(body) < 0.5


@pytest.mark.parametrize(
    "text",
    [b'"' + b'\\"' * 8000, b'"' + b"\\" * 16001, b'"' * 16001, b'"' + b'\\\\"' * 5001],
    ids=["escaped quotes", "backslashes", "quotes", "escaped backslashes"],
)
def test_a_string_without_an_end_among_many_brackets_takes_linear_time(text: bytes) -> None:
    assert seconds(b"[" * 100 + text) < 0.2


# -- number and time -----------------------------------------------------------------------------

MIB = 1 << 20


def filled(each: bytes) -> bytes:
    """An array of 1 MiB, made of ``each``."""
    return b"[" + b",".join([each] * (MIB // (len(each) + 1))) + b"]"


@pytest.mark.parametrize(
    ("each", "containers"),
    [(b"[]", 1), (b'{"":[[{"a":1}]]}', 4), (b'{"a":{},"b":"[[[{{{\\"[["}', 2)],
)
def test_very_many_arrays_and_objects_are_refused(each: bytes, containers: int) -> None:
    count = (json.MAX_CONTAINERS - 1) // containers
    assert len(json.parse(b"[" + b",".join([each] * count) + b"]", DEPTH)) == count
    with pytest.raises(NotJSON, match="more than"):
        json.parse(b"[" + b",".join([each] * (count + 1)) + b"]", DEPTH)


@pytest.mark.parametrize(
    "body",
    [
        *(filled(each) for each in (b"[]", b"{}", b'{"a":1}', b'{"a":1,"b":2}')),
        *(filled(each) for each in (b'""', b'"ab"', b"1", b"1e5", b"0.1")),
        *(filled(each) for each in (b"9" * 299, b'"\\n"', b'{"role":"user","content":""}')),
        b'["' + b"\\n" * (MIB // 2) + b'"]',
        filled(b"[" * 60 + b"]" * 60),
        b"{" + b",".join(b'"%x":1' % i for i in range(100_000)) + b"}",
        b'{"a":"\\u003a",' + b",".join(b'"%x":1' % i for i in range(100_000)) + b"}",
        b"[" * 100 + b'"' + b'\\"' * (MIB // 2),
    ],
    ids=lambda body: body[:30].decode(),
)
def test_the_densest_documents_are_judged_quickly(body: bytes) -> None:
    took = []
    for _ in range(3):
        began = time.process_time()
        with suppress(NotJSON):
            json.parse(body, DEPTH)
        took.append(time.process_time() - began)
    assert min(took) < 0.15


# Larger than the blocks in which strings are removed.
@pytest.mark.parametrize("shift", range(5))
def test_a_long_document_is_read_as_a_short_one_is(shift: int) -> None:
    each = b'{"a":"[\\"{","b":["\\\\",{"c":"%b"}]}' % (b"x" * shift)
    body = b"[" + b",".join([each] * 7000) + b"]"
    assert json.parse(body, 4) == read(body)
    with pytest.raises(NotJSON, match="deep"):
        json.parse(body, 3)
    with pytest.raises(NotJSON, match="twice"):
        json.parse(body[:-2] + b',"\\u0061":1}]', 4)


#: Pieces of documents that are hard to judge, alone and next to each other.
PIECES = st.sampled_from(
    [
        *(b"{", b"}", b"[", b"]", b":", b",", b" ", b'"', b"\\", b'"a"', b'"b":', b'"\\u0061":1'),
        *(b"1", b"-0", b"1e400", b"9" * 309, b"9" * 308, b"18446744073709551616", b"NaN", b"null"),
        *(b'"\\u003a"', b'"\\\\u003a"', b'":"', b'"{["', b'"\\\\"', b'{"a":1,"a":2}', b'{"":":"}'),
        *(b"\xef\xbb\xbf", b"\xff", b"\xc3\xa9", b"\\ud83d", b'{"a":{"b":1,"b":1}}', b"[[[1]]]"),
    ]
)


def judged(body: bytes) -> str:
    """The value of a document, or the reason why it is refused."""
    try:
        return repr(json.parse(body, 3))
    except NotJSON as e:
        return "not JSON" if "malformed" in str(e) or "ends too early" in str(e) else str(e)


@settings(property_test, max_examples=500)
@given(pieces=st.lists(PIECES, max_size=12))
@example(pieces=[b'{"a":1,"\\u0061":2}'])
@example(pieces=[b'{"a":":","a":"\\u003a"}'])
@example(pieces=[b"[[[[]]]]"])
def test_a_short_document_is_judged_as_a_long_one_is(pieces: list[bytes]) -> None:
    """White space does not change what a document says, but a long one takes another way."""
    body = b"".join(pieces)
    assert judged(body) == judged(body + b" " * 70_000)


# -- decode --------------------------------------------------------------------------------------


class Message(Struct):
    content: str
    rest: Raw = Raw(b"null")


@pytest.mark.parametrize("half", ["\\ud83c", "\\uDF89", "\\uDf89\\uD83C"])
def test_a_reply_may_hold_half_of_a_surrogate_pair(half: str) -> None:
    body = f'{{"content":"{half}","id":"x"}}'.encode()
    assert set(json.decode(body, Decoder(dict[str, Raw]), DEPTH)) == {"content", "id"}
    in_string = json.decode(body, Decoder(Message), DEPTH).content
    assert set(in_string) == {"\ufffd"}


@pytest.mark.parametrize(
    "body",
    [
        b'\xef\xbb\xbf{"content":"a"}',
        b'{"content":"\xff"}',
        b'{"content":"a"} x',
        b'{"content":"a",}',
        b'{"content":"a","b":NaN}',
        b'{"content":"a","b":"\\q"}',
        b'{"content":"\\ud83c"',
        b'{"content":"\\ud83c"}}',
        b'{"content":5}',
        b"{}",
        b"[]",
        b"null",
        b"",
    ],
)
def test_a_reply_that_is_not_json_of_its_type_is_refused(body: bytes) -> None:
    with pytest.raises(NotJSON):
        json.decode(body, Decoder(Message), DEPTH)


# -- replace_member ------------------------------------------------------------------------------


@st.composite
def spelled(draw: st.DrawFn, key: str) -> bytes:
    """A key with some of its characters escaped."""
    if draw(st.booleans()):
        return stdlib.dumps(key).encode()
    escaped = draw(st.lists(st.booleans(), min_size=len(key), max_size=len(key)))
    return b'"%b"' % b"".join(
        b"\\u%04x" % ord(c) if e or c in '"\\' else c.encode()
        for c, e in zip(key, escaped, strict=True)
    )


KEYS = st.one_of(
    st.sampled_from(["i", "x", "object", "ID", 'x"id', '"id"', "id:", "\\id"]),
    st.text(alphabet="abc:{}[], ", max_size=4),
)
NESTED = st.one_of(
    VALUES,
    st.sampled_from(
        ["id", {"id": "x"}, {"id": 12}, [{"id": "x", "a": {"id": 1}}], '"id":"x"', {"a": "id"}]
    ),
)
OLD = st.one_of(st.just("x"), st.just(1), NESTED)


@st.composite
def objects(draw: st.DrawFn, *, id: bool) -> list[tuple[str, bytes, bytes]]:
    """Members in order: the key, the bytes before the value, the value."""
    keys = draw(st.lists(KEYS, max_size=4, unique=True))
    if id:
        keys.insert(draw(st.integers(0, len(keys))), "id")
    members = []
    for key in keys:
        value = draw(written(draw(OLD if key == "id" else NESTED)))
        before = draw(SPACES) + draw(spelled(key)) + draw(SPACES) + b":" + draw(SPACES)
        members.append((key, before, value))
    return members


NEW = b'"new"'


def document(members: list[tuple[str, bytes, bytes]], space: bytes) -> bytes:
    body = (space + b",").join(before + value for _, before, value in members)
    return space + b"{" + body + space + b"}" + space


@property_test
@given(objects(id=True), SPACES)
@example([("id", b'"\\u0069d":', b'"x"'), ("a", b'"a":', b'{"id":"x"}')], b"")
@example([("id", b'"\\u0069d":', b"1"), ("a", b'"a":', b'{"id":12}')], b"")
@example([("id", b'"\\u0069d":', b"5"), ('x"id', b'"x\\"id":', b"5")], b"")
@example([("a", b'"a":', b'{"id":"x"}'), ("id", b'"id":', b'"x"')], b"")
@example([("a", b'"a":', b'"id"'), ("id", b' "id" : ', b'{"id":[1,{"id":2}]}')], b"\n")
def test_replacing_a_member_keeps_every_other_byte(
    members: list[tuple[str, bytes, bytes]], space: bytes
) -> None:
    [old] = [value for key, _, value in members if key == "id"]
    body = document(members, space)
    replaced = [(key, before, NEW if key == "id" else value) for key, before, value in members]
    result = json.replace_member(body, "id", old, NEW)
    assert result == document(replaced, space)
    assert stdlib.loads(result) == {**stdlib.loads(body), "id": "new"}


@property_test
@given(objects(id=False), SPACES)
def test_a_missing_member_is_put_first_and_every_byte_kept(
    members: list[tuple[str, bytes, bytes]], space: bytes
) -> None:
    body = document(members, space)
    result = json.replace_member(body, "id", None, NEW)
    start = body.index(b"{") + 1
    assert result.startswith(body[:start] + b'"id":"new"')
    assert result.endswith(body[start:])
    assert list(stdlib.loads(result).items()) == [("id", "new"), *stdlib.loads(body).items()]


def test_a_member_that_comes_twice_is_replaced_both_times() -> None:
    body = b'{"id":1,"a":{"id":3}, "\\u0069d" : 2 }'
    assert json.replace_member(body, "id", b"2", NEW) == (
        b'{"id":"new","a":{"id":3}, "\\u0069d" : "new" }'
    )
