"""Tokens, keys, ids and headers on real sockets: access, and secrets that must not leak.

The token of the client, a wrong token, the key of the backend and the prompt are sentinels, sent
with many requests and faults. Then the tests search for them in everything that the daemon wrote.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest

from gatewayd.api import security
from gatewayd.api.security import verify_token
from gatewayd.http1.head import Fields
from gatewayd.settings.load import load
from gatewayd.settings.model import Settings
from gatewayd.wire.errors import Unauthorized
from tests.faultbackend import FaultBackend, blackhole
from tests.integration.client import Answer, Client
from tests.integration.gateways import MIB, FastGateway, watched
from tests.integration.processes import AT_ONCE, free_port
from tests.integration.raw import (
    BODY,
    CLOSE,
    RawAnswers,
    chat,
    check_refused,
    get,
    post,
    request,
    send_raw,
)

TOKEN = "gw-sentinel-alice-2f7c"
OTHER = "gw-sentinel-bob-91aa"
METERED = "gw-sentinel-carol-77d0"
WRONG = "gw-sentinel-wrong-c0de"
KEY = "sk-sentinel-backend-5e1f"
PROMPT = "sentinel-prompt-b4d5-longer-than-a-word"
SENTINELS = re.compile(b"sentinel|" + b"|".join(
    hashlib.sha256(t.encode()).hexdigest().encode() for t in (TOKEN, OTHER, METERED)
))  # fmt: skip

MISSING = "401 missing_api_key"
INVALID = "401 invalid_api_key"
EVIL = b"Origin: https://evil.example"
PAGE = "https://chat.example.com"


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def bearer(token: str = TOKEN) -> bytes:
    return f"Authorization: Bearer {token}".encode()


def asking(text: str = "", *headers: bytes, stream: bool = False, token: str = TOKEN) -> bytes:
    """A good chat request; ``text`` may name a fault."""
    content = f"{PROMPT}\n{text}"
    body = {"model": "m", "messages": [{"role": "user", "content": content}], "stream": stream}
    return chat(json.dumps(body).encode(), bearer(token), *headers)


@pytest.fixture(scope="module")
def sim() -> Iterator[FaultBackend]:
    with FaultBackend(api_key=KEY) as backend:
        yield backend


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("temporary")


Start = Callable[..., FastGateway]


@pytest.fixture(scope="module")
def start(sim: FaultBackend, temporary: Path, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """A function that starts gateways with these tokens and the key of the backend."""

    def make(name: str, **settings: str) -> FastGateway:
        known = {
            "backend b0_url": sim.url,
            "backend b0_api_key": KEY,
            "token alice_sha256": digest(TOKEN),
            "token bob_sha256": digest(OTHER),
            "token bob_models": "b-*, only",
            "token bob_in_flight": "1",
            "token carol_sha256": digest(METERED),
            "token carol_requests_per_minute": "60",
            "gateway_allowed_origins": PAGE,
            "log_level": "debug",
        }
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TMPDIR", str(temporary))
            return FastGateway(tmp_path_factory.mktemp(name), **{**known, **settings})

    return make


@pytest.fixture(scope="module")
def gateway(sim: FaultBackend, start: Start) -> Iterator[FastGateway]:
    with watched(start("guarded"), sim, growth=64 * MIB) as daemon:
        yield daemon


# -- who is let in ---------------------------------------------------------------------------------

GOOD, BAD = bearer(), bearer(WRONG)
KNOCKING = {
    "none": ([], MISSING),
    "basic": ([b"Authorization: Basic " + TOKEN.encode()], MISSING),
    "bearer-alone": ([b"Authorization: Bearer"], MISSING),
    "tab": ([f"Authorization: Bearer\t{TOKEN}".encode()], MISSING),
    "extra": ([GOOD + b" extra"], MISSING),
    "comma": ([GOOD + b", " + GOOD[15:]], MISSING),
    "good-and-bad": ([GOOD, BAD], MISSING),
    "bad-and-good": ([BAD, GOOD], MISSING),
    "twice": ([GOOD, GOOD], MISSING),
    "cookie": ([f"Cookie: api_key={TOKEN}; token={TOKEN}".encode()], MISSING),
    "proxy": ([b"Proxy-" + GOOD], MISSING),
    "two-x-api-keys": ([f"x-api-key: {TOKEN}".encode()] * 2, MISSING),
    "empty-x-api-key": ([b"x-api-key: "], MISSING),
    "wrong": ([BAD], INVALID),
    "wrong-x-api-key": ([f"x-api-key: {WRONG}".encode()], INVALID),
    "wrong-before-x-api-key": ([BAD, f"x-api-key: {TOKEN}".encode()], INVALID),
    "prefix": ([GOOD[:-1]], INVALID),
    "longer": ([GOOD + b"x"], INVALID),
    "upper-case": ([b"Authorization: Bearer " + TOKEN.upper().encode()], INVALID),
    "digest": ([b"Authorization: Bearer " + digest(TOKEN).encode()], INVALID),
    "good": ([GOOD], ""),
    "two-spaces": ([f"Authorization: Bearer  {TOKEN} ".encode()], ""),
    "lower-case-scheme": ([f"authorization: bearer {TOKEN}".encode()], ""),
    "upper-case-scheme": ([f"AUTHORIZATION: BEARER {TOKEN}".encode()], ""),
    "x-api-key": ([f"X-API-Key: {TOKEN}".encode()], ""),
}  # fmt: skip


@pytest.mark.parametrize("id", KNOCKING)
def test_access_with_and_without_a_token(gateway: FastGateway, sim: FaultBackend, id: str) -> None:
    sim.reset()
    headers, expected = KNOCKING[id]
    answer = send_raw(gateway.port, chat(BODY, *headers)).answer
    if expected:
        check_refused(gateway, answer, expected)
        assert answer.header("www-authenticate") == ["Bearer"]
        assert sim.records == []
    else:
        assert answer.status == 200
        assert gateway.line(*answer.header("x-request-id"))["caller"] == "alice"
        assert [record.violations for record in sim.records] == [[]]


def test_a_token_in_the_url_does_not_count(gateway: FastGateway) -> None:
    answer = send_raw(gateway.port, get(f"/v1/models?api_key={TOKEN}&key={TOKEN}".encode())).answer
    check_refused(gateway, answer, MISSING)


@pytest.mark.parametrize("expect", [[], [b"Expect: 100-continue"]], ids=["", "expect"])
def test_a_wrong_token_is_refused_before_the_body_arrives(
    gateway: FastGateway, sim: FaultBackend, expect: list[bytes]
) -> None:
    sim.reset()
    received = send_raw(gateway.port, post(b"Content-Length: 1048576", BAD, *expect))
    check_refused(gateway, received.answer, INVALID)
    assert received.seconds < AT_ONCE and sim.records == []


PATHS = [
    *("/v1/models", "/v1/models/sim-model", "/v1/x", "/", "/v1", "/healthz/", "/healthz/x"),
    *("//healthz", "/v1/../healthz", "/%68ealthz", "/healthz%00", "/healthz;x", "/HEALTHZ"),
    *("/v1%2fmodels", "http://evil.example/v1/models", "http://h//healthz", "/metrics/"),
    *("/v1/chat/completions", "/v1/embeddings", "/v1/audio/transcriptions", "/docs", "/openapi"),
]  # fmt: skip


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS", "DELETE"])
def test_refusals_do_not_reveal_which_routes_and_models_exist(
    gateway: FastGateway, method: str
) -> None:
    """On each route, and on a path without a route."""
    for path in PATHS:
        for headers, code in (([], "missing_api_key"), ([BAD], "invalid_api_key")):
            line = f"{method} {path} HTTP/1.1".encode()
            received = send_raw(gateway.port, request(line, CLOSE, *headers))
            answer = received.answer
            assert answer.status == 401, (path, answer)
            assert gateway.line(*answer.header("x-request-id"))["code"] == code
            assert answer.header("allow") == [] and (answer.body == b"") is (method == "HEAD")


def test_health_needs_no_token_and_reveals_nothing(gateway: FastGateway) -> None:
    for headers in ([], [BAD]):
        answer = send_raw(gateway.port, get(b"/healthz", CLOSE, *headers)).answer
        assert (answer.status, answer.json()) == (200, {"status": "ok"})


# -- comparing takes the same time -----------------------------------------------------------------


def keys(count: int) -> Settings:
    tokens = {f"GATEWAYD_TOKEN_T{i}_SHA256": digest(f"key-{i:02}") for i in range(count)}
    return load(tokens)


@pytest.mark.parametrize("presented", ["key-00", "key-25", "key-49", "Xey-25", "key-2X", "Z" * 600])
def test_comparing_does_the_same_work_whatever_is_presented(
    presented: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts the comparisons; a clock would tell nothing on a shared machine.

    Digests of equal length are compared in constant time, each with all others, match or not.
    """
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return hmac.compare_digest(one, other)

    monkeypatch.setattr(security, "hmac", SimpleNamespace(compare_digest=compare))
    tokens = keys(50).tokens
    with suppress(Unauthorized):
        verify_token(Fields([(b"authorization", f"Bearer {presented}".encode())]), tokens)
    assert [one for one, _ in compared] == [token.sha256 for token in tokens]
    assert {len(side) for pair in compared for side in pair} == {32}


