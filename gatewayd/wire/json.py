"""JSON read strictly, so that no other parser can read something else from the same bytes.

Requests are read with :func:`parse` (duplicate keys, NaN, numbers past a float's range, lone
surrogates, byte order marks, other encodings, excessive depth and number are refused), replies with
:func:`decode` (typed by msgspec, which looks only at the fields that a type names).
:func:`replace_member` changes one member of an object and leaves every other byte as it came.

Whoever may call may send a document made to be slow, and the loop waits for it. So nothing here
runs Python for each token: msgspec reads, and what it does not look for (depth, a key that comes
twice, whole numbers without end) is found by a few passes of C over the bytes.
"""

from __future__ import annotations

import gc
import json
import math
import re
from itertools import accumulate
from operator import add
from typing import Any, TypeVar

import attrs
import msgspec

T = TypeVar("T")

#: How many arrays and objects a request may hold. Each takes up to a hundred times the bytes that
#: it has in the document, and a thousand messages with their parts and tools are far below.
MAX_CONTAINERS = 100_000

_BLOCK = 1 << 16
_NOT_STRUCTURE = bytes(set(range(256)) - set(b"[]{}:"))
_BITS = bytes.maketrans(b"[{]}", b"1100")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}:,]', re.DOTALL)

# A float holds whole numbers of up to 309 digits. The first two find out cheaply whether there are
# so many at all.
_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_MANY_ZEROS = b"0" * 309
_LONG_NUMBER = re.compile(rb"(?<![0-9.eE+-])-?[0-9]{309,}[0-9.eE+-]*")


class NotJSON(ValueError):
    """The bytes are not JSON as RFC 8259 has it; the message says why in a few words."""


def parse(body: bytes, depth: int) -> Any:
    """Read a whole document strictly into Python values.

    :param depth: how many levels of arrays and objects may nest.
    :raises NotJSON: saying what is wrong, never quoting the document.
    """
    _check_text(body)
    structure = _structure(body)
    if structure.count(b"[") + structure.count(b"{") > MAX_CONTAINERS:
        raise NotJSON(f"it has more than {MAX_CONTAINERS} arrays and objects")
    _check_depth(structure, depth)
    try:
        with _NoCollection():
            value = msgspec.json.decode(body)
            _check_keys(body, structure, value)
    except RecursionError:
        raise NotJSON("it nests too deeply") from None
    except msgspec.ValidationError:
        raise NotJSON("a number is out of range") from None
    except msgspec.DecodeError as e:
        raise NotJSON(_reason(body, str(e))) from None
    _check_numbers(body)
    return value


def decode(body: bytes, type: type[T], depth: int) -> T:
    """Read a backend's document into a msgspec type.

    Halves of surrogate pairs are let pass, although msgspec does not: a backend that streams an
    emoji token by token sends one half in each event, and the client joins them.

    :raises NotJSON: when it is not JSON, or not of that type.
    """
    _check_text(body)
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

    Brackets become bits, and eight of them are looked up at once.
    """
    if body.count(b"[") + body.count(b"{") > depth:
        _check_depth(_structure(body), depth)


def _check_depth(structure: bytes, depth: int) -> None:
    bits = structure.translate(_BITS, b":")
    if bits.count(b"1") <= depth:
        return
    bits += b"0" * (-len(bits) % 8)
    eights = int(bits, 2).to_bytes(len(bits) // 8, "big")
    before = list(accumulate(map(_CHANGE.__getitem__, eights), initial=0))
    if max(before) + 8 <= depth:
        return  # nor can any of the eight be deeper
    if max(map(add, before, map(_PEAK.__getitem__, eights))) > depth:
        raise NotJSON(f"it nests deeper than {depth} levels")


def _steps(eight: int) -> list[int]:
    """The depth after each of eight brackets, from the first on."""
    return list(accumulate(1 if eight >> bit & 1 else -1 for bit in range(7, -1, -1)))


_CHANGE = [_steps(eight)[-1] for eight in range(256)]
_PEAK = [max(_steps(eight)) for eight in range(256)]


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
        if not _SURROGATE.search(document):
            return None
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


def _check_text(body: bytes) -> None:
    if body.startswith(b"\xef\xbb\xbf"):
        raise NotJSON("it starts with a byte order mark")
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as e:
        raise NotJSON(f"it is not UTF-8 at byte {e.start}") from None


def _outside_strings(body: bytes) -> bytes:
    """The document without its strings; one without an end goes to the end of the document."""
    if b"\\" in body:  # a run of backslashes begins with one that escapes the next
        body = body.replace(rb"\\", b"").replace(rb"\"", b"")
    kept, inside = [], 0
    for at in range(0, len(body), _BLOCK):  # all at once would take many times its size
        parts = body[at : at + _BLOCK].split(b'"')
        kept.append(b"".join(parts[inside::2]))
        inside ^= len(parts) - 1 & 1
    return b"".join(kept)


def _structure(body: bytes) -> bytes:
    """The document's brackets and colons alone, in their order."""
    return _outside_strings(body).translate(None, _NOT_STRUCTURE)


def _check_keys(body: bytes, structure: bytes, value: Any) -> None:
    """Refuse objects with the same key twice. What was read has lost the first, and its colon.

    :param value: what the document was read as.
    """
    colons = structure.count(b":")
    if colons == structure.count(b"{") - structure.count(b"{}"):
        return  # no object has two
    again = msgspec.json.encode(value)
    if rb"\u003" not in body:  # else a string may have a colon only when it is written again
        colons, left = body.count(b":"), again.count(b":")
    else:
        left = _structure(again).count(b":")
    if left != colons:
        raise NotJSON("an object has the same key twice")


def _check_numbers(body: bytes) -> None:
    """Refuse whole numbers that are past a float's range; msgspec has refused others."""
    if _MANY_ZEROS in body.translate(_ZEROS):
        for number in _LONG_NUMBER.findall(_outside_strings(body)):
            if math.isinf(float(number)):
                raise NotJSON("a number is out of range")


def _reason(body: bytes, said: str) -> str:
    """What is wrong with a document that msgspec does not read, in a few words."""
    if _SURROGATE.search(body):
        try:
            with _NoCollection():
                msgspec.json.decode(_SURROGATE.sub(rb"\\ufffd", body))
        except (msgspec.DecodeError, RecursionError):
            pass
        else:
            return "a string holds half of a surrogate pair"
    where = re.search(r"\(byte ([0-9]+)\)", said)
    return f"it is malformed at byte {where[1]}" if where else "it ends too early"


class _NoCollection:
    """Holds back the garbage collector, which looks at all that was made again and again, and in
    JSON's values there is no cycle to be found.
    """

    def __enter__(self) -> None:
        self._enabled = gc.isenabled()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        if self._enabled:
            gc.enable()
