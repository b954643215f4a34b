"""Request bodies on real sockets, with a backend and without one.

A body that is not strict JSON or not a chat request is refused, and the error names the field. Any
other body reaches the backend byte for byte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import attrs
import pytest

from tests.faultbackend import FaultBackend
from tests.integration.gateways import MIB, FastGateway, watched
from tests.integration.healthprobe import HealthProbe
from tests.integration.raw import RawAnswers, chat, check_refused, send_raw

JSON = "400 invalid_json"
VALUE = "400 invalid_value"


@attrs.frozen
class Bad:
    id: str
    body: bytes = attrs.field(repr=False)
    expected: str = JSON
    param: str | None = None


def whole(members: str) -> bytes:
    """A good request with these additional members."""
    more = f",{members}" if members else ""
    return f'{{"messages":[{{"role":"user","content":"hi"}}]{more}}}'.encode()


def talk(*more: str) -> bytes:
    """A request with these messages."""
    return f'{{"messages":[{",".join(more)}]}}'.encode()


def invalid(id: str, members: str, param: str | None) -> Bad:
    return Bad(id, whole(members), VALUE, param)


def messages(id: str, value: str, param: str) -> Bad:
    return Bad(id, f'{{"messages":{value}}}'.encode(), VALUE, param)


def content(data: bytes) -> bytes:
    return b'{"messages":[{"role":"user","content":"%b"}]}' % data


BAD = [
    Bad("json-cut", b'{"a":'),
    Bad("json-empty", b""),
    Bad("json-blank", b" \n"),
    Bad("json-empty-string", b'""'),
    Bad("json-array", b"[]"),
    Bad("json-null", b"null"),
    Bad("json-number", b"42"),
    Bad("json-two-documents", whole("") * 2),
    Bad("json-two-lines", whole("") + b"\n" + whole("")),
    Bad("json-trailing-comma", b'{"messages":[{"role":"user","content":"hi"}],}'),
    Bad("json-comment", b"/* hi */" + whole("")),
    Bad("json-single-quotes", b"{'messages':[{'role':'user','content':'hi'}]}"),
    Bad("json-nan", whole('"temperature":NaN')),
    Bad("json-minus-infinity", whole('"temperature":-Infinity')),
    Bad("json-overflow", whole('"temperature":1e999')),
    Bad("json-400-digits", whole('"seed":' + "9" * 400)),
    Bad("json-5000-digits", whole('"seed":' + "9" * 5000)),
    Bad("json-leading-zero", whole('"seed":01')),
    Bad("json-bare-tab", content(b"a\tb")),
    Bad("json-bare-nul", content(b"a\0b")),
    Bad("json-bad-escape", content(b"\\x41")),
    Bad("json-no-end-of-string", b'{"messages":"'),
    Bad("depth-arrays", b"[" * 100_000),
    Bad("depth-objects", b'{"a":' * 100_000),
    Bad("depth-arrays-closed", b"[" * 100_000 + b"]" * 100_000),
    Bad("depth-arrays-in-tools", whole('"tools":[{"function":{"parameters":' + "[" * 100_000)),
    Bad("depth-objects-in-tools", whole('"tools":[{"function":{"parameters":' + '{"a":' * 100_000)),
    Bad("depth-65-levels", whole('"x":' + "[" * 64 + "]" * 64)),
    Bad("depth-100-001-arrays", whole('"x":[' + "[]," * 99_997 + "[]]")),
    Bad("keys-model-twice", whole('"model":"a","model":"b"')),
    Bad("keys-model-twice-the-same", whole('"model":"a","model":"a"')),
    Bad("keys-stream-twice", whole('"stream":false,"stream":true')),
    Bad("keys-escaped-key", whole(r'"model":"a","\u006dodel":"b"')),
    Bad("keys-escaped-key-and-colon", whole(r'"model":"\u003a","\u006dodel":"b"')),
    Bad("keys-in-messages", b'{"messages":[{"role":"user","content":"a","role":"system"}]}'),
    Bad("keys-deep", whole('"x":[[{"y":{"a":1,"b":2,"a":1}}]]')),
    Bad("keys-messages-twice", whole('"messages":[]')),
    Bad("utf8-ff", content(b"\xff")),
    Bad("utf8-overlong", content(b"\xc0\xaf")),
    Bad("utf8-cesu", content(b"\xed\xa0\xbd\xed\xb8\x80")),
    Bad("utf8-truncated", content(b"\xf0\x9f\x8e")),
    Bad("utf8-past-the-end", content(b"\xf4\x90\x80\x80")),
    Bad("utf8-bom", b"\xef\xbb\xbf" + whole("")),
    *[Bad(f"utf8-{name}", whole("").decode().encode(name))
      for name in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be")],
    Bad("utf8-ff-in-key", b'{"\xff":1}'),
    Bad("utf8-high-surrogate", content(b"\\ud83c")),
    Bad("utf8-low-surrogate", content(b"\\udf89")),
    Bad("utf8-wrong-order", content(b"\\udf89\\ud83c")),
    Bad("value-no-messages", b'{"model":"m"}', VALUE, "messages"),
    Bad("value-empty-object", b"{}", VALUE, "messages"),
    messages("value-messages-object", "{}", "messages"),
    messages("value-messages-empty", "[]", "messages"),
    messages("value-messages-string", '"hi"', "messages"),
    messages("value-messages-null", "null", "messages"),
    messages("value-message-number", "[1]", "messages[0]"),
    messages("value-message-null", '[{"role":"user","content":"a"},null]', "messages[1]"),
    messages("value-no-role", "[{}]", "messages[0].role"),
    messages("value-role-number", '[{"role":5}]', "messages[0].role"),
    invalid("value-model-number", '"model":5', "model"),
    invalid("value-model-long", f'"model":"{"a" * 10_000}"', "model"),
    invalid("value-model-crlf", r'"model":"a\r\nX: y"', "model"),
    invalid("value-model-nul", r'"model":"a\u0000"', "model"),
    invalid("value-model-dots", '"model":"../../x"', "model"),
    invalid("value-model-list", '"model":["m"]', "model"),
    invalid("stream-string", '"stream":"true"', "stream"),
    invalid("stream-number", '"stream":1', "stream"),
    invalid("stream-list", '"stream":[]', "stream"),
]  # fmt: skip

PARTS = '[{"type":"text","text":"a"},{"type":"image_url","image_url":{"url":"data:,"}}]'
CALL = '{"id":"c","type":"function","function":{"name":"f","arguments":"{}"}}'
HELLO = '{"role":"user","content":"a"}'
CALLING = f'{{"role":"assistant","content":null,"tool_calls":[{CALL}]}}'
CALLED = '{"role":"tool","content":"b","tool_call_id":"c"}'
ROLES = ",".join(
    f'{{"role":"{r}","content":"a"}}' for r in ("developer", "function", "xyz", "user")
)
NUMBERS = '"temperature":1.0,"top_p":1e0,"seed":12345678901234567890,"x":0.1,"y":-0,"z":1E+2'
SPACED = b' {\r\n\t"z" : 1 ,"messages" :[ {"role":"user" , "content":"hi"}]\n, "a":2} \n'
GOOD = {
    "depth-64-levels": whole('"x":' + "[" * 63 + "]" * 63),
    "text-nul": content(b"a\\u0000b"),
    "text-zwj": content("👩\u200d👩\u200d👧".encode()),
    "text-rtl": content("\u202e\u05e9\u05dc\u05d5\u05dd\u202c".encode()),
    "text-4-bytes": content("\U0001d518\U0001f409".encode()),
    "text-escaped-pair": content(b"\\uD83C\\udf89"),
    "text-900-kb-of-cjk": content("漢字".encode() * 150_000),
    "text-line-separators": content("\u2028\u2029\x7f\x85".encode()),
    "stream-null": whole('"stream":null'),
    "stream-zero": whole('"stream":0'),
    "model-empty": whole('"model":""'),
    "stream-false": whole('"stream":false'),
    "fields-parts": b'{"messages":[{"role":"user","content":%b}]}' % PARTS.encode(),
    "fields-tool-calls": talk(HELLO, CALLING, CALLED),
    "fields-content-list-empty": b'{"messages":[{"role":"user","content":[]}]}',
    "fields-content-object": b'{"messages":[{"role":"user","content":{"a":1}}]}',
    "fields-no-content": b'{"messages":[{"role":"user"}]}',
    "fields-roles": talk(ROLES),
    "fields-unknown-fields": whole('"frobnicate":{"b":[1,{"a":null}]},"":0,"__proto__":{}'),
    "spelling-numbers": whole(NUMBERS),
    "spelling-spaces-and-order": SPACED,
    "spelling-escapes": whole(r'"x":"\/\u0041\b\f"'),
    "spelling-escaped-key": b'{"\\u006dessages":[{"\\u0072ole":"user","content":"hi"}]}',
}  # fmt: skip


@pytest.fixture(scope="module")
def gateway(sim: FaultBackend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastGateway]:
    folder = tmp_path_factory.mktemp("bodies")
    with watched(FastGateway(folder, sim.url), sim, growth=64 * MIB) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastGateway]:
    """A gateway without a backend."""
    with watched(FastGateway(tmp_path_factory.mktemp("alone")), growth=64 * MIB) as daemon:
        yield daemon


@pytest.mark.parametrize("row", BAD, ids=lambda row: row.id)
def test_a_body_that_is_refused(
    gateway: FastGateway, alone: FastGateway, sim: FaultBackend, row: Bad
) -> None:
    """A gateway without a backend checks requests in the same way."""
    sim.reset()
    for daemon in (gateway, alone):
        answer = send_raw(daemon.port, chat(row.body)).answer
        check_refused(daemon, answer, row.expected, row.param)
        assert len(answer.body) < 300
    assert sim.records == []


@pytest.mark.parametrize("id", GOOD)
def test_a_body_that_is_accepted(
    gateway: FastGateway, alone: FastGateway, sim: FaultBackend, id: str
) -> None:
    body = GOOD[id]
    answer = send_raw(gateway.port, chat(body)).answer
    assert answer.status == 200 and answer.header("content-type") == ["application/json"]
    (record,) = sim.records_for(*answer.header("x-request-id"))
    assert record.body_sha256 == hashlib.sha256(body).hexdigest()
    assert record.violations == []
    echoed = send_raw(alone.port, chat(body)).answer
    reply = echoed.json()
    assert echoed.status == 200 and [reply["id"]] == echoed.header("x-request-id")


# -- the echo --------------------------------------------------------------------------------------


def asked(*, stream: bool, usage: bool | None = None, text: str = "häl\u2028lo 🎉") -> bytes:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": text}], "stream": stream}
    if usage is not None:
        body["stream_options"] = {"include_usage": usage}
    return chat(json.dumps(body, ensure_ascii=False).encode(), b"X-Request-ID: same-echo")


def test_the_echo_is_a_chat_completion(alone: FastGateway) -> None:
    reply = send_raw(alone.port, asked(stream=False)).answer.json()
    assert (reply["id"], reply["object"]) == ("same-echo", "chat.completion")
    assert reply["choices"][0]["message"] == {
        "role": "assistant",
        "content": "Echo: häl\u2028lo 🎉",
    }
    usage = reply["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 0
    assert isinstance(reply["created"], int) and reply["created"] > 1e9


@pytest.mark.parametrize("usage", [None, False, True])
def test_the_echo_streams(alone: FastGateway, usage: bool | None) -> None:
    answer = send_raw(alone.port, asked(stream=True, usage=usage)).answer
    *payloads, done = answer.payloads()
    chunks = [json.loads(payload) for payload in payloads]
    assert done == b"[DONE]" and {chunk["id"] for chunk in chunks} == {"same-echo"}
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    assert text == "Echo: häl\u2028lo 🎉"
    assert [choice["finish_reason"] for choice in choices][-1] == "stop"
    assert ("total_tokens" in str(chunks)) is (usage is True)


# -- usage -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", [None, False, True])
@pytest.mark.parametrize("fault", ["usage:always", "usage:finish", "usage:never"])
def test_usage_is_sent_to_clients_that_requested_it(
    gateway: FastGateway, sim: FaultBackend, fault: str, option: bool | None
) -> None:
    """A separate usage chunk is sent only on request; usage within another chunk always is."""
    body = asked(stream=True, usage=option, text=f"fault:{fault}")
    answer: Any = send_raw(gateway.port, body.replace(b"same-echo", b"same-usage")).answer
    payloads = answer.payloads()
    assert payloads.pop() == b"[DONE]"
    want = sim.records_for("same-usage")[-1].want_as("same-usage")
    alone = [payload for payload in want if json.loads(payload)["choices"] == []]
    assert payloads == [p for p in want if option or p not in alone]
    assert fault != "usage:always" or len(alone) == 1


# -- the time it takes -----------------------------------------------------------------------------


def filled(begin: bytes, each: bytes, end: bytes) -> bytes:
    """``each``, repeated to nearly 1 MiB."""
    count = (MIB - 64 - len(begin) - len(end)) // (len(each) + 1)
    return begin + b",".join([each] * count) + end


def dense(each: bytes) -> bytes:
    return filled(b'{"messages":[{"role":"user","content":"hi"}],"x":[', each, b"]}")


WORST = {
    "small-objects": dense(b'{"a":1}'),
    "empty-objects": dense(b"{}"),
    "empty-arrays": dense(b"[]"),
    "keys": whole('"x":{' + ",".join(f'"{i:x}":1' for i in range(100_000)) + "}"),
    "numbers": dense(b"123"),
    "digits": dense(b"1"),
    "floats": dense(b"1e5"),
    "299-digits": dense(b"9" * 299),
    "strings": dense(b'""'),
    "escapes": content(b"\\n" * 500_000),
    "pairs": content(b"\\ud83c\\udf89" * 85_000),
    "messages": filled(b'{"messages":[', b'{"role":"user","content":""}', b"]}"),
    "deep": whole('"x":' + "[" * 1_000_000),
    "deep-objects": whole('"x":' + '{"a":' * 200_000),
    "open-string": b"[" * 100 + b'"' + b'\\"' * 500_000,
}


def test_the_worst_documents_do_not_delay_other_clients(alone: FastGateway) -> None:
    """Each has 1 MiB; the event loop must not be blocked for long."""
    send_raw(alone.port, chat(WORST["messages"]))  # what every first time costs
    worst: dict[str, float] = {}
    for name, body in WORST.items():
        with HealthProbe(alone, every=0.002) as probe:
            received: RawAnswers = send_raw(alone.port, chat(body))
        assert received.answer.status in (200, 400)
        worst[name] = max(probe.delays)
    print("\nlongest delays:", *(f"{name} {s * 1000:.0f} ms" for name, s in worst.items()))
    assert max(worst.values()) < 0.2