# -- what a token may ------------------------------------------------------------------------------


def test_a_token_may_use_only_its_models(gateway: FastGateway, sim: FaultBackend) -> None:
    sim.reset()
    for model, expected in (
        ("m", "403 model_not_allowed permission_error"),
        (None, "403 model_not_allowed permission_error"),
        ("B-1", "403 model_not_allowed permission_error"),
        ("b-1", ""),
        ("only", ""),
    ):
        body = {"messages": [{"role": "user", "content": PROMPT}], "model": model}
        answer = send_raw(gateway.port, chat(json.dumps(body).encode(), bearer(OTHER))).answer
        if expected:
            check_refused(gateway, answer, expected, "model")
        else:
            assert answer.status == 200
    assert len(sim.records) == 2
    for token, names in ((OTHER, []), (TOKEN, ["sim-model"])):
        answer = send_raw(gateway.port, get(b"/v1/models", CLOSE, bearer(token))).answer
        assert [model["id"] for model in answer.json()["data"]] == names


def test_a_token_has_its_limit_of_concurrent_requests(
    gateway: FastGateway, sim: FaultBackend
) -> None:
    """Requests with another token are not affected."""
    slow = {"messages": [{"role": "user", "content": "fault:slow-first-byte:0.7"}], "model": "b-1"}
    data = chat(json.dumps(slow).encode(), bearer(OTHER))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(send_raw, gateway.port, data.replace(CLOSE, CLOSE + b"\r\nX-A: a"))
        time.sleep(0.3)
        second = send_raw(gateway.port, data)
        check_refused(gateway, second.answer, "429 rate_limit_exceeded")
        assert second.answer.header("retry-after") == ["1"]
        assert send_raw(gateway.port, asking()).answer.status == 200
        assert first.result().answer.status == 200


