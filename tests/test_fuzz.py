"""Anything a client may send, into the whole gateway in memory: no 5xx, no traceback, no hang, and
no request at the backend but those that a strict reading of the same bytes finds too.

The readings to compare with are here: one of HTTP, one of JSON, both as plain and strict as can be.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from twisted.logger import ILogObserver, LogEvent, LogLevel, globalLogPublisher
from zope.interface import implementer

from tests.memory import Answer, ClientTransport, FakeBackend, Gateway, completion
from tests.memory import settings as configured

DEPTH = 8
CLOCKS = {"timeouts_request_head": "2", "timeouts_request_body": "4", "timeouts_client_idle": "3"}
LIMITS = {"limits_request_head": "2000", "limits_request_body": "9000", "limits_json_depth": "8"}


@implementer(ILogObserver)
class Door:
    """A gateway in front of a backend that answers everything."""

    def __init__(self) -> None:
        self.backend = FakeBackend()
        self.gateway = Gateway(self.backend, settings=configured(**CLOCKS, **LIMITS))
        self.errors: list[LogEvent] = []

    def __enter__(self) -> Door:
        globalLogPublisher.addObserver(self)
        return self

    def __exit__(self, *_: object) -> None:
        globalLogPublisher.removeObserver(self)

    def __call__(self, event: LogEvent) -> None:
        if event.get("log_failure") or event.get("log_level") in (
            LogLevel.error,
            LogLevel.critical,
        ):
            self.errors.append(event)

    def talk(self, pieces: list[bytes]) -> tuple[ClientTransport, list[bytes]]:
        """Send pieces until the connection closes; return what reached the backend.

        Then the clocks run, and the connection must have ended by them.
        """
        client = self.gateway.connect()
        for piece in pieces:
            if not client.connected or client.disconnecting:
                break
            client.protocol.dataReceived(piece)
            self._answer()
        for _ in range(10):
            self.gateway.clock.advance(1)
            self._answer()
        assert client.disconnecting or not client.connected, "it hangs"
        if client.connected:
            client.leave()
        self.gateway.clock.advance(10)
        assert not self.gateway.site.state.active and not self.gateway.clock.getDelayedCalls()
        assert self.errors == []
        return client, [call.body for call in self.backend.calls]

    def _answer(self) -> None:
        for call in self.backend.calls:
            if not call.answer.called and call.left is None:
                call.whole(completion())


def statuses(client: ClientTransport) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 ([0-9]{3}) ", client.value())]


# -- HTTP, read strictly ---------------------------------------------------------------------------

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_START = re.compile(rb"(%b) ([!-~]+) HTTP/1\.([0-9])" % _TOKEN)
_FIELD = re.compile(rb"(%b):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*" % _TOKEN)
_QUOTED = rb'"(?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\[^\x00-\x08\x0a-\x1f\x7f])*"'
_EXTENSION = rb";[ \t]*%b[ \t]*(?:=[ \t]*(?:%b|%b)[ \t]*)?" % (_TOKEN, _TOKEN, _QUOTED)
_CHUNK = re.compile(rb"([0-9A-Fa-f]+)(?:%b)*" % _EXTENSION)


class Doubt(Exception):
    """Two parsers could differ from here on, or the bytes end."""


def line_of(data: bytes) -> tuple[bytes, bytes]:
    line, end, rest = data.partition(b"\r\n")
    if not end:
        raise Doubt
    return line, rest


def fields_of(data: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
    fields: list[tuple[bytes, bytes]] = []
    while True:
        line, data = line_of(data)
        if not line:
            return fields, data
        field = _FIELD.fullmatch(line)
        if not field:
            raise Doubt
        fields.append((field[1].lower(), field[2]))


def chunks_of(data: bytes) -> tuple[bytes, bytes]:
    body = b""
    while True:
        line, data = line_of(data)
        chunk = _CHUNK.fullmatch(line)
        size = int(chunk[1], 16) if chunk else -1
        if size == 0:
            return body, fields_of(data)[1]
        if not 0 < size <= len(data) - 2 or data[size : size + 2] != b"\r\n":
            raise Doubt
        body, data = body + data[:size], data[size + 2 :]


def bodies(data: bytes) -> list[bytes]:
    """The bodies of all requests in these bytes, up to the first doubt."""
    found: list[bytes] = []
    try:
        while data:
            start, data = line_of(data)
            while not start:  # some clients send empty lines between two requests
                start, data = line_of(data)
            line = _START.fullmatch(start)
            if not line:
                break
            fields, data = fields_of(data)

            def values(name: bytes, fields: list[tuple[bytes, bytes]] = fields) -> list[bytes]:
                return [value for key, value in fields if key == name]

            lengths, codings = values(b"content-length"), values(b"transfer-encoding")
            hosts = len(values(b"host"))
            if hosts > 1 or (line[3] != b"0" and not hosts) or len(lengths) + len(codings) > 1:
                break
            if codings:
                if codings[0].lower() != b"chunked" or line[3] == b"0":
                    break
                body, data = chunks_of(data)
            else:
                if lengths and not re.fullmatch(rb"[0-9]+", lengths[0]):
                    break
                length = int(lengths[0]) if lengths else 0
                if length > len(data):
                    break
                body, data = data[:length], data[length:]
            found.append(body)
    except Doubt:
        pass
    return found


# -- JSON, read strictly ---------------------------------------------------------------------------


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("twice")
    return dict(pairs)


def _constant(name: str) -> None:
    raise ValueError(name)


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


def strings_of(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for inner in value if isinstance(value, list) else ():
        yield from strings_of(inner)
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield key
        yield from strings_of(inner)


def is_strict_json(body: bytes) -> bool:
    def finite(number: str) -> float:
        if math.isinf(float(number)):
            raise ValueError(number)
        return float(number)

    try:
        value = json.loads(
            body.decode("utf-8"), object_pairs_hook=_pairs, parse_constant=_constant,
            parse_float=finite, parse_int=finite,
        )  # fmt: skip
        for text in strings_of(value):
            text.encode("utf-8")  # not with half of a pair
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and depth_of(value) <= DEPTH


# -- raw bytes -------------------------------------------------------------------------------------

CHAT = b'{"messages":[{"role":"user","content":"hi"}]}'
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
LENGTH = b"Content-Length: %d\r\n\r\n" % len(CHAT)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CHUNKS = b"5;a=b\r\n%b\r\n%X\r\n%b\r\n0\r\n" % (CHAT[:5], len(CHAT) - 5, CHAT[5:])
GOOD = [
    HEAD + LENGTH + CHAT,
    HEAD + b"Expect: 100-continue\r\n" + LENGTH + CHAT,
    HEAD + CHUNKED + b"\r\n" + CHUNKS + b"\r\n",
    HEAD + CHUNKED + b"\r\n" + CHUNKS + b"X-A: b\r\n\r\n",
    HEAD + b"Connection: close\r\n" + LENGTH + CHAT,
    HEAD.replace(b"1.1", b"1.0") + LENGTH + CHAT,
    HEAD.replace(b"chat/completions", b"embeddings") + LENGTH + CHAT,
    HEAD.replace(b"POST /", b"POST http://b/") + LENGTH + CHAT,
    HEAD + LENGTH.replace(b"Content", b"X-A: b\r\nContent") + CHAT,
    b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-Request-ID: b\r\n\r\n",
    b"GET /v1/models?a=b HTTP/1.1\r\nHost: a\r\nOrigin: http://localhost\r\n\r\n",
    b"HEAD /v1/models/m HTTP/1.1\r\nHost: a\r\n\r\n",
    b"OPTIONS /v1/models HTTP/1.1\r\nHost: a\r\nOrigin: http://localhost\r\n"
    b"Access-Control-Request-Method: POST\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
]
NASTY = [
    *(b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\n\n", b"\0", b" ", b"\t", b":", b",", b";", b"-"),
    *(b"+", b"\xff", b"\x0b", b"\x7f", b"0x", b"0", b"5", b"1e1", b"chunked", b"HTTP/1.0"),
    *(b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", CHUNKED, b"Transfer-Encoding: x\r\n"),
    *(b"Host: b\r\n", b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"0\r\n\r\n"),
    *(b"Upgrade: h2c\r\nConnection: upgrade\r\n", b"Content-Encoding: gzip\r\n", b" folded\r\n"),
    *(b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n", b"a" * 3000, b"X: a\r\n" * 400, b"5\r\n"),
    *(b"Content-Type: text/plain\r\n", b"Authorization: Bearer x\r\n", b"Origin: null\r\n", b'"'),
]


KINDS = ["insert", "insert", "delete", "double", "byte", "cut", "case", "move"]


@st.composite
def raw(draw: st.DrawFn) -> bytes:
    """Requests in a row, spoiled a little."""
    data = b"".join(draw(st.lists(st.sampled_from(GOOD), min_size=1, max_size=3)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.integers(0, 12)))
        kind = draw(st.sampled_from(KINDS))
        if kind == "insert":
            data = data[:at] + draw(st.sampled_from(NASTY)) + data[at:]
        elif kind == "delete":
            data = data[:at] + data[end:]
        elif kind == "double":
            data = data[:end] + data[at:]
        elif kind == "byte":
            data = data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "case":
            data = data[:at] + data[at:end].swapcase() + data[end:]
        else:
            data = data[:at] + data[end:] + data[at:end]
    return data


@st.composite
def cut(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> list[bytes]:
    """The same in pieces."""
    data = draw(whole)
    places = draw(st.lists(st.integers(0, len(data)), max_size=6).map(sorted))
    if draw(st.integers(0, 19)) == 0:
        places = list(range(len(data)))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True) if a < b]


bounded = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@settings(bounded, max_examples=1200)
@given(pieces=cut(raw()))
@example(pieces=[HEAD + b"Content-Length: 5\r\n" + CHUNKED + b"\r\n" + CHUNKS + b"\r\n"])
@example(
    pieces=[b"HEAD /healthz HTTP/1.1\r\nHost: a\r\n\r\n", b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n"]
)
@example(pieces=[HEAD + CHUNKED + b"\r\n" + b"1\r\na\r\n" * 9001])
def test_any_bytes_of_a_client(pieces: list[bytes]) -> None:
    with Door() as door:
        client, reached = door.talk(pieces)
    assert all(status < 500 for status in statuses(client))
    expected = iter(bodies(b"".join(pieces)))
    for body in reached:  # each is the next one, or one behind it, of those without doubt
        assert body in expected, body
        assert is_strict_json(body)


@settings(bounded, max_examples=300)
@given(pieces=cut(st.binary(max_size=300)))
def test_any_bytes_at_all(pieces: list[bytes]) -> None:
    with Door() as door:
        client, reached = door.talk(pieces)
    assert all(400 <= status < 500 for status in statuses(client)) and reached == []


# -- bodies ----------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
KEYS = st.sampled_from(["model", "stream", "messages", "role", "content", "n", "a", ""]) | TEXTS
NUMBERS = st.one_of(
    st.integers(-(10**400), 10**400).map(str),
    st.floats().map(str),
    st.from_regex(r"-?[0-9]{1,5}(\.[0-9]{1,3})?([eE][+-]?[0-9]{1,3})?", fullmatch=True),
)


@st.composite
def spelled(draw: st.DrawFn, text: str) -> str:
    """A string as JSON, some of it escaped, perhaps wrongly."""
    if draw(st.integers(0, 3)):
        return json.dumps(text, ensure_ascii=draw(st.booleans()))
    odd = draw(
        st.sampled_from(["\\ud83c", "\\udf89", "\\ud83c\\udf89", "\\x", "\t", '\\"', "\\\\"])
    )
    return '"' + "".join(f"\\u{ord(c):04x}" for c in text if ord(c) < 0x10000) + odd + '"'


def values(leaves: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Documents as text; keys may come twice."""
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4).map(lambda items: f"[{','.join(items)}]"),
            st.lists(st.tuples(KEYS.flatmap(spelled), inner), max_size=4).map(
                lambda pairs: "{" + ",".join(f"{k} : {v}" for k, v in pairs) + "}"
            ),
        ),
        max_leaves=8,
    )


