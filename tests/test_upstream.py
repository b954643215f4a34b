"""The whole gateway in memory in front of one backend, whose bytes the test writes."""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectBindError, ConnectError, ConnectionRefusedError
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs
from twisted.python.failure import Failure

from gatewayd.backend import endpoint
from gatewayd.backend.openai import OpenAIBackend
from gatewayd.backend.treqclient import TreqClient
from gatewayd.exchange import End
from gatewayd.routing.health import State
from gatewayd.settings.model import BackendSettings, LimitSettings
from gatewayd.settings.values import base_url
from tests.backendside import ServerTransport, connected
from tests.memory import Answer, ClientTransport, FakeBackend, Gateway, chunk

JSON = {"Content-Type": "application/json"}
SPEECH = b'{"model": "m", "input": "x", "voice": "v"}'


class SlowClient(ClientTransport):
    """Pauses its producer with each write, as a full transport does."""

    def write(self, data: bytes) -> None:
        super().write(data)
        if self.producer is not None:
            self.producer.pauseProducing()

    def reads(self) -> None:
        assert self.producer is not None
        self.producer.resumeProducing()


class World:
    """A gateway and what its backend is to it; :attr:`attempts` are connections not yet made."""

    def __init__(self, url: str = "http://127.0.0.1:9", *others: FakeBackend, **more: Any) -> None:
        self.reactor = MemoryReactorClock()
        backend = BackendSettings("a", base_url(url), **more)
        self.gateway = Gateway(OpenAIBackend(backend, LimitSettings(), self.reactor), *others)
        self.target = self.gateway.targets[0]

    @property
    def attempts(self) -> list[tuple[Any, ...]]:
        return self.reactor.tcpClients

    def accept(self) -> ServerTransport:
        return connected(self.attempts.pop()[2])

    def refuse(self, problem: Exception) -> None:
        self.attempts.pop()[2].clientConnectionFailed(None, Failure(problem))

    def speech(self, client: ClientTransport | None = None) -> ClientTransport:
        return self.gateway.request("POST", "/v1/audio/speech", SPEECH, JSON, client)

    def slow_client(self) -> SlowClient:
        client = SlowClient()
        client.protocol = self.gateway.site.buildProtocol(None)
        client.protocol.makeConnection(client)
        return client

    def models(self) -> Answer:
        return Answer(self.gateway.request("GET", "/v1/models"))


def reply(body: bytes, media_type: bytes = b"application/json", status: int = 200) -> bytes:
    head = b"HTTP/1.1 %d OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n"
    return head % (status, media_type, len(body)) + body


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


# -- a client that does not read -------------------------------------------------------------------


def test_a_reply_whose_last_bytes_pause_its_backend_leaves_a_connection_that_is_read() -> None:
    world = World()
    client = world.speech(world.slow_client())
    backend = world.accept()
    body = b"a" * 200_000
    backend.protocol.dataReceived(reply(body, b"audio/mpeg"))
    assert Answer(client).complete and backend.producerState == "producing"
    second = world.speech()
    assert not world.attempts  # on the same connection
    backend.protocol.dataReceived(reply(b"b", b"audio/mpeg"))
    assert Answer(second).body == b"b"


def test_a_stream_without_done_whose_end_comes_while_its_client_is_slow() -> None:
    world = World()
    client = world.slow_client()
    world.gateway.chat(stream=True, transport=client)
    backend = world.accept()
    backend.protocol.dataReceived(STREAM + framed(b"data: " + chunk("a") + b"\n\n"))
    assert backend.producerState == "paused"
    client.reads()
    end = framed(b"data: " + chunk("", finish="stop") + b"\n\n") + b"0\r\n\r\n"
    backend.protocol.dataReceived(end)
    assert Answer(client).payloads[-1] == b"[DONE]" and backend.producerState == "producing"


def test_a_stream_that_was_begun_for_a_slow_client_is_not_read_before_that_client_reads() -> None:
    """The first ping went to a client that takes nothing; then the backend begins."""
    world = World()
    client = world.slow_client()
    world.gateway.chat(stream=True, transport=client)
    backend = world.accept()
    world.gateway.clock.advance(15)
    assert b": ping" in client.value()
    backend.protocol.dataReceived(STREAM + framed(b"data: " + chunk("a") + b"\n\n"))
    assert backend.producerState == "paused"
    client.reads()
    assert backend.producerState == "producing"