def test_the_openai_sdk_obeys_the_rate_limit(gateway: FastGateway) -> None:
    """60 requests at once, then one each second; the SDK's retry waits for it."""
    messages: Any = [{"role": "user", "content": PROMPT}]
    with openai.OpenAI(
        base_url=gateway.url + "/v1",
        api_key=METERED,
        max_retries=0,
        http_client=openai.DefaultHttpxClient(trust_env=False),
    ) as sdk:
        left = []
        with pytest.raises(openai.RateLimitError) as refused:
            for _ in range(90):
                raw = sdk.chat.completions.with_raw_response.create(model="m", messages=messages)
                assert raw.headers["x-ratelimit-limit-requests"] == "60"
                left.append(int(raw.headers["x-ratelimit-remaining-requests"]))
        assert left[0] == 59 and left[-1] == 0 and len(left) >= 60
        assert refused.value.code == "rate_limit_exceeded"
        headers = refused.value.response.headers
        assert headers["retry-after"] == "1" and headers["x-ratelimit-remaining-requests"] == "0"
        assert re.fullmatch(r"[0-9]+\.[0-9]{3}s", headers["x-ratelimit-reset-requests"])
        began = time.monotonic()
        patient = sdk.with_options(max_retries=2)
        assert patient.chat.completions.create(model="m", messages=messages).choices
        assert 0.7 < time.monotonic() - began < 5


def test_a_backends_own_limit_is_passed_on(gateway: FastGateway) -> None:
    answer = send_raw(gateway.port, asking("fault:429-retry-after")).answer
    assert answer.status == 429 and answer.header("retry-after") == ["7"]
    assert answer.header("x-ratelimit-limit-requests") == ["60"]
    assert answer.header("x-ratelimit-reset-requests") == ["7s"]
    assert answer.json()["error"]["message"] == "Slow down."


