"""JSON read strictly, so that no other parser can read something else from the same bytes.

:func:`parse` reads requests. It refuses duplicate keys, NaN, numbers outside the range of a float,
lone surrogates, byte order marks, other encodings, deep nesting and too many containers.
:func:`decode` reads replies with a decoder of a msgspec type and looks only at the fields that the
type names.
:func:`replace_member` changes one member of an object and leaves every other byte as it came.

A client may send a document that is made to be slow to parse, and the event loop would wait for
it. So no Python code runs for each token. msgspec parses, and what it does not check (depth,
duplicate keys, the range of whole numbers) is checked by a few passes over the bytes in C.
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

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode

#: How many arrays and objects a request may hold. In memory each takes up to a hundred times its
#: bytes in the document. A thousand messages with parts and tools stay far below this limit.
MAX_CONTAINERS = 100_000

#: A document is short if it has at most this many bytes and brackets. Its structure need not be
#: found: to encode its values again costs less. And they are too few to disable the garbage
#: collector for.
_SHORT_BYTES = 1 << 16
_SHORT_BRACKETS = 256

_BLOCK = 1 << 16
_NOT_STRUCTURE = bytes(set(range(256)) - set(b"[]{}:"))
_BITS = bytes.maketrans(b"[{]}", b"1100")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}:,]', re.DOTALL)

# A float holds whole numbers of up to 309 digits. The first two find cheaply whether a document has
# a number of that length.
_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_MANY_ZEROS = b"0" * 309
_LONG_NUMBER = re.compile(rb"(?<![0-9.eE+-])-?[0-9]{309,}[0-9.eE+-]*")


class NotJSON(ValueError):
    """The bytes are not JSON by RFC 8259; the message says why in a few words."""


def parse(body: bytes, depth: int) -> Any:
    """Read a whole document strictly into Python values.

    :param depth: how many levels of arrays and objects may nest.
    :raises NotJSON: the message never quotes the document.
    """
    _check_text(body)
    try:
        if len(body) <= _SHORT_BYTES and _brackets(body) <= min(depth, _SHORT_BRACKETS):
            # With so few brackets it can neither nest too deeply nor have too many containers.
            value = _decode(body)
            _check_keys(body, value)
        else:
            value = _parse_long(body, depth)
    except RecursionError:
        raise NotJSON("it nests too deeply") from None
    except msgspec.ValidationError:
        raise NotJSON("a number is out of range") from None
    except msgspec.DecodeError as e:
        raise NotJSON(_reason(body, str(e))) from None
    _check_numbers(body)
    return value


def _parse_long(body: bytes, depth: int) -> Any:
    """Read a document that may have any number of containers, at any depth.

    :raises NotJSON: it nests too deeply, has too many containers, or has the same key twice.
    :raises msgspec.DecodeError: msgspec refuses it.
    """
    structure = _structure(body)
    if structure.count(b"[") + structure.count(b"{") > MAX_CONTAINERS:
        raise NotJSON(f"it has more than {MAX_CONTAINERS} arrays and objects")
    _check_depth(structure, depth)
    with _NoCollection():
        value = _decode(body)
        if structure.count(b":") != structure.count(b"{") - structure.count(b"{}"):
            _check_keys(body, value)  # an object has more than one key
    return value


def decode(body: bytes, decoder: msgspec.json.Decoder[T], depth: int) -> T:
    """Read a backend's document with a decoder of a msgspec type.

    Halves of surrogate pairs are accepted, although msgspec refuses them: a backend that streams an
    emoji token by token sends one half in each event, and the client joins them.

    :raises NotJSON: the document is not JSON, or not of that type.
    """
    _check_text(body)
    check_depth(body, depth)
    try:
        return decoder.decode(body)
    except RecursionError:
        raise NotJSON("it nests too deeply") from None
    except msgspec.ValidationError:
        raise NotJSON("it is not of the expected shape") from None
    except msgspec.DecodeError:
        if _SURROGATE.search(body):
            return decode(_SURROGATE.sub(rb"\\ufffd", body), decoder, depth)
        raise NotJSON("it is malformed") from None


def check_depth(body: bytes, depth: int) -> None:
    """Refuse more than ``depth`` levels of nesting, in time linear in the size.

    Each bracket becomes a bit, and a table gives the change of depth for eight bits at once.
    """
    if _brackets(body) > depth:
        _check_depth(_structure(body), depth)


def _brackets(document: bytes) -> int:
    """How many opening brackets there are, those in strings included. Counts as :func:`_count`."""
    if len(document) > _SHORT_BYTES:
        return document.count(b"[") + document.count(b"{")
    rest = len(document.replace(b"[", b"")) + len(document.replace(b"{", b""))
    return 2 * len(document) - rest


def _count(document: bytes, byte: bytes) -> int:
    """How often a byte occurs.

    ``bytes.count`` looks at one byte after the other. Where the byte is rare, ``bytes.replace``
    takes a tenth of the time. It takes longer where the byte is frequent, so that a long document
    could be made for that.
    """
    if len(document) > _SHORT_BYTES:
        return document.count(byte)
    return len(document) - len(document.replace(byte, b""))


def _check_depth(structure: bytes, depth: int) -> None:
    bits = structure.translate(_BITS, b":")
    if bits.count(b"1") <= depth:
        return
    bits += b"0" * (-len(bits) % 8)
    eights = int(bits, 2).to_bytes(len(bits) // 8, "big")
    before = list(accumulate(map(_CHANGE.__getitem__, eights), initial=0))
    if max(before) + 8 <= depth:
        return  # within eight brackets the depth rises by eight at most
    if max(map(add, before, map(_PEAK.__getitem__, eights))) > depth:
        raise NotJSON(f"it nests deeper than {depth} levels")


def _steps(eight: int) -> list[int]:
    """The relative depth after each of eight brackets."""
    return list(accumulate(1 if eight >> bit & 1 else -1 for bit in range(7, -1, -1)))


_CHANGE = [_steps(eight)[-1] for eight in range(256)]
_PEAK = [max(_steps(eight)) for eight in range(256)]


@attrs.frozen
class Halves:
    """A document with halves of surrogate pairs, which msgspec does not decode.

    In ``replaced`` each escape of a surrogate is replaced by an escape that msgspec accepts and
    that the document does not contain. :meth:`put_back` restores the surrogates.
    """

    replaced: bytes
    _first: int  # the code point that replaces U+D800

    @classmethod
    def of(cls, document: bytes) -> Halves | None:
        """None if there is no half of a pair, or if no range of code points is unused."""
        if not _SURROGATE.search(document):
            return None
        try:
            _decode(document)
        except msgspec.DecodeError:
            for first in (0xE000, 0xE800, 0xF000):
                if not re.search(rb"\\u%x[%x-%x]" % _hex_range(first), document, re.IGNORECASE):
                    return cls(_moved(document, first - 0xD800, _SURROGATE), first)
        return None

    def put_back(self, document: bytes) -> bytes:
        """Restore the surrogates in a document that was made from ``replaced``."""
        digits = re.compile(rb"\\u%x[%x-%x][0-9a-f]{2}" % _hex_range(self._first), re.IGNORECASE)
        return _moved(document, 0xD800 - self._first, digits)


def _hex_range(first: int) -> tuple[int, int, int]:
    return first >> 12, first >> 8 & 15, (first >> 8 & 15) + 7


def _moved(document: bytes, by: int, escapes: re.Pattern[bytes]) -> bytes:
    return escapes.sub(lambda match: b"\\u%04x" % (int(match[0][2:], 16) + by), document)


def replace_member(document: bytes, key: str, old: bytes | None, new: bytes) -> bytes:
    """Set one top-level member of an object; all other bytes stay.

    :param old: the bytes of the member's value in ``document``; None if there is no such member,
        which is then added as the first.
    :param new: the new value, as JSON.
    """
    name = b'"%b"' % key.encode("ascii")
    if old is None:
        at = document.index(b"{") + 1
        comma = b"" if document[at:].lstrip().startswith(b"}") else b","
        return document[:at] + name + b":" + new + comma + document[at:]
    # Nearly always the name occurs once, followed by the value. Then this is the member: a string
    # cannot hold an unescaped quote, and without "\\u" no key has another spelling.
    after = document.find(name) + len(name)
    at = document.find(old, after)
    if (
        document[after:at].strip() == b":"
        and document.find(name, after) < 0
        and b"\\u" not in document
    ):
        return document[:at] + new + document[at + len(old) :]
    return _replace_slowly(document, key, new)


def _replace_slowly(document: bytes, key: str, new: bytes) -> bytes:
    """Walk all tokens: for a key that is escaped, repeated, or also found at a deeper level."""
    out: list[bytes] = []
    done = level = 0
    name: bytes | None = None  # a string at a place where a top-level key may be
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
    if body.isascii():
        return
    if body.startswith(b"\xef\xbb\xbf"):
        raise NotJSON("it starts with a byte order mark")
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as e:
        raise NotJSON(f"it is not UTF-8 at byte {e.start}") from None


def _outside_strings(body: bytes) -> bytes:
    """The document without its strings. A string without an end extends to the document's end."""
    if b"\\" in body:  # in a run of backslashes, the first escapes the second, and so on
        body = body.replace(rb"\\", b"").replace(rb"\"", b"")
    kept, inside = [], 0
    for at in range(0, len(body), _BLOCK):  # splitting all at once takes many times its size
        parts = body[at : at + _BLOCK].split(b'"')
        kept.append(b"".join(parts[inside::2]))
        inside ^= len(parts) - 1 & 1
    return b"".join(kept)


