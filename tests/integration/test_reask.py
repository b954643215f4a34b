"""Another backend after one that may have run, and another model for a long prompt, for real."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import certificate
from tests.faultbackend import FaultBackend, Record
from tests.integration.client import Client
from tests.integration.processes import Gateway, LlamaServer, wait_for

#: Seconds by which one thread of the test may note an event later than another one.
NOTED = 0.05

#: More tokens than llama.cpp has room for.
LONG = [{"role": role, "content": "hi " * 10_000} for role in ("user", "assistant")]
LONG += [{"role": "user", "content": "hello"}]


class Two:
    """A gateway with ``reask`` in front of two backends that count failures together."""

    def __init__(
        self, folder: Path, first: FaultBackend, second: FaultBackend, more: str = ""
    ) -> None:
        second.flaky_seen = first.flaky_seen
        self.backends = first, second
        self.log = folder / "access.log"
        config = f"[log]\naccess = {self.log}\n[routing]\nreask = before-commit\n"
        config += "show_backend = yes\n[timeouts]\npatience = 1\nping = 0.5\nfirst_byte = 3\n"
        for name, backend in (("one", first), ("two", second)):
            # With its own models, no list is fetched, and each connection is a new one.
            config += f"[backend {name}]\nurl = {backend.url}\nmodels = m\n{more}"
        self.gateway = Gateway(folder=folder, config=config)

    def records(self, id: str) -> list[Record]:
        found = [r for backend in self.backends for r in backend.records if r.request_id == id]
        return sorted(found, key=lambda record: record.at)

    def line(self, id: str) -> dict[str, Any]:
        lines = map(json.loads, self.log.read_text().splitlines())
        return next(line for line in lines if line["id"] == id)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    with FaultBackend() as first, FaultBackend() as second:
        made = Two(tmp_path_factory.mktemp("reask"), first, second)
        with made.gateway:
            yield made


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("reset-mid-headers", "upstream_reset"),
        ("close-mid-headers", "upstream_reset"),
        ("500", "upstream_error"),
        ("garbage", "upstream_bad_response"),
        ("switch", "upstream_bad_response"),
        ("gzip", "upstream_bad_response"),
        ("hang", "patience"),
        ("stall-mid-headers", "patience"),
    ],
)
def test_promise_6_a_backend_that_fails_is_left_before_the_next_is_asked(
    two: Two, fault: str, code: str, stream: bool
) -> None:
    leaves_before_it_asks(two, fault, code, stream)


def leaves_before_it_asks(two: Two, fault: str, code: str, stream: bool) -> None:
    with Client(two.gateway.port) as client:
        answer = client.chat(f"flaky:1:{fault}", stream=stream)
    assert answer.status == 200 and answer.whole, answer
    first, second = two.records(answer.id)
    wait_for(lambda: second.done, 2, "the end of the backend's reply")  # noted after it was sent
    if first.peer_left is not None:  # else it was the backend that ended first
        assert first.peer_left < second.at + NOTED
    line = two.line(answer.id)
    assert line["end"] == "complete" and len(line["attempts"]) == 2
    assert line["attempts"][0]["code"] in (code, "sim_500")
    if code == "patience":
        assert first.peer_left is not None and 900 < line["attempts"][0]["ms"] < 2500
    elif not stream:
        assert answer.header("x-gatewayd-backend") == [line["backend"][-1]]


@pytest.mark.parametrize(
    ("fault", "code"),
    [("500", "upstream_error"), ("hang", "patience"), ("stall-mid-headers", "patience")],
)
def test_promise_6_holds_for_tls_without_an_answer_to_its_close(
    tmp_path: Path, fault: str, code: str
) -> None:
    files = certificate(tmp_path, "backend")
    with (
        FaultBackend(tls=files, answer_close_notify=False) as first,
        FaultBackend(tls=files, answer_close_notify=False) as second,
    ):
        two = Two(tmp_path, first, second, f"tls_ca = {files[0]}\n")
        with two.gateway:
            for stream in (False, True):
                leaves_before_it_asks(two, fault, code, stream)


def test_a_prompt_that_llama_cpp_finds_too_long_goes_to_the_declared_model(
    tool_llama: LlamaServer, tmp_path: Path
) -> None:
    with FaultBackend(models=("large",)) as sim:
        config = "[routing]\nfallback_models = tiny -> large\n"
        config += f"[backend a]\nurl = {tool_llama.url}\nmodels = tiny\n"
        config += f"[backend b]\nurl = {sim.url}\nmodels = large\n"
        with Gateway(folder=tmp_path, config=config) as gateway, Client(gateway.port) as client:
            for stream in (False, True):
                short = client.chat(stream=stream, model="tiny", max_tokens=2)
                assert short.status == 200 and short.header("x-gatewayd-model") == []
                long = client.chat(stream=stream, model="tiny", max_tokens=2, messages=LONG)
                assert long.status == 200 and long.whole, long
                assert long.header("x-gatewayd-model") == ["large"]
                assert long.header("x-gatewayd-backend") == ["b"]
                asked = json.loads(sim.records[-1].body)
                assert asked["model"] == "large" and asked["max_tokens"] == 2