# -- browsers --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unguarded(sim: FaultBackend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastGateway]:
    """A gateway without tokens, with a backend that needs no key."""
    with (
        FaultBackend(api_key="") as backend,
        watched(
            FastGateway(
                tmp_path_factory.mktemp("unguarded"), backend.url, gateway_allowed_origins=PAGE
            ),
            backend,
        ) as daemon,
    ):
        yield daemon


ORIGINS = {
    "https://evil.example": False,
    "null": False,
    "http://localhost.evil.example": False,
    "http://evil.example/localhost": False,
    "http://127.0.0.1.evil.example": False,
    "http://localhost@evil.example": False,
    "https://chat.example.com.evil.example": False,
    "http://chat.example.com": False,
    "https://chat.example.com:8443": False,
    "file://localhost": False,
    "": False,
    PAGE: True,
    "http://localhost:3000": True,
    "http://127.0.0.1": True,
    "http://[::1]:8080": True,
}


@pytest.mark.parametrize("origin", ORIGINS)
def test_browser_origins(unguarded: FastGateway, origin: str) -> None:
    """An allowed page gets the headers that browsers need; any other page is refused."""
    header = f"Origin: {origin}".encode()
    stream = BODY.replace(b'"messages"', b'"stream":true,"messages"')
    for data in (chat(BODY, header), chat(stream, header), get(b"/v1/models", CLOSE, header)):
        answer = send_raw(unguarded.port, data).answer
        if ORIGINS[origin]:
            assert answer.status == 200 and answer.header("vary") == ["Origin"]
            assert answer.header("access-control-allow-origin") == [origin]
            (exposed,) = answer.header("access-control-expose-headers")
            assert "X-Request-ID" in exposed
        else:
            check_refused(unguarded, answer, "403 origin_not_allowed permission_error")
            assert answer.header("access-control-allow-origin") == []
    line = b"OPTIONS /v1/chat/completions HTTP/1.1"
    asked = (
        b"Access-Control-Request-Method: POST",
        b"Access-Control-Request-Headers: x-a,content-type",
    )
    answer = send_raw(unguarded.port, request(line, CLOSE, header, *asked)).answer
    assert answer.status == (200 if ORIGINS[origin] else 403)
    if ORIGINS[origin]:
        assert answer.header("access-control-allow-headers") == ["x-a,content-type"]
        assert answer.header("access-control-allow-credentials") == [] and answer.body == b""


# -- ids and headers -------------------------------------------------------------------------------

UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
KEPT = ["a", "5b2c4b0e-8a57-4c8e-9f0a-1d2e3f405162", "A.z_9:-" * 18 + "ab", "a:b/c=1@2~3+4"]
REPLACED = [
    "a" * 129, "a" * 8000, "a b", 'a"b', "a\\b", "a\tb", "a\u00e9", "<script>", "${jndi:ldap://x}",
    "", "a;b", "a,b", "%0d%0aX-A:1", "{id}",
]  # fmt: skip


@pytest.mark.parametrize("header", ["X-Request-ID", "x-request-id", "Request-Id"])
@pytest.mark.parametrize("id", KEPT)
def test_a_good_id_is_kept(gateway: FastGateway, sim: FaultBackend, id: str, header: str) -> None:
    sim.reset()
    id = id + header[:2] if len(id) < 100 else header[:2] + id[2:]  # each only once
    answer = send_raw(gateway.port, asking("", f"{header}: {id}".encode())).answer
    assert answer.header("x-request-id") == [id] == [answer.json()["id"]]
    assert sim.records[0].header("x-request-id") == [id] and sim.records[0].violations == []


@pytest.mark.parametrize(
    "id", [[i] for i in REPLACED] + [["one-a", "one-b"]], ids=lambda i: i[0][:20]
)
def test_any_other_id_is_replaced(gateway: FastGateway, sim: FaultBackend, id: list[str]) -> None:
    sim.reset()
    headers = [f"X-Request-ID: {i}".encode("latin-1") for i in id]
    answer = send_raw(gateway.port, asking("", *headers)).answer
    (made,) = answer.header("x-request-id")
    assert re.fullmatch(UUID, made) and answer.status == 200
    head, body = sim.records[0].head, sim.records[0].body
    assert sim.records[0].header("x-request-id") == [made]
    assert gateway.line(made)["id"] == made
    written = gateway._log.read_bytes() + gateway.output.encode()
    for i in id:
        if len(i) > 3:
            assert i.encode() not in written and i.encode() not in head
            assert i.encode() not in body


