"""Several backends of one gateway: they share the load; one is killed and started again."""

from __future__ import annotations

import http.client
import itertools
import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.faultbackend import FaultBackend
from tests.integration import tinymodel
from tests.integration.conftest import chat_model
from tests.integration.processes import Gateway, LlamaServer, free_port

#: Seconds within which a restarted backend must serve again.
BACK_WITHIN = 30


class Llama(LlamaServer):
    """llama.cpp's server, which is killed when it is stopped."""

    def stop(self) -> int:
        """Kill it: after SIGTERM it would wait for its running requests."""
        self.send(signal.SIGKILL)
        return self.wait()


@contextmanager
def gateway(folder: Path, backends: str) -> Iterator[Gateway]:
    config = f"[log]\naccess = {folder / 'access.log'}\n[timeouts]\nping = 0\n{backends}"
    with Gateway(folder=folder, config=config) as running:
        yield running


def log_of(folder: Path) -> dict[str, dict[str, Any]]:
    """The access log by request id."""
    *lines, _unfinished = (folder / "access.log").read_text().split("\n")
    return {line["id"]: line for line in map(json.loads, lines)}


@attrs.frozen
class Outcome:
    """The answer to a client; ``whole`` if its framing was complete."""

    id: str
    began: float
    stream: bool
    status: int
    body: bytes
    whole: bool
    retry: str | None

    @property
    def good(self) -> bool:
        """Whether the reply is complete, with every event and its end."""
        if self.status != 200 or not self.whole:
            return False
        return self.body.endswith(b"data: [DONE]\n\n") if self.stream else b"choices" in self.body


class ChatClient:
    """A client with one connection, which it opens again after it was closed."""

    numbers = itertools.count(1)

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)

    def ask(self, stream: bool, tokens: int = 40, model: str = "m") -> Outcome:
        self.begin(stream, tokens, model)
        return self.end()

    def begin(self, stream: bool, tokens: int, model: str) -> None:
        """Send a request, and wait for the head of the answer."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": "Count from one to a hundred."}],
            "stream": stream,
            "max_tokens": tokens,
            "ignore_eos": True,
        }
        self._asked = f"ask-{next(self.numbers)}", time.monotonic(), stream
        headers = {"Content-Type": "application/json", "X-Request-ID": self._asked[0]}
        self._connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        self._reply = self._connection.getresponse()

    def end(self) -> Outcome:
        whole = True
        try:
            data = self._reply.read()
        except http.client.IncompleteRead as cut:
            data, whole = cut.partial, False
            self.close()  # it is opened anew for the next
        retry = self._reply.headers["x-should-retry"]
        return Outcome(*self._asked, self._reply.status, data, whole, retry)

    def close(self) -> None:
        self._connection.close()


@contextmanager
def load(url: str, clients: int) -> Iterator[list[Outcome]]:
    """Run clients that request without pause, half of them streams; the list of outcomes grows."""
    outcomes: list[Outcome] = []
    broken: list[BaseException] = []
    stop = threading.Event()

    def run(stream: bool) -> None:
        client = ChatClient(url)
        try:
            while not stop.is_set():
                outcomes.append(client.ask(stream))
        except BaseException as problem:  # told by the thread that looks
            broken.append(problem)
        finally:
            client.close()

    threads = [threading.Thread(target=run, args=(n % 2 == 0,)) for n in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield outcomes
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert not broken, broken


def wait_until(what: Callable[[], bool], seconds: float) -> float:
    """Wait until it is true; return the seconds that this took."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < seconds, f"not within {seconds} s"
        time.sleep(0.05)
    return time.monotonic() - began


# -- the share -----------------------------------------------------------------------------------


