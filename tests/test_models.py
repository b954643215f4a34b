"""The list of models: read from backends, encoded for clients."""

import json

import msgspec
import pytest

from gatewayd.wire.errors import BadReply
from gatewayd.wire.models import MAX_MODELS, decode_list, encode_list, entry, names

DEPTH = 64


def test_entries_are_found_by_name_in_the_order_of_the_backend() -> None:
    body = b'{"object":"list","data":[{"id":"b"},{"id":"a/x:7b"},{"id":"c"}],"models":[{}]}'
    assert list(decode_list(body, DEPTH)) == ["b", "a/x:7b", "c"]


def test_entries_keep_their_bytes_on_the_way_through() -> None:
    raw = '{"created": 1.0,"id":"ä\\u00e4", "meta":{"n_ctx":4096,"x":[]} }'.encode()
    entries = decode_list(b'{"data":[ %b ]}' % raw, DEPTH)
    assert list(entries) == ["ää"]
    assert encode_list(list(entries.values())) == b'{"object":"list","data":[%b]}' % raw


def test_a_list_may_have_entries_of_the_gateway_and_of_backends() -> None:
    theirs = decode_list(b'{"data":[{"id":"b","x":1}]}', DEPTH)
    assert json.loads(encode_list([entry("a", 5, "us"), *theirs.values()])) == {
        "object": "list",
        "data": [
            {"id": "a", "object": "model", "created": 5, "owned_by": "us"},
            {"id": "b", "x": 1},
        ],
    }


def test_a_name_that_comes_twice_is_listed_once() -> None:
    assert list(decode_list(b'{"data":[{"id":"a"},{"id":"b"},{"id":"a"}]}', DEPTH)) == ["a", "b"]


def test_no_models_are_an_empty_list() -> None:
    assert decode_list(b'{"data":[]}', DEPTH) == {}
    assert encode_list([]) == b'{"object":"list","data":[]}'


def test_a_list_that_is_null_is_empty() -> None:
    assert decode_list(b'{"object":"list","data":null}', DEPTH) == {}


@pytest.mark.parametrize(
    "entry",
    [
        b'"a"',
        b"null",
        b"[]",
        b"{}",
        b'{"id":5}',
        b'{"id":null}',
        b'{"id":""}',
        b'{"id":"a\\u0007"}',
        b'{"id":"%b"}' % (b"a" * 257),
    ],
    ids=lambda entry: repr(entry[:20]),
)
def test_an_entry_that_is_not_valid_is_left_out(entry: bytes) -> None:
    body = b'{"data":[{"id":"a"},%b,{"id":"b"}]}' % entry
    assert list(decode_list(body, DEPTH)) == ["a", "b"]


def test_an_entry_may_hold_half_of_a_surrogate_pair() -> None:
    entries = decode_list(b'{"data":[{"id":"a","x":"\\ud83c"}]}', DEPTH)
    assert msgspec.json.decode(encode_list(list(entries.values())))["data"][0]["id"] == "a"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"null",
        b"[]",
        b"{}",
        b'{"data":{}}',
        b'{"data":[{"id":"a"}]',
        b'{"data":[{"id":"a"}]}x',
        b'{"data":[{"id":"a","x":"\\q"}]}',
        b'{"data":[{"id":"a","x":NaN}]}',
        b'{"data":[{"id":"\xff"}]}',
        b'\xef\xbb\xbf{"data":[]}',
        b'{"data":[{"id":"a","x":%b}]}' % (b"[" * 1000 + b"]" * 1000),
    ],
    ids=lambda body: repr(body[:30]),
)
def test_a_body_that_is_not_a_list_of_models_is_a_bad_reply(body: bytes) -> None:
    with pytest.raises(BadReply):
        decode_list(body, DEPTH)


# -- the names of a list ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        (b'{"id":"a"}', {"a"}),
        (b'{"id":"a","aliases":["b","c"]}', {"a", "b", "c"}),
        (b'{"id":"a","aliases":[5,null,"","\\u0007","b"]}', {"a", "b"}),
        (b'{"id":"a","aliases":"b"}', {"a"}),
        (b'{"id":"a","aliases":null}', {"a"}),
        (b'{"id":"a","x":"\\"aliases\\""}', {"a"}),
    ],
)
def test_the_names_of_a_model_are_its_id_and_its_aliases(entry: bytes, found: set[str]) -> None:
    assert names(decode_list(b'{"data":[%b]}' % entry, DEPTH)) == found


def test_the_number_of_aliases_is_bounded() -> None:
    aliases = b",".join(b'"%d"' % n for n in range(MAX_MODELS))
    entries = b",".join(b'{"id":"m%d","aliases":[%b]}' % (n, aliases) for n in range(3))
    assert len(names(decode_list(b'{"data":[%b]}' % entries, DEPTH))) <= 2 * MAX_MODELS