def closed_port() -> str:
    return f"http://127.0.0.1:{free_port()}"


def test_every_status_carries_one_id(gateway: FastGateway, start: Start) -> None:
    with blackhole() as hole:
        others = [
            start("refused", **{"backend b0_url": closed_port()}),
            start("full", limits_in_flight="1"),
            start("hole", **{"backend b0_url": f"http://127.0.0.1:{hole}"}),
        ]
        with others[0] as refused, others[1] as full, others[2] as dark:
            cases: list[tuple[int, FastGateway, bytes]] = [
                (400, gateway, get(b"/ x", GOOD)),
                (400, gateway, chat(b"{", GOOD)),
                (401, gateway, chat()),
                (403, gateway, chat(BODY, GOOD, EVIL)),
                (404, gateway, get(b"/v1/x", CLOSE, GOOD)),
                (405, gateway, get(b"/v1/chat/completions", CLOSE, GOOD)),
                (408, gateway, b"GET / HTTP/1.1\r\n"),
                (413, gateway, post(b"Content-Length: 99999999", GOOD)),
                (414, gateway, get(b"/" + b"a" * 17_000)),
                (415, gateway, chat(BODY, GOOD, media_type=b"text/plain")),
                (417, gateway, chat(BODY, GOOD, b"Expect: x")),
                (431, gateway, get(b"/", b"X: " + b"a" * 17_000)),
                (500, gateway, asking("fault:status:500")),
                (502, gateway, asking("fault:garbage")),
                (502, refused, asking()),
                (503, full, asking()),
                (504, dark, asking()),
                (200, gateway, asking(stream=True)),
                (200, gateway, request(b"HEAD /v1/models HTTP/1.1", CLOSE, GOOD)),
            ]
            with ThreadPoolExecutor(len(cases) + 1) as pool:
                occupied = pool.submit(send_raw, full.port, asking("fault:slow-first-byte:1.5"))
                time.sleep(0.3)
                all_received = list(pool.map(lambda case: send_raw(case[1].port, case[2]), cases))
                assert occupied.result().answer.status == 200
    for (status, _, _), received in zip(cases, all_received, strict=True):
        answer = received.answer
        assert answer.status == status
        assert len(answer.header("x-request-id")) == 1, answer
        assert answer.header("x-content-type-options") == ["nosniff"]
        assert answer.header("server") == ["gatewayd"]


HOPS = [
    b"Connection: X-Secret, Keep-Alive, close", b"X-Secret: sentinel-1", b"TE: trailers",
    b"Trailer: X-T", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__", b"Keep-Alive: timeout=9",
    b"Proxy-Authorization: Basic sentinel", b"Proxy-Connection: keep-alive", b"Cookie: a=sentinel",
    b"Accept-Encoding: gzip, br", b"Content-MD5: sentinel", b"X-Forwarded-For: 6.6.6.6",
    b"X-Forwarded-Host: evil", b"X-Forwarded-Proto: https", b"Forwarded: for=6.6.6.6",
    b"X-Real-IP: 6.6.6.6", b"Via: 1.1 evil", b"From: a@b", b"Referer: http://sentinel/",
    b"User-Agent: sentinel", b"Accept: text/event-stream", b"OpenAI-Organization: sentinel",
    b"X-Stainless-OS: sentinel", b"Content-Language: sentinel", b"If-None-Match: *",
    b"Range: bytes=0-1", b"x-api-key: " + WRONG.encode(), b"Host-Override: evil",
]  # fmt: skip
ALLOWED = {
    "host", "connection", "content-length", "content-type", "accept", "accept-encoding",
    "authorization", "x-request-id", "user-agent",
}  # fmt: skip


@pytest.mark.parametrize("stream", [False, True], ids=["json", "sse"])
def test_a_backend_sees_only_what_it_must(
    gateway: FastGateway, sim: FaultBackend, stream: bool
) -> None:
    sim.reset()
    received: RawAnswers = send_raw(
        gateway.port, asking("", *HOPS, stream=stream).replace(CLOSE + b"\r\n", b"")
    )
    assert received.answer.status == 200
    (record,) = sim.records
    assert record.violations == []
    assert {name.lower() for name, _ in record.headers} <= ALLOWED
    assert record.header("host") == [sim.url.removeprefix("http://")]
    assert record.header("content-length") == [f"{len(record.body)}"]
    assert record.header("authorization") == [f"Bearer {KEY}"]
    assert not re.search(rb"sentinel-[^bp]|=sentinel|6\.6\.6|evil|gw-", record.head)


