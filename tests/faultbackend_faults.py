r"""The faults of faultbackend.py: a table of names, each of which changes the plan of one reply.

The plan and how it is sent live here too; sockets, requests and records do not.

The last user message names the fault in a line of its own: ``fault:NAME[:ARG...]``, several joined
by ``+`` (``fault:crlf+drip:1:0.001``). Other lines of the message are free. Without such a line
the reply is a good one. Every fault works for ``stream`` true and false unless marked (SSE); with
``stream`` false a count of events N means: 0 is nothing, more is half of the JSON body.
``SIZE`` takes ``KB`` and ``MB`` (1024), times are seconds. Defaults are given as ``name=default``.

Before and instead of the reply
  hang                     no answer, ever
  slow-first-byte:S        waits S, then answers
  head-immediately:S[:P=0] the head at once, the rest after S; (SSE) meanwhile ``:`` every P seconds
  echo                     the content of the reply is the request, head and body
  garbage                  bytes that are no HTTP, then silence
  http09                   a bare HTML body without a head, then the end
  reset-after-request      RST without a byte                   close-after-request   FIN likewise
  reset-mid-headers        half a head, then RST                close-mid-headers     then FIN
  stall-mid-headers        half a head, then silence            switch                101, silence
  1xx[:CODE=100[:N=1]]     N interim answers first              1xx-flood[:S=0.01]    one every S
  huge-header:SIZE         one header of SIZE                   many-headers:N        N headers more
  endless-headers          a head that never ends
  stale-next:rst|fin       a good reply; the connection dies without a byte at the next request
  flaky:N:KIND[:BY=id]     the first N requests of this request id (BY=prompt: of this message) fail
                           with KIND, a status or the name of a fault; the later ones are good

Status and kind of the reply
  401-upstream             401 with WWW-Authenticate and a piece of the key
  429-retry-after          429 with Retry-After: 7 and x-ratelimit-* headers
  status:CODE[:AS=json]    an error; json (an envelope), html, text, empty, huge (16 MB of HTML)
  redirect:CODE[:URL]      to /__sim/redirected (counted in ``redirect_hits``) or to URL
  json-body:KIND           200 with a wrong body: text, null, array, string, truncated, empty,
                           shape, noct (good, without Content-Type), nan, bad-utf8, deep, error200
  json-for-sse, sse-for-json, ct:TYPE      the other kind of reply; another Content-Type
  gzip, enc:CODING         compressed; Content-Encoding: CODING on a plain body
  gzip-bad[:HOW=garbage]   HOW is garbage, crc, truncated
  gzip-bomb:SIZE           a small body that inflates to SIZE
  huge:SIZE                JSON of SIZE; (SSE) many events, together SIZE
  endless[:S=0]            a reply without end, as fast as it is read or one event every S

How the body ends (N events are whole, the *-mid-body faults send half of the next one)
  reset-mid-body[:N=2]     RST                                  close-mid-body[:N=2]  FIN
  stall-mid-body[:N=2]     silence                              stall-after[:N=2]     silence
  chunked-truncated[:N=2]  FIN instead of the last chunk (JSON: after the whole body)
  bad-chunk[:N=2]          a chunk without a size, then silence
  huge-trailer[:N=2]       the last chunk and a trailer of 4 MB without an end
  huge-extension[:N=2]     a chunk whose extension is likewise
  end-after[:N=2]          a clean end: no finish_reason, no [DONE]
  eof-body                 neither length nor chunks: the body ends with the connection
  empty-stream             a clean end without any event
  pause:N:S                silence of S after N events, then the rest
  surplus[:S=0]            another whole response behind it, in the same segment or S later
  conn-close-spelling:V    Connection: V; its next request is reset, a violation

How the bytes are cut
  drip:N:S                 N bytes of the body every S          bytes          one per segment
  coalesce                 as many events as possible in one chunk and segment
  split-event              every event in four chunks           split-utf8     cut inside characters

Events (SSE)
  crlf, cr, no-space, bom  line ends, ``data:`` without a space, a byte order mark first
  fields, comments         event:, id:, retry: and unknown lines; comments around and inside events
  multi-data               each payload in three data: lines (``want`` has it joined by line feeds)
  utf8                     content full of what breaks decoders and splitlines()
  surrogate-event, tools   a surrogate pair split over two events; tool_calls (both also in JSON)
  tokens:N[:S=0]           N tokens, S apart; payloads carry the time of sending as ``sim_t``
  usage:WHEN               usage always, never, or on the finish chunk (finish); else as asked
  no-done, finish-empty[:WHERE=others]     no [DONE]; finish_reason "" on the chunks before the last
                           (WHERE=all: also on the last)
  two-choices[:open]       two choices; with open only the first gets its finish_reason
  done-linger:S            ends the body S after [DONE]         after-done     events follow [DONE]
  done-early:N             [DONE] after N events                error-event:N  error after N events
  error-then-done:N        an error and then [DONE]             not-json:N     a text after N events
  comment-only[:S=0.1]     a comment every S, for ever          huge-event:SIZE  one of SIZE
  pings:N[:S=0.1]          N events, then a thousand pings, one every S
  empty-chunks:N[:S=0.1]   the same with chunks whose delta is empty
  null-first               data: null before the first event, as llama.cpp sends it
  no-newline[:SIZE=8MB]    two events, then SIZE bytes of one line, then silence
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import re
import struct
import time
import zlib
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from tests.faultbackend import Connection, Record

CREATED = 1700000000
FOR_EVER = 86400.0
SLICE = 65536
MEGABYTE = 1 << 20
SECRETS = "host internal-host.corp, file /srv/secret/app.py, key sk-sim-secret-key"
SURPLUS = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 19\r\n\r\n"
    b'{"stolen": "reply"}'
)

# JSON string literals: escapes, raw Unicode, an SSE frame and a [DONE] inside the text.
TEXTS = (
    r'"Hel\u006co, \"wor\\ld\" \/ "',
    '"Gr\u00fc\u00dfe \u65e5\u672c\u8a9e \U0001f600 "',
    r'"\u00e9 \ud83d\ude00 data: [DONE]\n\n "',
    '"\u2028 \u2029 \u0085 \\u0000 \\t "',
    '"  1.0 1e0 12345678901234567890  "',
)
UTF8_TEXTS = (
    '"\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f3f3\ufe0f\u200d\U0001f308"',
    '"\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u202eabc\u202c"',
    '"\u6f22\u5b57\u304b\u306a\ud55c\uae00 \u0e44\u0e17\u0e22"',
    '"\u2028\u2029\u0085\ufeff\u00a0\u00ad\ufffe\U0010ffff"',
    '"e\u0301 \u00e9 \u212b \ufb01 \U00020000"',
)
TOOL_DELTAS = (
    '{"tool_calls":[{"index":0,"id":"call_sim","type":"function",'
    '"function":{"name":"look\\u005fup","arguments":""}}]}',
    r'{"tool_calls":[{"index":0,"function":{"arguments":"{\"q\": \"Gr"}}]}',
    '{"tool_calls":[{"index":0,"function":{"arguments":"\u00fc\u00dfe\\", \\"n\\": 1.0}"}}]}',
)
TOOL_MESSAGE = (
    '{"role":"assistant","content":null,"tool_calls":[{"id":"call_sim","type":"function",'
    r'"function":{"name":"lookup","arguments":"{\"q\": 1.0}"}}]}'
)
USAGE = '{"prompt_tokens":7, "completion_tokens":5, "total_tokens":12, "x_cost":1.50}'
EXTRA = r'"x_sim":{"one":1.0,  "exp":1e0,"big":12345678901234567890,"text":"\u00e9\/"}'

# The reply: a list of steps that faults edit before they are taken.


@dataclass(frozen=True)
class Event:
    payload: bytes
    counted: bool = True  #: part of ``want`` and ``sent``
    name: bytes = b""  #: of its ``event:`` line; empty for none


@dataclass(frozen=True)
class Half:
    """The first half of an event; a chunk announces the whole."""

    event: Event


@dataclass(frozen=True)
class Body:
    """A whole JSON body."""

    data: bytes


@dataclass(frozen=True)
class Raw:
    """Bytes of the body that are no event."""

    data: bytes


@dataclass(frozen=True)
class Wire:
    """Bytes that go past the framing of the body."""

    data: bytes


@dataclass(frozen=True)
class Wait:
    seconds: float


@dataclass(frozen=True)
class Stop:
    how: str  #: ``reset``, ``close``, or ``end`` for a clean end of the body


Step = Event | Half | Body | Raw | Wire | Wait | Stop
Edit = Callable[[Iterator[Step]], Iterator[Step]]
DONE = Event(b"[DONE]", counted=False)


def after(n: int, *rest: Step, half: bool = False, keep: bool = False) -> Edit:
    """The first `n` events, then `rest`; with `half` a half event between, with `keep` the others
    behind."""

    def edit(steps: Iterator[Step]) -> Iterator[Step]:
        seen = 0
        while seen < n or half:
            match step := next(steps, None):
                case None:
                    break
                case Body(data):
                    middle = len(data) // 2 if n else 0
                    yield Raw(data[:middle])
                    yield from rest
                    if keep:
                        yield Raw(data[middle:])
                    return
                case Event() if seen == n:
                    yield Half(step)
                    break
                case Event():
                    seen += 1
            yield step
        yield from rest
        if keep:
            yield from steps

    return edit


def first(*new: Step) -> Edit:
    return lambda steps: itertools.chain(new, steps)


def only(new: Iterable[Step]) -> Edit:
    return lambda _: iter(new)


def at_done(*new: Step) -> Edit:
    """Put `new` behind the [DONE]."""

    def edit(steps: Iterator[Step]) -> Iterator[Step]:
        for step in steps:
            yield step
            if step is DONE:
                yield from new

    return edit


@dataclass
class Style:
    """How an event is written."""

    eol: bytes = b"\n"
    data: bytes = b"data: "
    bom: bytes = b""
    fields: bool = False
    comments: bool = False
    multi: bool = False

    def payload(self, payload: bytes) -> bytes:
        """What a parser shall get: with `multi` a payload of three lines."""
        if self.multi and payload[:1] == b"{":
            return b"{\n" + payload[1:-1] + b"\n}"
        return payload

    def event(self, payload: bytes, name: bytes = b"") -> bytes:
        lines = [self.data + line for line in payload.split(b"\n")]
        if name:
            lines.insert(0, b"event: " + name)
        if self.fields:
            lines = [b"event: completion", b"id: 1\xc3\xa9", *lines, b"retry: 3000", b"x: y", b"z"]
        if self.comments:
            lines = [
                b": ping",
                b"",
                b":data: no data",
                lines[0],
                b":",
                *lines[1:],
                b": \xf0\x9f\x91\x8b",
            ]
        bom, self.bom = self.bom, b""
        return bom + self.eol.join(lines) + self.eol * 2


def envelope(message: str, kind: str, code: object = None) -> bytes:
    error = {"message": message, "type": kind, "param": None, "code": code}
    return json.dumps({"error": error}).encode()


@dataclass
class Reply:
    """The plan of one reply, made of defaults that faults change, and its execution."""

    #: An event that says that the reply has failed.
    failure: ClassVar[Event] = Event(envelope("sim failed on the way", "server_error", 500))

    conn: Connection
    record: Record
    request: dict[str, Any] = field(default_factory=dict)
    prompt: str = ""
    stream: bool = False
    status: int = 200
    headers: list[tuple[str, str]] = field(default_factory=list)
    content_type: str | None = None
    no_content_type: bool = False
    framing: str = ""  #: chunked, length, eof
    surplus: bytes = b""
    close: bool = False
    # the content
    texts: Iterable[str] = TEXTS
    deltas: Iterable[str] | None = None
    message: str | None = None
    body: bytes | None = None
    steps: Callable[[], Iterator[Step]] | None = None
    choices: int = 1
    open_choice: bool = False
    finish: str = '"stop"'
    not_finished: str = "null"
    usage: str = "asked"
    done: bool = True
    token_gap: float = 0.0
    stamp: bool = False
    keep_want: bool = True
    # its bytes
    style: Style = field(default_factory=Style)
    split: Callable[[bytes], list[bytes]] | None = None
    batch: int = 1
    slice_size: int = 0
    slice_gap: float = 0.0
    pack: Callable[[bytes], bytes] | None = None
    pack_end: Callable[[], bytes] | None = None
    # around it
    before: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    instead: Callable[[], Awaitable[None]] | None = None
    edits: list[tuple[Edit, bool]] = field(default_factory=list)
    behind: Callable[[], object] | None = None

    _made: int = 0
    _dripping: bool = False
    _pending: int = 0
    _held: bytearray = field(default_factory=bytearray)

    # What faults call.

    def answer(self, status: int, body: bytes, content_type: str = "application/json") -> None:
        """Answer with this body instead of a completion."""
        self.status, self.body, self.stream, self.content_type = status, body, False, content_type
        self.no_content_type = not body and not content_type

    def edit(self, edit: Edit, *, sse: bool = False) -> None:
        self.edits.append((edit, sse))

    def cut(self, n: int, *rest: Step, half: bool = False, chunked: bool = False) -> None:
        """End the body after `n` events with `rest`."""
        if chunked:
            self.framing = self.framing or "chunked"
        self.edit(after(n, *rest, half=half))

    def pause_before(self, seconds: float) -> None:
        self.before.append(partial(asyncio.sleep, seconds))

    # The content.

    def chunk(self, delta: str, index: int = 0, finish: str = "", choices: bool = True) -> Event:
        """One chunk; key order and white space change from one to the next."""
        self._made += 1
        finish = finish or self.not_finished
        usage = "null" if self._usage_chunk else ""
        if (self.usage == "finish" and finish == self.finish) or not choices:
            usage = USAGE
        more = EXTRA + (f',"usage":{usage}' if usage else "")
        if self.stamp:
            more += f',"sim_t":{time.monotonic():.6f}'
        choice = f'{{"index":{index},"delta":{delta},"logprobs":null,"finish_reason":{finish}}}'
        choice = f"[{choice}]" if choices else "[]"
        head, model = f'"id":"{self.record.sim_id}"', self.model
        kind = '"object":"chat.completion.chunk"'
        match self._made % 3:
            case 1:
                made = f'{{{head},{kind},"created":{CREATED},"model":{model},"choices":{choice},'
                made += f"{more}}}"
            case 2:
                made = f'{{ "choices" :\t{choice}, "created": {CREATED}, {head},{kind}, {more}, '
                made += f'"model": {model} }}'
            case _:
                made = f'{{{more},"model":{model},"choices":{choice},{kind},"created":{CREATED},'
                made += f"{head}}}"
        return Event(self.style.payload(made.encode()))

    @cached_property
    def model(self) -> str:
        """The model of the request, as JSON."""
        return json.dumps(self.request.get("model") or "sim-model")

    @property
    def _usage_chunk(self) -> bool:
        options = self.request.get("stream_options")
        asked = isinstance(options, dict) and options.get("include_usage") is True
        return self.usage == "always" or (self.usage == "asked" and asked)

    def events(self) -> Iterator[Step]:
        for index in range(self.choices):
            yield self.chunk('{"role":"assistant","content":""}', index)
        for delta in self.deltas or (f'{{"content":{text}}}' for text in self.texts):
            if self.token_gap:
                yield Wait(self.token_gap)
            for index in range(self.choices):
                yield self.chunk(delta, index)
        for index in range(1 if self.open_choice else self.choices):
            yield self.chunk("{}", index, self.finish)
        if self._usage_chunk:
            yield self.chunk("", choices=False)
        if self.done:
            yield DONE

    def completion(self) -> bytes:
        text = "".join(text[1:-1] for text in self.texts)
        message = self.message or f'{{"role":"assistant", "content":"{text}","refusal":null}}'
        choices = ",\n".join(
            f'    {{"finish_reason":{"null" if index and self.open_choice else self.finish},'
            f'"index":{index},"message":{message}}}'
            for index in range(self.choices)
        )
        usage = "" if self.usage == "never" else f' "usage" : {USAGE},'
        return (
            f'{{"object":"chat.completion",\n  "choices":[\n{choices}],{usage}\r\n{EXTRA},'
            f'\t"id":"{self.record.sim_id}",\n"model":{self.model},'
            f'"created":{CREATED}}}\n'
        ).encode()

    # Sending.

    async def send(self) -> None:
        for action in self.before:
            await action()
        if self.instead:
            return await self.instead()
        if self.stream:
            steps: Iterator[Step] = self.events() if self.steps is None else self.steps()
            self.framing = self.framing or "chunked"
        else:
            body = self.completion() if self.body is None and self.steps is None else self.body
            steps = iter((Body(body),)) if body is not None else (self.steps or self.events)()
            self.record.want_json = body
            self.framing = self.framing or ("chunked" if body is None or self.pack else "length")
        for edit, sse in self.edits:
            if self.stream or not sse:
                steps = edit(steps)
        await self.conn.write(self._head())
        if self.record.method == "HEAD":
            steps = iter(())
        for step in steps:
            match step:
                case Event(payload, counted, name):
                    if counted:
                        self._pending += 1
                        if self.keep_want:
                            self.record.want.append(payload)
                    await self._piece(self.style.event(payload, name))
                case Half(event):
                    await self._flush()
                    wire = self._frame(self.style.event(event.payload, event.name))
                    await self._out(wire[: len(wire) // 2])
                case Body(data) | Raw(data):
                    await self._piece(data)
                case Wire(data):
                    await self._flush()
                    await self._out(data)
                case Wait(seconds):
                    await self._flush()
                    await asyncio.sleep(seconds)
                case Stop("end"):
                    break
                case Stop(how):
                    await self._flush()
                    return await self.conn.cut(how)
        if self.pack_end:
            self._held += self.pack_end()
        await self._flush((b"0\r\n\r\n" if self.framing == "chunked" else b"") + self.surplus)
        self.record.done = True
        if self.behind:
            self.behind()

    def _head(self) -> bytes:
        kind = self.content_type or ("text/event-stream" if self.stream else "application/json")
        lines = [f"HTTP/1.1 {self.status} {phrase(self.status)}", "Server: sim/1.0"]
        if not self.no_content_type:
            lines.append(f"Content-Type: {kind}")
        # vLLM's middleware appends an id of its own; the others must not cross the gateway.
        lines += ["X-Request-ID: sim-own-id", "Set-Cookie: sid=sim", "X-Powered-By: sim/1.0"]
        if self.framing == "chunked":
            lines.append("Transfer-Encoding: chunked")
        elif self.framing == "length":
            lines.append(f"Content-Length: {len(self.record.want_json or b'')}")
        self.close |= self.framing == "eof" or self.conn.last_request
        if self.close:
            lines.append("Connection: close")
        elif self.conn.backend.advertise_keep_alive:
            timeout = self.conn.backend.keep_alive_seconds or 5
            limit = self.conn.backend.max_requests or 100
            lines.append(f"Keep-Alive: timeout={timeout:g}, max={limit}")
        lines += [f"{name}: {value}" for name, value in self.headers]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    async def _piece(self, data: bytes) -> None:
        """Send a piece of the body, in a chunk of its own unless `split` or `batch` say other."""
        if self.pack:
            data = self.pack(data)
        parts = self.split(data) if self.split else [data]
        for part in parts[:-1]:
            self._held += part
            events, self._pending = self._pending, 0
            await self._flush()
            self._pending = events
            await asyncio.sleep(0.001)
        self._held += parts[-1]
        if len(self._held) >= self.batch:
            await self._flush()

    async def _flush(self, tail: bytes = b"") -> None:
        wire = self._frame(bytes(self._held)) + tail
        self._held.clear()
        await self._out(wire)
        self.record.sent += self._pending
        self.record.sent_times += [time.monotonic()] * self._pending
        self._pending = 0

    def _frame(self, data: bytes) -> bytes:
        if self.framing == "chunked" and data:
            return b"%x\r\n%b\r\n" % (len(data), data)
        return data

    async def _out(self, wire: bytes) -> None:
        size = self.slice_size or len(wire) or 1
        for start in range(0, len(wire), size):
            if self.slice_gap and self._dripping:
                await asyncio.sleep(self.slice_gap)
            self._dripping = True
            await self.conn.write(wire[start : start + size])


def phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


# The faults: a table of functions that change the plan. Arguments are converted by annotation.

FAULTS: dict[str, Callable[..., None]] = {}


def size(text: str) -> int:
    """``900KB`` -> 921600."""
    number, unit = re.fullmatch(r"(\d+)(KB|MB|)", text).groups()  # type: ignore[union-attr]  # or raise
    return int(number) * {"": 1, "KB": 1024, "MB": MEGABYTE}[unit]


CONVERT: dict[str, Callable[[str], object]] = {"int": size, "float": float, "str": str}


def fault(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def register(function: Callable[..., None]) -> Callable[..., None]:
        FAULTS[name] = function
        return function

    return register


def apply(reply: Reply, text: str) -> None:
    """Apply ``NAME:ARG+NAME:ARG`` to a plan. A ``+`` inside of an argument is kept."""
    parts: list[str] = []
    for part in text.split("+"):
        if parts and part.split(":")[0] not in FAULTS:
            parts[-1] += "+" + part
        else:
            parts.append(part)
    for part in parts:
        name, _, rest = part.partition(":")
        function = FAULTS[name]
        kinds = [p.annotation for p in inspect.signature(function).parameters.values()][1:]
        words = rest.split(":", len(kinds) - 1) if rest else []
        function(reply, *(CONVERT[kind](word) for kind, word in zip(kinds, words, strict=False)))


def sets(**values: object) -> Callable[[Reply], None]:
    """A fault that only sets fields of the plan."""

    def function(reply: Reply) -> None:
        for name, value in values.items():
            setattr(reply, name, value)

    return function


def styles(**values: object) -> Callable[[Reply], None]:
    """A fault that only sets fields of the plan's style."""

    def function(reply: Reply) -> None:
        for name, value in values.items():
            setattr(reply.style, name, value)

    return function