# -- where a backend is ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "where", "host"),
    [
        ("http://[::1]:8080", ("::1", 8080), b"[::1]:8080"),
        ("http://[::1]", ("::1", 80), b"[::1]"),
        ("http://127.0.0.1/base", ("127.0.0.1", 80), b"127.0.0.1"),
    ],
)
def test_a_backend_is_reached_at_an_address_as_it_is_written(
    url: str, where: tuple[str, int], host: bytes
) -> None:
    world = World(url, health="/health")
    client = world.gateway.chat(model="m")
    assert world.attempts[-1][:2] == where
    backend = world.accept()
    head = backend.value()
    assert b"\r\nHost: %b\r\n" % host in head
    assert head.startswith(b"POST %b/v1/chat" % (b"/base" if "base" in url else b""))
    backend.protocol.dataReceived(reply(b'{"choices":[{"index":0,"finish_reason":"stop"}]}'))
    assert Answer(client).status == 200
    checked: list[Any] = []
    looking = world.target.backend.check()
    assert looking is not None
    looking.addBoth(checked.append)
    backend.protocol.dataReceived(reply(b"{}"))
    assert checked == [True]


class Lookups:
    """The system's resolver: each look-up waits until the test answers it."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, Deferred[Any]]] = []

    def __call__(self, reactor: Any, pool: Any, function: Any, host: bytes, *_: Any) -> Any:
        assert function is socket.getaddrinfo
        self.asked.append((host, Deferred()))
        return self.asked[-1][1]

    def found(self, *addresses: str) -> None:
        self.asked[-1][1].callback(
            [
                (socket.AF_INET6, 1, 6, "", (a, 9, 0, 0))
                if ":" in a
                else (socket.AF_INET, 1, 6, "", (a, 9))
                for a in addresses
            ]
        )


@pytest.fixture
def logged_failures() -> Iterator[Callable[[], int]]:
    """How many failures were logged since it was asked last."""
    seen = 0
    with capturedLogs() as events:

        def count() -> int:
            nonlocal seen
            before, seen = seen, len(events)
            return sum("log_failure" in event for event in events[before:])

        yield count


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lookups]:
    found = Lookups()
    monkeypatch.setattr(endpoint, "deferToThreadPool", found)
    monkeypatch.setattr(MemoryReactorClock, "getThreadPool", lambda _: None, raising=False)
    yield found


def test_a_host_name_may_have_an_underscore(lookups: Lookups) -> None:
    world = World("http://llama_server:9")
    client = world.gateway.chat()
    assert lookups.asked[0][0] == b"llama_server"
    lookups.found("10.0.0.7")
    backend = world.accept()
    assert b"\r\nHost: llama_server:9\r\n" in backend.value()
    backend.protocol.dataReceived(reply(b'{"choices":[{"index":0,"finish_reason":"stop"}]}'))
    assert Answer(client).status == 200
    OpenAIBackend(BackendSettings("b", "https://llama_server"), LimitSettings(), world.reactor)


def test_one_look_up_serves_all_who_wait_and_those_who_leave_are_forgotten(
    lookups: Lookups,
) -> None:
    world = World("http://gpu1:9")
    clients = [world.gateway.chat() for _ in range(3)]
    clients[1].leave()
    assert len(lookups.asked) == 1
    lookups.found("10.0.0.7")
    assert [attempt[0] for attempt in world.attempts] == ["10.0.0.7"] * 2
    world.gateway.chat()
    assert len(lookups.asked) == 2


def test_all_leave_while_the_resolver_hangs_and_no_second_look_up_is_begun(
    lookups: Lookups,
) -> None:
    world = World("http://gpu1:9")
    for _ in range(3):
        world.gateway.chat().leave()
    client = world.gateway.chat()
    assert len(lookups.asked) == 1
    lookups.found("10.0.0.7")
    assert len(world.attempts) == 1
    client.leave()
    assert world.target.in_flight == 0 and not world.reactor.getDelayedCalls()


@pytest.mark.parametrize("why", ["refused", "silent"])
def test_the_next_address_is_tried_when_one_refuses_or_is_silent(
    lookups: Lookups, why: str
) -> None:
    world = World("http://gpu1:9")
    client = world.gateway.chat()
    lookups.found("::1", "10.0.0.7", "10.0.0.8")
    assert [attempt[0] for attempt in world.attempts] == ["::1"]
    if why == "refused":
        world.refuse(ConnectionRefusedError())
    else:
        world.reactor.advance(endpoint.STAGGER_SECONDS)
    assert world.attempts[-1][0] == "10.0.0.7"
    world.accept().protocol.dataReceived(
        reply(b'{"choices":[{"index":0,"finish_reason":"stop"}]}')
    )
    assert Answer(client).status == 200
    world.reactor.advance(1)
    assert len(world.attempts) == (0 if why == "refused" else 1)  # the third was never tried
    assert all(c.stoppedConnecting for c in world.reactor.connectors[:1] if why == "silent")


def test_all_addresses_refuse(lookups: Lookups) -> None:
    world = World("http://gpu1:9")
    client = world.gateway.chat()
    lookups.found("::1", "10.0.0.7")
    world.refuse(ConnectionRefusedError())
    world.refuse(ConnectionRefusedError())
    assert Answer(client).code == "upstream_unreachable"
    assert not world.reactor.getDelayedCalls()


@pytest.mark.parametrize("problem", [socket.gaierror(-2, "Name or service not known"), None])
def test_a_name_without_an_address_is_a_502_with_the_reason_in_the_log(
    lookups: Lookups, problem: OSError | None
) -> None:
    world = World("http://gpu1:9")
    client = world.gateway.chat()
    if problem is None:
        lookups.found()
    else:
        lookups.asked[0][1].errback(problem)
    assert (Answer(client).status, Answer(client).code) == (502, "upstream_dns")
    assert problem is None or "Name or service" in world.gateway.ended[0].detail


# -- what the gateway itself has run out of --------------------------------------------------------

OUT_OF = [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL]


def refused(world: World, number: int) -> None:
    kind = ConnectError if number == errno.EADDRNOTAVAIL else ConnectBindError
    world.refuse(kind(number, "no more"))


@pytest.mark.parametrize("number", OUT_OF, ids=errno.errorcode.get)
def test_a_gateway_that_cannot_open_a_socket_is_overloaded_and_blames_nobody(number: int) -> None:
    world = World()
    for _ in range(10):
        client = world.gateway.chat()
        refused(world, number)
        answer = Answer(client)
        assert (answer.status, answer.code) == (503, "overloaded")
        assert answer.header("retry-after") == "1" and answer.header("x-should-retry") is None
        assert (world.gateway.ended[-1].end, world.target.in_flight) == (End.REFUSED, 0)
        assert "no more" in world.gateway.ended[-1].detail
    assert world.target.health.state is State.HEALTHY


def test_another_backend_is_asked_then_it_may_have_a_connection() -> None:
    other = FakeBackend()
    world = World("http://127.0.0.1:9", other)
    world.gateway.chat()
    refused(world, errno.EMFILE)
    assert len(other.calls) == 1


def test_a_resolver_that_has_no_descriptor_left_is_told_from_a_name_that_is_unknown(
    lookups: Lookups, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World("http://gpu1:9")
    client = world.gateway.chat()
    lookups.asked[0][1].errback(OSError(errno.EMFILE, "Too many open files"))
    assert Answer(client).code == "overloaded"

    def full(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    client = world.gateway.chat()
    monkeypatch.setattr("os.open", full)
    lookups.asked[1][1].errback(socket.gaierror(-3, "Temporary failure in name resolution"))
    assert Answer(client).code == "overloaded"
    assert world.target.health.state is State.HEALTHY


def test_a_thread_that_cannot_be_started_for_a_look_up_is_no_fault_of_the_backend(
    lookups: Lookups, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(endpoint, "deferToThreadPool", no_thread)
    world = World("http://gpu1:9")
    for _ in range(4):
        assert Answer(world.gateway.chat()).code == "overloaded"
    assert world.target.in_flight == 0 and not world.reactor.getDelayedCalls()
    monkeypatch.setattr(endpoint, "deferToThreadPool", lookups)
    world.gateway.chat()
    lookups.found("10.0.0.7")
    assert len(world.attempts) == 1


def test_an_address_to_which_this_machine_has_no_way_is_the_backends_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``::1`` on a machine without IPv6 gives the same number as having no free port."""

    class NoWay(socket.socket):
        def connect(self, address: Any) -> None:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")

    world = World()
    client = world.gateway.chat()
    monkeypatch.setattr("socket.socket", NoWay)
    refused(world, errno.EADDRNOTAVAIL)
    assert Answer(client).code == "upstream_unreachable"