def test_without_a_key_a_backend_gets_none(unguarded: FastGateway) -> None:
    """The header of the client is not passed on; the backend checks this."""
    for headers in ([], [GOOD], [f"x-api-key: {TOKEN}".encode()]):
        answer = send_raw(unguarded.port, chat(BODY, *headers)).answer
        assert answer.status == 200
    echoed = BODY.replace(b"hello", b"fault:echo")
    answer = send_raw(unguarded.port, chat(echoed, GOOD)).answer
    assert TOKEN.encode() not in answer.body and b"gateway\\r" not in answer.body


def test_an_answer_does_not_reveal_the_software(gateway: FastGateway) -> None:
    stream, whole = (send_raw(gateway.port, asking("", stream=s)).answer for s in (True, False))
    for answer in (stream, whole):
        assert answer.header("server") == ["gatewayd"]
        assert answer.header("x-content-type-options") == ["nosniff"]
        assert {name for name, _ in answer.headers} <= {
            "server", "date", "x-content-type-options", "x-request-id", "content-type",
            "content-length", "transfer-encoding", "cache-control", "x-accel-buffering",
            "connection",
        }  # fmt: skip
    assert stream.header("cache-control") == ["no-cache"]
    assert stream.header("x-accel-buffering") == ["no"]


REPLACED_ERRORS = {
    "401-upstream": "502 upstream_auth upstream_error",
    "status:401": "502 upstream_auth upstream_error",
    "status:403": "502 upstream_auth upstream_error",
    "status:500:html": "500 upstream_error upstream_error",
    "status:500:text": "500 upstream_error upstream_error",
    "status:500:huge": "500 upstream_error upstream_error",
}


@pytest.mark.parametrize("fault", REPLACED_ERRORS)
@pytest.mark.parametrize("stream", [False, True], ids=["json", "sse"])
def test_a_clients_error_hides_the_failure_of_a_backend(
    gateway: FastGateway, fault: str, stream: bool
) -> None:
    answer = send_raw(gateway.port, asking(f"fault:{fault}", stream=stream)).answer
    status, code, kind = REPLACED_ERRORS[fault].split()
    error = answer.json()["error"]
    assert (answer.status, error["code"], error["type"]) == (int(status), code, kind)
    assert answer.header("www-authenticate") == []
    for telling in (b"internal-host", b"/srv/", b"Traceback", b"sk-", KEY[-4:].encode()):
        assert telling not in answer.body


# -- nothing comes out -----------------------------------------------------------------------------

FAULTS = [
    "", "utf8", "tools", "garbage", "http09", "reset-mid-headers", "reset-mid-body", "switch",
    "close-mid-body:2", "huge-header:64KB", "many-headers:5000", "401-upstream", "status:400:html",
    "status:500:text", "status:503:empty", "redirect:302:http://169.254.169.254/sentinel",
    "json-body:text", "json-body:nan", "json-body:truncated", "json-body:error200", "gzip",
    "json-body:deep", "gzip-bad", "enc:br", "bad-chunk", "chunked-truncated", "empty-stream",
    "not-json:2", "error-event:2", "error-event:0", "done-early:2", "huge-event:2MB", "surplus",
    "ct:text/html", "hang", "stall-after:2", "no-newline", "1xx:103:5",
]  # fmt: skip