@pytest.mark.parametrize("clients", [1, 6])
def test_requests_are_shared_evenly_over_equal_backends(tmp_path: Path, clients: int) -> None:
    requests = 2000
    sims = [FaultBackend().start() for _ in range(3)]
    sections = "\n".join(f"[backend b{n}]\nurl = {sim.url}" for n, sim in enumerate(sims))
    sections += "\n[routing]\naffinity = off\n"  # all requests have the same prompt
    outcomes: list[Outcome] = []

    def run(url: str, count: int) -> None:
        client = ChatClient(url)
        outcomes.extend([client.ask(stream=n % 4 == 0) for n in range(count)])
        client.close()

    try:
        with gateway(tmp_path, sections) as running:
            counts = [requests // clients + (n < requests % clients) for n in range(clients)]
            threads = [threading.Thread(target=run, args=(running.url, n)) for n in counts]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
    finally:
        for sim in sims:
            sim.stop()
    assert len(outcomes) == requests and all(outcome.good for outcome in outcomes)
    chats = [[record for record in sim.records if record.method == "POST"] for sim in sims]
    shares = [len(records) for records in chats]
    assert sum(shares) == requests
    assert all(abs(share - requests / 3) <= requests / 3 * 0.1 for share in shares), shares
    logged = Counter(str(*line["backend"]) for line in log_of(tmp_path).values() if line["model"])
    assert logged == {f"b{n}": share for n, share in enumerate(shares)}


# -- a kill under load ---------------------------------------------------------------------------


def test_a_backend_killed_under_load_costs_only_what_it_had_begun_and_comes_back(
    tmp_path: Path,
) -> None:
    tinymodel.write(tmp_path / "tiny.gguf")
    ports = [free_port() for _ in range(3)]

    def llama(n: int) -> Llama:
        """The second backend is a real model, slow enough to be killed during its streams."""
        model = chat_model() if n == 1 else tmp_path / "tiny.gguf"
        folder = tmp_path / f"llama-{n}"
        folder.mkdir(exist_ok=True)
        return Llama(model, alias=f"real-{n}", port=ports[n], folder=folder)

    sections = "\n".join(
        f"[backend b{n}]\nurl = http://127.0.0.1:{port}\nmodels = m = real-{n}, m{n} = real-{n}\n"
        for n, port in enumerate(ports)
    )
    with ExitStack() as stack:
        stack.enter_context(llama(0))
        stack.enter_context(llama(2))
        victim = stack.enter_context(llama(1))
        running = stack.enter_context(gateway(tmp_path, sections))
        streaming = ChatClient(running.url)
        streaming.begin(True, tokens=1500, model="m1")
        with load(running.url, clients=6) as outcomes:
            wait_until(lambda: len(outcomes) > 50, 20)
            time.sleep(0.5)
            victim.stop()
            killed, before = time.monotonic(), len(outcomes)
            outcomes.append(streaming.end())
            streaming.close()
            time.sleep(2)
            assert len(outcomes) > before + 20  # the others serve on
            stack.enter_context(llama(1))
            restarted = time.monotonic()
            wait_until(lambda: serves(tmp_path, "b1", outcomes, restarted), BACK_WITHIN)
    log = log_of(tmp_path)
    failed = [outcome for outcome in outcomes if not outcome.good]
    for outcome in failed:
        line = log[outcome.id]
        # It was sent to the victim before it was killed, so it may have run there.
        assert line["backend"][-1] == "b1" and outcome.began < killed, (outcome, line)
        assert line["end"] in ("backend_truncated", "backend_error") and line["code"], line
        if outcome.status == 200:
            assert outcome.stream and not outcome.whole, outcome
            assert b"[DONE]" not in outcome.body and b'"error"' in outcome.body
        else:
            assert (outcome.status, outcome.retry) == (502, "false"), outcome
    assert 2 <= len(failed) <= 7  # the stream that was begun, and what else it had
    assert any(outcome.status == 200 for outcome in failed)
    for outcome in outcomes:
        if outcome.good and not outcome.stream:
            assert json.loads(outcome.body)["model"] == "m"
    tried = [line["backend"] for line in log.values()]
    assert ["b1", "b0"] in tried or ["b1", "b2"] in tried  # refused there, served elsewhere
    print(f"{len(outcomes)} requests, {len(failed)} cut short, {Counter(map(tuple, tried))}")


def serves(folder: Path, name: str, outcomes: list[Outcome], since: float) -> bool:
    """Whether this backend has answered a request well that began after ``since``."""
    log = log_of(folder)
    later = [outcome for outcome in list(outcomes) if outcome.began > since and outcome.good]
    return any(o.id in log and log[o.id]["backend"] == [name] for o in later)


def test_while_all_backends_are_down_clients_get_an_error_and_the_first_one_up_serves(
    tmp_path: Path,
) -> None:
    sims = [FaultBackend().start() for _ in range(2)]
    sections = "\n".join(
        f"[backend secret-{n}]\nurl = {sim.url}\nhealth = /health" for n, sim in enumerate(sims)
    )
    with gateway(tmp_path, sections) as running:
        client = ChatClient(running.url)
        assert client.ask(False).good and ready(running) == 200
        for sim in sims:
            sim.stop()
        outcomes = [client.ask(stream) for stream in (False, True) * 6]
        assert {outcome.status for outcome in outcomes} == {502}  # any of them may be up again
        # After the next probe of their health paths they get no requests.
        wait_until(lambda: client.ask(False).status == 503, BACK_WITHIN)
        outcomes.append(client.ask(False))
        assert outcomes[-1].status == 503 and ready(running) == 503
        for outcome in outcomes:
            error = json.loads(outcome.body)["error"]
            assert error["code"] in ("upstream_unreachable", "overloaded")
            assert outcome.retry is None  # nothing ran
            assert b"secret" not in outcome.body and b"127.0.0.1" not in outcome.body
        sims[1].start()
        took = wait_until(lambda: client.ask(False).good, BACK_WITHIN)
        assert ready(running) == 200 and took < BACK_WITHIN
        assert client.ask(True).good
        client.close()
    sims[1].stop()


def ready(running: Gateway) -> int:
    connection = http.client.HTTPConnection(running.url.removeprefix("http://"), timeout=10)
    connection.request("GET", "/readyz")
    status = connection.getresponse().status
    connection.close()
    return status