# -- whatever a call raises ------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["post", "get"])
def test_what_a_call_raises_settles_the_attempt(
    method: str, monkeypatch: pytest.MonkeyPatch, logged_failures: Callable[[], int]
) -> None:
    world = World("http://127.0.0.1:9", FakeBackend(), health="/health")

    def broken(*_: object) -> None:
        raise KeyError("a fault of our own code")

    monkeypatch.setattr(TreqClient, method, broken)
    if method == "post":
        assert Answer(world.gateway.chat()).status == 500
        assert world.target.in_flight == 0
    else:
        looking = world.target.backend.check()
        assert looking is not None
        failed: list[Failure] = []
        looking.addErrback(failed.append)
        assert failed
        assert [m["id"] for m in world.models().json["data"]] == ["m"]  # of the other one
    assert logged_failures() == 1


@pytest.mark.parametrize("how", ["raises", "fails"])
def test_one_backend_that_is_broken_does_not_take_the_list_from_the_others(
    how: str, logged_failures: Callable[[], int]
) -> None:
    class Broken(FakeBackend):
        def models(self, request_id: str) -> Deferred[dict[str, Any]]:
            if how == "raises":
                raise KeyError("x")
            return fail(KeyError("x"))

    gateway = Gateway(Broken("broken"), FakeBackend("good"))
    answer = Answer(gateway.request("GET", "/v1/models"))
    assert [entry["id"] for entry in answer.json["data"]] == ["m"]
    assert logged_failures() == 1
    alone = Gateway(Broken("broken"))
    assert Answer(alone.request("GET", "/v1/models")).status == 500
    assert logged_failures() == 1