def _structure(body: bytes) -> bytes:
    """The brackets and colons outside strings, in their order."""
    return _outside_strings(body).translate(None, _NOT_STRUCTURE)


def _check_keys(body: bytes, value: Any) -> None:
    """Refuse objects with the same key twice: decoded, they have fewer colons than the document.

    :param value: what the document was decoded to.
    """
    encoded = _encode(value)
    if encoded == body:
        return  # it has no white space, as most clients send it
    if rb"\u003" in body:  # an escaped colon in a string would be a plain one in ``encoded``
        body, encoded = _structure(body), _structure(encoded)
    if _count(body, b":") != _count(encoded, b":"):
        raise NotJSON("an object has the same key twice")


def _check_numbers(body: bytes) -> None:
    """Refuse whole numbers outside the range of a float; msgspec has refused all others."""
    if len(body) >= len(_MANY_ZEROS) and _MANY_ZEROS in body.translate(_ZEROS):
        for number in _LONG_NUMBER.findall(_outside_strings(body)):
            if math.isinf(float(number)):
                raise NotJSON("a number is out of range")


def _reason(body: bytes, message: str) -> str:
    """What is wrong with a document that msgspec refuses, in a few words.

    :param message: msgspec's.
    """
    if _SURROGATE.search(body):
        try:
            with _NoCollection():
                _decode(_SURROGATE.sub(rb"\\ufffd", body))
        except (msgspec.DecodeError, RecursionError):
            pass
        else:
            return "a string holds half of a surrogate pair"
    where = re.search(r"\(byte ([0-9]+)\)", message)
    return f"it is malformed at byte {where[1]}" if where else "it ends too early"


class _NoCollection:
    """Disables the garbage collector while it is entered.

    The collector would walk all new values several times, and JSON values have no cycles.
    """

    def __enter__(self) -> None:
        self._enabled = gc.isenabled()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        if self._enabled:
            gc.enable()