def knock(daemon: FastGateway) -> list[RawAnswers]:
    """Send good and bad requests of all kinds, each with sentinels."""
    secret = PROMPT.encode()
    id = b"X-Request-ID: sentinel " + secret
    bad = [
        chat(b'{"' + secret + b'":', GOOD),
        chat(b'{"messages":[{"role":"user","content":"' + secret + b'"}],"stream":"x"}', GOOD),
        chat(b'{"messages":[],"model":"' + secret * 99 + b'"}', GOOD),
        chat(BODY.replace(b"hello", secret + b"\xff"), GOOD),
        chat(BODY, BAD, id),
        chat(BODY, GOOD, GOOD),
        chat(BODY, GOOD, media_type=secret),
        chat(BODY, GOOD, b"Origin: http://" + secret),
        chat(BODY, GOOD, b"Expect: " + secret),
        get(b"/" + secret + b"?" + GOOD[22:], CLOSE, GOOD),
        get(b"/v1/models/" + secret, CLOSE, GOOD),
        get(b"/v1/models", b"Host: " + secret + b" " + secret, GOOD, host=b""),
        request(secret + b" / HTTP/1.1", GOOD),
        request(b"GET / HTTP/1.1 " + secret, GOOD),
        get(b"/v1/models", GOOD + b"\0"),
        get(b"/v1/models", GOOD, secret),
        post(b"Transfer-Encoding: " + secret, GOOD, body=BODY),
        post(b"Transfer-Encoding: chunked", GOOD, body=secret + b"\r\n\r\n"),
        post(b"Content-Length: " + secret, GOOD),
        get(b"/" + secret * 900, GOOD),
        get(b"/", b"X: " + secret * 900, GOOD),
        GOOD + b"\r\n" + GOOD + b"\r\n\r\n",
        chat(b"--" + secret, GOOD, media_type=b"multipart/form-data; boundary=" + secret),
        chat(BODY, GOOD).replace(b"chat/completions", b"embeddings"),
        chat(BODY, GOOD).replace(b"/v1/", b"/v1/" + secret + b"/"),
    ]
    played = [asking(f"fault:{f}", id, stream=s) for f in FAULTS for s in (False, True)]
    with ThreadPoolExecutor(40) as pool:
        all_received = list(pool.map(lambda data: send_raw(daemon.port, data), [*bad, *played]))
    for data in (bad[0], played[0], played[1]):
        leave(daemon, data[:-5])
        leave(daemon, data)
    return all_received


def leave(daemon: FastGateway, data: bytes) -> None:
    with Client(daemon.port) as client:
        client.sock.sendall(data)
        client.sock.shutdown(socket.SHUT_WR)


def test_no_secret_is_written_anywhere(start: Start, temporary: Path) -> None:
    """With both log formats."""
    daemons = [
        start(f"secret-{kind}", log_format=kind, log_access="-") for kind in ("json", "text")
    ]
    with daemons[0], daemons[1], ThreadPoolExecutor(2) as pool:
        all_received = list(pool.map(knock, daemons))
        told = [everything_told(daemon) for daemon in daemons]
    for daemon, received, parts in zip(daemons, all_received, told, strict=True):
        answers = [answer for h in received for answer in h.answers]
        statuses = {answer.status for answer in answers}
        assert statuses >= {200, 400, 401, 403, 404, 405, 414, 415, 417, 431, 500, 502, 503, 504}
        assert len(answers) == len(received)
        folder, written = daemon._output.parent, daemon.output.encode()
        assert written.count(b"\n") > len(received)
        files = [path for path in [*folder.rglob("*"), *temporary.rglob("*")] if path.is_file()]
        assert {path.name for path in files} == {"gatewayd.ini", "output.txt"}
        lines = [line for part in (written, *parts) for line in part.split(b"\n")]
        assert [line for line in lines if SENTINELS.search(line)] == []
        settings = load({}, path=str(folder / "gatewayd.ini"))
        assert not SENTINELS.search(f"{settings!r} {settings}".encode())
        for answer in answers:  # not even its own goes back to a client
            mine = bytes(answer.body) + repr(answer.headers).encode()
            assert not re.search(rb"sentinel-(alice|bob|carol|wrong|backend)", mine), answer


def everything_told(daemon: FastGateway) -> list[bytes]:
    """What other users of this machine can see of the process."""
    metrics = send_raw(daemon.port, get(b"/metrics", CLOSE, host=b"Host: localhost")).answer
    assert metrics.status == 200
    process = Path(f"/proc/{daemon.pid}")
    seen = [(process / name).read_bytes() for name in ("cmdline", "environ", "comm")]
    links = [os.readlink(link).encode() for link in (process / "fd").iterdir()]
    return [bytes(metrics.body), *seen, *links]


def test_the_search_for_secrets_works(gateway: FastGateway) -> None:
    """The search works: the prompt is found in the request to the backend and in its reply."""
    answer: Answer = send_raw(gateway.port, asking("fault:echo")).answer
    assert SENTINELS.search(bytes(answer.body)) and answer.status == 200