# -- the list of models ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code"),
    [(401, "upstream_auth"), (403, "upstream_auth"), (500, "upstream_bad_response")],
)
def test_a_list_that_is_refused_says_why(status: int, code: str) -> None:
    for whole in (True, False):
        world = World()
        client = world.gateway.request("GET", "/v1/models")
        backend = world.accept()
        answer = reply(b'{"detail": "Invalid API key sk-1"}', status=status)
        backend.protocol.dataReceived(answer if whole else answer[:-5])
        assert (Answer(client).status, Answer(client).code) == (502, code)
        assert b"sk-1" not in Answer(client).body
        if not whole:
            backend.protocol.dataReceived(answer[-5:])
        world.gateway.request("GET", "/v1/models")
        assert not world.attempts  # the connection was kept


def test_a_list_keeps_what_is_good_in_it() -> None:
    world = World()
    client = world.gateway.request("GET", "/v1/models")
    listed = [{"id": "a"}, {"id": None}, "b", {"id": "c\u0007"}, {"name": "d"}, {"id": "e"}]
    world.accept().protocol.dataReceived(reply(json.dumps({"data": listed}).encode()))
    assert [entry["id"] for entry in Answer(client).json["data"]] == ["a", "e"]


def test_a_list_that_is_null_is_an_empty_one() -> None:
    world = World()
    client = world.gateway.request("GET", "/v1/models")
    world.accept().protocol.dataReceived(reply(b'{"object":"list","data":null}'))
    assert (Answer(client).status, Answer(client).json["data"]) == (200, [])


def test_a_list_that_comes_byte_by_byte_is_gathered_within_its_limit() -> None:
    world = World()
    client = world.gateway.request("GET", "/v1/models")
    backend = world.accept()
    backend.protocol.dataReceived(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(70):
        if not backend.aborted:
            backend.protocol.dataReceived(b" " * 65536)
    assert backend.aborted and Answer(client).code == "upstream_bad_response"


# -- the content type of what crosses unread -------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (b"audio/mpeg; rate=24000", "audio/mpeg; rate=24000"),
        (b"Audio/L16;rate=24000;channels=1", "audio/l16;rate=24000;channels=1"),
        (b"text/plain; charset=utf-8", "text/plain; charset=utf-8"),
        (b'audio/x; a="b;c"', 'audio/x; a="b;c"'),
        (b"audio/mpeg", "audio/mpeg"),
        (b"audio/mpeg ;", "audio/mpeg"),
        (b"audio/mpeg; a=\xff", "audio/mpeg"),
        (b"audio/mpeg; a=\tb", "audio/mpeg"),
        (b"audio/mpeg; a=" + b"b" * 300, "audio/mpeg"),
        (b"audio/mpeg, text/html", None),
        (b"audio/\xe9", None),
        (b"audio", None),
        (b"text/html; charset=utf-8", None),
        (b"a/" + b"b" * 300, None),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_content_type_crosses_with_its_parameters(theirs: bytes, ours: str | None) -> None:
    world = World()
    client = world.speech()
    world.accept().protocol.dataReceived(reply(b"sound", theirs))
    if ours is None:
        assert Answer(client).code == "upstream_bad_response"
    else:
        assert Answer(client).header("content-type") == ours
        assert Answer(client).body == b"sound"


@pytest.mark.parametrize("value", [b"\xff", b"a\tb", b"9" * 300])
def test_a_header_that_crosses_is_short_and_printable_or_stays_behind(value: bytes) -> None:
    world = World()
    client = world.speech()
    more = b"X-RateLimit-Odd: %b\r\nX-RateLimit-Limit: 5\r\n" % value
    answer = reply(b"sound", b"audio/mpeg").replace(b"\r\n", b"\r\n" + more, 1)
    world.accept().protocol.dataReceived(answer)
    assert Answer(client).header("x-ratelimit-limit") == "5"
    assert Answer(client).header("x-ratelimit-odd") is None