def split_event(data: bytes) -> list[bytes]:
    return [data[:3], data[3 : len(data) // 2], data[len(data) // 2 : -1], data[-1:]]


def split_utf8(data: bytes) -> list[bytes]:
    """Cut before every continuation byte."""
    return re.findall(rb"[\x80-\xbf][^\x80-\xbf]*|[^\x80-\xbf]+", data, re.DOTALL) or [data]


FAULTS |= {
    "crlf": styles(eol=b"\r\n"),
    "cr": styles(eol=b"\r"),
    "no-space": styles(data=b"data:"),
    "bom": styles(bom=b"\xef\xbb\xbf"),
    "fields": styles(fields=True),
    "comments": styles(comments=True),
    "multi-data": styles(multi=True),
    "utf8": sets(texts=UTF8_TEXTS),
    "surrogate-event": sets(texts=(r'"a\ud83d"', r'"\ude00b"', r'"\udc00"')),
    "tools": sets(deltas=TOOL_DELTAS, message=TOOL_MESSAGE, finish='"tool_calls"'),
    "no-done": sets(done=False),
    "eof-body": sets(framing="eof"),
    "coalesce": sets(batch=4 * SLICE),
    "split-event": sets(split=split_event),
    "split-utf8": sets(split=split_utf8),
    "bytes": sets(slice_size=1),
    "json-for-sse": sets(stream=False),
    "sse-for-json": sets(stream=True),
    "empty-stream": lambda reply: reply.edit(only(()), sse=True),
}


# How it begins.


@fault("hang")
def hang(reply: Reply) -> None:
    reply.instead = partial(asyncio.sleep, FOR_EVER)


@fault("slow-first-byte")
def slow_first_byte(reply: Reply, seconds: float) -> None:
    reply.pause_before(seconds)


@fault("head-immediately")
def head_immediately(reply: Reply, seconds: float, every: float = 0) -> None:
    pings: tuple[Step, ...] = (Wait(seconds),)
    if every and reply.stream:
        pings = (Raw(b":\n\n"), Wait(every)) * max(1, round(seconds / every))
    reply.edit(first(*pings))


@fault("echo")
def echo(reply: Reply) -> None:
    reply.texts = (json.dumps((reply.record.head + reply.record.body).decode("latin-1")),)


def instead(reply: Reply, data: bytes, how: str = "") -> None:
    """Send these bytes, then end the connection or, without `how`, be silent."""

    async def send() -> None:
        await reply.conn.write(data)
        await (reply.conn.cut(how) if how else asyncio.sleep(FOR_EVER))

    reply.instead = send


HALF_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Len"
FAULTS |= {
    "garbage": partial(instead, data=b"\x16\x03\x01\x00\xff garbage \0\xfe\r\n\r\n\x80\r\n"),
    "http09": partial(instead, data=b"<html>hello</html>\n", how="close"),
    "reset-after-request": partial(instead, data=b"", how="reset"),
    "close-after-request": partial(instead, data=b"", how="close"),
    "reset-mid-headers": partial(instead, data=HALF_HEAD, how="reset"),
    "close-mid-headers": partial(instead, data=HALF_HEAD, how="close"),
    "stall-mid-headers": partial(instead, data=HALF_HEAD),
    "switch": partial(
        instead,
        data=b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: sim\r\nConnection: Upgrade\r\n\r\n",
    ),
}


@fault("1xx")
def interim(reply: Reply, code: int = 100, count: int = 1) -> None:
    head = f"HTTP/1.1 {code} {phrase(code)}\r\nLink: </sim.css>; rel=preload\r\n\r\n".encode()
    reply.before.append(partial(reply.conn.write, head * count))


def repeat(reply: Reply, start: bytes, data: bytes, seconds: float) -> None:
    async def send() -> None:
        await reply.conn.write(start)
        while True:
            await reply.conn.write(data)
            await asyncio.sleep(seconds)

    reply.instead = send


@fault("1xx-flood")
def interim_flood(reply: Reply, seconds: float = 0.01) -> None:
    repeat(reply, b"", b"HTTP/1.1 102 Processing\r\n\r\n", seconds)


@fault("endless-headers")
def endless_headers(reply: Reply) -> None:
    repeat(reply, b"HTTP/1.1 200 OK\r\n", b"X-Endless: 0123456789abcdef\r\n" * 100, 0)


@fault("huge-header")
def huge_header(reply: Reply, length: int) -> None:
    reply.headers.append(("X-Huge", "h" * length))


@fault("many-headers")
def many_headers(reply: Reply, count: int) -> None:
    reply.headers += [(f"X-Many-{number}", "v") for number in range(count)]


@fault("stale-next")
def stale_next(reply: Reply, how: str) -> None:
    reply.conn.kill_next = {"rst": "reset", "fin": "close"}[how]


@fault("flaky")
def flaky(reply: Reply, times: int, kind: str, by: str = "id") -> None:
    key = reply.prompt if by == "prompt" else str(reply.record.request_id)
    seen = reply.conn.backend.flaky_seen
    seen[key] += 1
    if seen[key] <= times:
        apply(reply, f"status:{kind}" if kind.isdigit() else kind)


# What kind of reply it is.


@fault("401-upstream")
def unauthorised(reply: Reply) -> None:
    key = "".join(reply.record.header("Authorization"))[-4:]
    message = f"Incorrect API key provided: sk-sim****{key}. {SECRETS}"
    reply.answer(401, envelope(message, "invalid_request_error", "invalid_api_key"))
    reply.headers.append(("WWW-Authenticate", 'Bearer realm="internal-host.corp"'))


@fault("429-retry-after")
def rate_limited(reply: Reply) -> None:
    reply.answer(429, envelope("Slow down.", "rate_limit_error", "rate_limit_exceeded"))
    reply.headers += [
        ("Retry-After", "7"),
        ("x-ratelimit-limit-requests", "60"),
        ("x-ratelimit-remaining-requests", "0"),
        ("x-ratelimit-reset-requests", "7s"),
    ]


@fault("status")
def status(reply: Reply, code: int, kind: str = "json") -> None:
    page = f"<html><h1>{code}</h1><pre>Traceback (most recent call last): {SECRETS}</pre></html>"
    name = "invalid_request_error" if code < 500 else "server_error"
    bodies = {
        "json": (envelope(f"sim says {code}", name, f"sim_{code}"), "application/json"),
        "html": (page.encode(), "text/html"),
        "text": (f"Error {code}: {SECRETS}\n".encode(), "text/plain"),
        "huge": (page.encode() + b" " * (16 * MEGABYTE if kind == "huge" else 0), "text/html"),
        "empty": (b"", ""),
    }
    reply.answer(code, *bodies[kind])


@fault("redirect")
def redirect(reply: Reply, code: int, url: str = "/__sim/redirected") -> None:
    reply.answer(code, b"", "")
    reply.headers.append(("Location", url))


@fault("json-body")
def json_body(reply: Reply, kind: str) -> None:
    good = reply.completion()
    bodies = {
        "text": b"Hello, I am not JSON.",
        "null": b"null",
        "array": b"[]",
        "string": b'"ok"',
        "truncated": good[: len(good) // 2],
        "empty": b"",
        "shape": b'{"hello":"world"}',
        "noct": good,
        "nan": good.replace(b'"exp":1e0', b'"exp":NaN'),
        "bad-utf8": good.replace(b'"role"', b'"x":"\xff\xc0\xaf","role"'),
        "deep": good.replace(b"1.0, ", b"[" * 100_000 + b"]" * 100_000 + b","),
        "error200": envelope("sim failed under a 200", "server_error", 500),
    }
    reply.answer(200, bodies[kind])
    reply.no_content_type = kind == "noct"


@fault("ct")
def content_type(reply: Reply, value: str) -> None:
    reply.content_type = value


@fault("enc")
def coding(reply: Reply, value: str) -> None:
    reply.headers.append(("Content-Encoding", value))


@fault("gzip")
def gzipped(reply: Reply) -> None:
    packer = zlib.compressobj(wbits=31)
    coding(reply, "gzip")
    reply.pack = lambda data: packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH)
    reply.pack_end = packer.flush


@fault("gzip-bad")
def gzip_bad(reply: Reply, how: str = "garbage") -> None:
    gzipped(reply)
    pack, end = reply.pack, reply.pack_end
    assert pack and end
    if how == "garbage":
        reply.pack = lambda data: pack(data)[:10] + b"\xff" * len(data)
    reply.pack_end = (lambda: b"") if how == "truncated" else (lambda: end()[:-8] + b"\1" * 8)


@lru_cache
def bomb(start: bytes, length: int, end: bytes) -> bytes:
    """gzip of `start`, `length` times ``a`` and `end`, of blocks compressed once."""

    def deflate(data: bytes, mode: int) -> bytes:
        packer = zlib.compressobj(9, wbits=-15)
        return packer.compress(data) + packer.flush(mode)

    block = b"a" * MEGABYTE
    blocks, rest = divmod(length, MEGABYTE)
    end = b"a" * rest + end
    total = zlib.crc32(start)
    for _ in range(blocks):
        total = zlib.crc32(block, total)
    total = zlib.crc32(end, total)
    full = (len(start) + blocks * MEGABYTE + len(end)) & 0xFFFFFFFF
    parts = [deflate(start, zlib.Z_FULL_FLUSH), deflate(block, zlib.Z_FULL_FLUSH) * blocks]
    header = b"\x1f\x8b\x08" + b"\0" * 6 + b"\xff"
    return b"".join([header, *parts, deflate(end, zlib.Z_FINISH), struct.pack("<II", total, full)])


@fault("gzip-bomb")
def gzip_bomb(reply: Reply, length: int) -> None:
    if reply.stream:
        event = reply.chunk('{"content":"@"}').payload
        start, end = (b"data: " + event + b"\n\n").split(b"@")
        reply.edit(only([Raw(bomb(start, length, end + b"data: [DONE]\n\n"))]))
    else:
        reply.texts = ('"@"',)
        start, end = reply.completion().split(b"@")
        reply.body = bomb(start, length, end)
    coding(reply, "gzip")


def big_texts(count: int | None) -> Iterator[str]:
    """Literals of 16 KB, each begins with its number."""
    for number in itertools.count() if count is None else range(count):
        yield f'"{number:08d} {"x" * 16375}"'


@fault("huge")
def huge(reply: Reply, length: int) -> None:
    reply.texts = big_texts(length // 16384)


@fault("endless")
def endless(reply: Reply, seconds: float = 0) -> None:
    reply.texts = (f'"{number} {"x" * 1000}"' for number in itertools.count())
    reply.token_gap, reply.keep_want = seconds, False
    if not reply.stream:

        def steps() -> Iterator[Step]:
            yield Raw(b'{"object":"chat.completion","choices":[{"message":{"content":"')
            for text in reply.texts:
                yield Raw(text[1:-1].encode())
                yield Wait(seconds)

        reply.steps = steps


# How it ends.


def cuts(*rest: Step, half: bool = False, chunked: bool = False) -> Callable[..., None]:
    """A fault with N events and then `rest`."""

    def function(reply: Reply, n: int = 2) -> None:
        reply.cut(n, *rest, half=half, chunked=chunked)

    return function


FAULTS |= {
    "reset-mid-body": cuts(Stop("reset"), half=True),
    "close-mid-body": cuts(Stop("close"), half=True),
    "stall-mid-body": cuts(Wait(FOR_EVER), half=True),
    "stall-after": cuts(Wait(FOR_EVER)),
    "end-after": cuts(Stop("end"), chunked=True),
    "bad-chunk": cuts(Wire(b"zz; no size\r\n{}\r\n"), Wait(FOR_EVER), chunked=True),
    "huge-trailer": cuts(
        Wire(b"0\r\nX-Huge: " + b"h" * 4 * MEGABYTE), Wait(FOR_EVER), chunked=True
    ),
    "huge-extension": cuts(Wire(b"1;huge=" + b"h" * 4 * MEGABYTE), Wait(FOR_EVER), chunked=True),
}


@fault("chunked-truncated")
def chunked_truncated(reply: Reply, n: int = 2) -> None:
    reply.framing = "chunked"
    if reply.stream:
        reply.cut(n, Stop("close"))
    else:
        reply.edit(lambda steps: itertools.chain(steps, [Stop("close")]))


@fault("pause")
def pause(reply: Reply, n: int, seconds: float) -> None:
    reply.edit(after(n, Wait(seconds), keep=True))


@fault("surplus")
def surplus(reply: Reply, seconds: float = 0) -> None:
    conn = reply.conn
    if seconds:
        reply.behind = lambda: conn.later(seconds, partial(conn.send_now, SURPLUS))
    else:
        reply.surplus, reply.batch = SURPLUS, 4 * SLICE


@fault("conn-close-spelling")
def close_spelling(reply: Reply, value: str) -> None:
    reply.headers.append(("Connection", value))
    reply.conn.announced = True
    reply.conn.kill_next = "reset"
    reply.behind = lambda: reply.conn.later(1.0, partial(reply.conn.end, "close"))


@fault("drip")
def drip(reply: Reply, count: int, seconds: float) -> None:
    reply.slice_size, reply.slice_gap = count, seconds


# Events.


@fault("tokens")
def tokens(reply: Reply, count: int, seconds: float = 0) -> None:
    reply.texts = [f'"t{number} "' for number in range(count)]
    reply.stamp, reply.token_gap = True, seconds
    if seconds and not reply.stream:
        reply.pause_before(count * seconds)


@fault("usage")
def usage(reply: Reply, when: str) -> None:
    reply.usage = when


@fault("finish-empty")
def finish_empty(reply: Reply, where: str = "others") -> None:
    reply.not_finished = '""'
    if where == "all":
        reply.finish = '""'


@fault("two-choices")
def two_choices(reply: Reply, how: str = "") -> None:
    reply.choices, reply.open_choice = 2, how == "open"


@fault("done-linger")
def done_linger(reply: Reply, seconds: float) -> None:
    reply.edit(at_done(Wait(seconds)), sse=True)


@fault("after-done")
def after_done(reply: Reply) -> None:
    event = Event(reply.chunk('{"content":"too late"}').payload, counted=False)
    reply.edit(at_done(event, ERROR_LATE, DONE_LATE), sse=True)


DONE_LATE = Event(b"[DONE]", counted=False)
ERROR_LATE = Event(Reply.failure.payload, counted=False)


@fault("done-early")
def done_early(reply: Reply, n: int) -> None:
    reply.edit(after(n, DONE, Stop("end")), sse=True)


@fault("error-event")
def error_event(reply: Reply, n: int) -> None:
    reply.edit(after(n, reply.failure, Stop("end")), sse=True)


@fault("error-then-done")
def error_then_done(reply: Reply, n: int) -> None:
    reply.edit(after(n, reply.failure, DONE, Stop("end")), sse=True)


@fault("not-json")
def not_json(reply: Reply, n: int) -> None:
    reply.edit(after(n, Event(b"this is {not JSON"), keep=True), sse=True)


@fault("comment-only")
def comment_only(reply: Reply, seconds: float = 0.1) -> None:
    reply.edit(only(itertools.cycle([Raw(b": ping\n\n"), Wait(seconds)])), sse=True)


@fault("pings")
def pings(reply: Reply, n: int, seconds: float = 0.1) -> None:
    ping: list[Step] = [Raw(b'event: ping\ndata: {"type": "ping"}\n\n'), Wait(seconds)]
    reply.edit(after(n, *ping * 1000), sse=True)


@fault("empty-chunks")
def empty_chunks(reply: Reply, n: int, seconds: float = 0.1) -> None:
    empty: list[Step] = [reply.chunk('{"content":""}'), Wait(seconds)]
    reply.edit(after(n, *empty * 1000), sse=True)


@fault("null-first")
def null_first(reply: Reply) -> None:
    reply.edit(after(0, Event(b"null", counted=False), keep=True), sse=True)


@fault("huge-event")
def huge_event(reply: Reply, length: int) -> None:
    reply.texts = (*TEXTS[:2], f'"{"x" * length}"', *TEXTS[2:])


@fault("no-newline")
def no_newline(reply: Reply, length: int = 8 * MEGABYTE) -> None:
    line = [Raw(b'data: {"choices":"')] + [Raw(b"n" * 16384)] * (length // 16384)
    reply.edit(after(2, *line, Wait(FOR_EVER)), sse=True)