GOOD_LEAVES = st.sampled_from(["null", "true", "{}", "[]", '"a"', "1", "-0.5e-3", '"\\u00e9:"'])
BAD_LEAVES = st.sampled_from(["NaN", "-Infinity", "1.", "1e999", "01", '"\\q"', "'", ""])
ANY = values(GOOD_LEAVES | BAD_LEAVES | NUMBERS | TEXTS.flatmap(spelled))


def with_members(members: list[tuple[str, str]]) -> bytes:
    text = ",".join(f"{key}:{value}" for key, value in members)
    return f'{{"messages":[{{"role":"user","content":"hi"}}]{"," if text else ""}{text}}}'.encode()


@st.composite
def spoiled(draw: st.DrawFn, good: st.SearchStrategy[bytes]) -> bytes:
    body = draw(good)
    at = draw(st.integers(0, len(body)))
    return body[:at] + draw(st.binary(max_size=3)) + body[at + draw(st.integers(0, 3)) :]


def objects(inner: st.SearchStrategy[str]) -> st.SearchStrategy[bytes]:
    return st.lists(st.tuples(KEYS.map(json.dumps), inner), max_size=4).map(with_members)


NESTED = st.tuples(st.integers(1, 12), st.sampled_from([("[", "]"), ('{"a":', "}")])).map(
    lambda t: with_members([('"x"', t[1][0] * t[0] + "1" + t[1][1] * t[0])])
)


BODIES = st.one_of(
    objects(values(GOOD_LEAVES)),
    spoiled(objects(values(GOOD_LEAVES))),
    objects(ANY),
    ANY.map(str.encode),
    NESTED,
)


@settings(bounded, max_examples=500)
@given(body=BODIES)
@example(body=b"")
@example(body=with_members([('"a"', "9" * 309)]))
@example(body=with_members([('"\\u006dodel"', '"a"'), ('"model"', '"\\u003a"')]))
def test_any_body(body: bytes) -> None:
    """It reaches the backend as it is, or is refused; as no JSON only if it is none."""
    head = HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    with Door() as door:
        client, reached = door.talk([head + body])
    answer = Answer(client)
    if answer.status == 200:
        assert reached == [body] and is_strict_json(body)
    else:
        assert answer.status == 400 and reached == []
        assert answer.code == "invalid_value" if is_strict_json(body) else "invalid_json"
