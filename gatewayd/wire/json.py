"""JSON read strictly, so that no other parser can read something else from the same bytes.

Requests are read with :func:`parse` (duplicate keys, NaN, numbers past a float's range, lone
surrogates, byte order marks, other encodings and excessive depth are refused), replies with
:func:`decode` (typed by msgspec, which looks only at the fields that a type names).
:func:`replace_member` changes one member of an object and leaves every other byte as it came.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

import attrs
import msgspec

T = TypeVar("T")

# A string without an end goes to the end of the document: else each of its quotes would be tried.
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)
_ROUND = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}:,]', re.DOTALL)


class NotJSON(ValueError):
    """The bytes are not JSON as RFC 8259 has it; the message says why in a few words."""


def parse(body: bytes, depth: int) -> Any:
    """Read a whole document strictly into Python values.

    :param depth: how many levels of arrays and objects may nest.
    :raises NotJSON: saying what is wrong, never quoting the document.
    """
    text = _text(body)
    check_depth(body, depth)
    try:
        value = (_WARY_DECODER if _LONG_NUMBER.search(body) else _DECODER).decode(text)
    except json.JSONDecodeError as e:
        raise NotJSON(f"{e.msg} at character {e.pos}") from None
    except RecursionError:
        raise NotJSON("it nests too deeply") from None
    if _SURROGATE.search(body):
        try:
            msgspec.json.decode(body)
        except msgspec.DecodeError:
            raise NotJSON("a string holds half of a surrogate pair") from None
    return value


def decode(body: bytes, type: type[T], depth: int) -> T:
    """Read a backend's document into a msgspec type.

    Halves of surrogate pairs are let pass, although msgspec does not: a backend that streams an
    emoji token by token sends one half in each event, and the client joins them.

    :raises NotJSON: when it is not JSON, or not of that type.
    """
    _text(body)
    check_depth(body, depth)
    try:
        return msgspec.json.decode(body, type=type)
    except RecursionError:
        raise NotJSON("it nests too deeply") from None
    except msgspec.ValidationError:
        raise NotJSON("it is not of the expected shape") from None
    except msgspec.DecodeError:
        if _SURROGATE.search(body):
            return decode(_SURROGATE.sub(rb"\\ufffd", body), type, depth)
        raise NotJSON("it is malformed") from None


def check_depth(body: bytes, depth: int) -> None:
    """Refuse more than ``depth`` levels of nesting, in time linear in the size.

    Strings are taken out, then everything that is not a bracket, then the innermost pairs level by
    level: each step is one pass of C over what the step before has left.
    """
    if body.count(b"[") + body.count(b"{") <= depth:
        return
    brackets = _STRING.sub(b"", body).translate(_ROUND, _NOT_BRACKETS)
    for _ in range(depth):
        if not brackets:
            return
        peeled = brackets.replace(b"[]", b"")
        if len(peeled) == len(brackets):
            return  # unbalanced: the parser will say so
        brackets = peeled
    if brackets:
        raise NotJSON(f"it nests deeper than {depth} levels")


@attrs.frozen
class Halves:
    """A document in which stand-ins took the place of surrogates' escapes.

    ``replaced`` is fit for msgspec; :meth:`put_back` undoes it in whatever was made from it.
    """

    replaced: bytes
    _first: int  # the code point that stands in for U+D800

    @classmethod
    def of(cls, document: bytes) -> Halves | None:
        """None where there is no half of a pair, or no room for stand-ins."""
        try:
            msgspec.json.decode(document)
        except msgspec.DecodeError:
            for first in (0xE000, 0xE800, 0xF000):
                if not re.search(rb"\\u%x[%x-%x]" % _hex_range(first), document, re.IGNORECASE):
                    return cls(_moved(document, first - 0xD800, _SURROGATE), first)
        return None

    def put_back(self, document: bytes) -> bytes:
        digits = re.compile(rb"\\u%x[%x-%x][0-9a-f]{2}" % _hex_range(self._first), re.IGNORECASE)
        return _moved(document, 0xD800 - self._first, digits)


def _hex_range(first: int) -> tuple[int, int, int]:
    return first >> 12, first >> 8 & 15, (first >> 8 & 15) + 7


def _moved(document: bytes, by: int, escapes: re.Pattern[bytes]) -> bytes:
    return escapes.sub(lambda match: b"\\u%04x" % (int(match[0][2:], 16) + by), document)


def replace_member(document: bytes, key: str, old: bytes | None, new: bytes) -> bytes:
    """Set one top-level member of an object; all other bytes stay.

    :param old: the member's value as it stands in ``document``, or None where it has no such
        member and it is to be put first.
    :param new: the value to put there, as JSON.
    """
    name = b'"%b"' % key.encode("ascii")
    if old is None:
        at = document.index(b"{") + 1
        comma = b"" if document[at:].lstrip().startswith(b"}") else b","
        return document[:at] + name + b":" + new + comma + document[at:]
    # Nearly always the name and value stand together and only once: then this is it, because a
    # string cannot hold an unescaped quote, and without "\\u" no key has another spelling.
    if document.count(name) == 1 and b"\\u" not in document:
        at = document.index(name) + len(name)
        head, colon, rest = document[at:].partition(b":")
        if colon and not head.strip() and rest.lstrip().startswith(old):
            gap = len(rest) - len(rest.lstrip())
            at += len(head) + 1 + gap
            return document[:at] + new + document[at + len(old) :]
    return _replace_slowly(document, key, new)


def _replace_slowly(document: bytes, key: str, new: bytes) -> bytes:
    """Walk the tokens of the top level; for keys in odd spelling, repeated, or found deeper too."""
    out: list[bytes] = []
    done = level = 0
    name: bytes | None = None  # a string seen where a top-level key may stand
    expecting_key = False
    value_at: int | None = None
    for token in _TOKEN.finditer(document):
        byte = token.group()[:1]
        if level == 1 and value_at is not None and byte in b",}":
            end = value_at + len(document[value_at : token.start()].rstrip())
            out += document[done:value_at], new
            done, value_at = end, None
        if byte in b"{[":
            level += 1
            expecting_key = level == 1 and byte == b"{"
        elif byte in b"}]":
            level -= 1
        elif level == 1:
            if byte == b'"' and expecting_key:
                name, expecting_key = token.group(), False
            elif byte == b":" and name is not None:
                if json.loads(name) == key:
                    gap = document[token.end() :]
                    value_at = token.end() + len(gap) - len(gap.lstrip())
                name = None
            elif byte == b",":
                expecting_key = True
    return b"".join([*out, document[done:]])


def _text(body: bytes) -> str:
    if body.startswith(b"\xef\xbb\xbf"):
        raise NotJSON("it starts with a byte order mark")
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as e:
        raise NotJSON(f"it is not UTF-8 at byte {e.start}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise NotJSON("an object has the same key twice")
    return members


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise NotJSON("a number is out of range")
    return value


def _no_constant(name: str) -> None:
    raise NotJSON(f"{name} is not JSON")


def _decoder(parse_int: Callable[[str], float]) -> json.JSONDecoder:
    return json.JSONDecoder(
        object_pairs_hook=_unique,
        parse_float=_finite,
        parse_int=parse_int,
        parse_constant=_no_constant,
    )


# Whole numbers are read as floats: nobody computes with them here, and a float of 5000 digits is
# cheap where an int of that size is refused by Python. Only long ones can be past a float's range,
# and asking for each would double the time that a list of tokens takes.
_DECODER, _WARY_DECODER = _decoder(float), _decoder(_finite)
_LONG_NUMBER = re.compile(rb"[0-9]{300}")
