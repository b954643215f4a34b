"""Measures what ``[routing] affinity`` saves: ``python -m benchmarks.affinity``.

Three llama.cpp servers with the tiny model of the tests, gatewayd in front of them, and
conversations of several turns. A turn sends the whole conversation so far, so that all but its end
can come from a server's prompt cache. The same conversations are sent to one server alone, which
shows the most that a cache can give, and through gatewayd with each value of ``affinity``.

Then one server is killed and started again, and the program counts the conversations whose server
has changed.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import random
import statistics
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import plots
from gatewayd.routing.health import RAMP_SECONDS
from tests.integration import tinymodel
from tests.integration.processes import Gateway, LlamaServer

SERVERS = ("gpu1", "gpu2", "gpu3")
#: For each server: as many slots as requests are in flight, so that none waits for another one.
SLOTS = 8
ALONE = "one server"
MODES = (ALONE, "off", "session", "prompt")

#: Seconds after which a server that has come back is known to be healthy.
CHECKED = 3.0

Result = dict[str, Any]


class Options(NamedTuple):
    """
    :param active: how many conversations are held at the same time. While a user thinks, others
        are served.
    :param concurrency: how many requests are in flight.
    """

    conversations: int
    turns: int
    active: int
    concurrency: int


_ids = itertools.count(1)


class Turn(NamedTuple):
    """One request, as its client and the server saw it.

    :param number: of the turn in its conversation, from 0.
    :param first_token: seconds until the first content came.
    """

    conversation: int
    number: int
    id: str
    prompt_tokens: int
    cached_tokens: int
    first_token: float


class Conversation:
    """A user, the conversation so far, and what the user will say. One token is one byte."""

    def __init__(self, number: int, turns: int) -> None:
        words = random.Random(number)
        self.number = number
        self.session = f"session-{number}"
        self.questions = deque(
            "".join(words.choices("abcdefghijklmnopqrstuvwxyz ", k=words.randint(120, 270)))
            for _ in range(turns)
        )
        system = "You are a helpful assistant of the Example Company. " * 4
        self.messages = [{"role": "system", "content": system}]

    @property
    def turn(self) -> int:
        return len(self.messages) // 2

    def ask(self, connection: http.client.HTTPConnection, with_session: bool) -> Turn:
        """Send the next question, and add the reply to the conversation."""
        number = self.turn
        self.messages.append({"role": "user", "content": self.questions.popleft()})
        body = {
            "model": "tiny",
            "messages": self.messages,
            "max_tokens": 8,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        id = f"request-{next(_ids)}"
        headers = {"Content-Type": "application/json", "X-Request-ID": id}
        if with_session:
            headers["X-Session-ID"] = self.session
        began = time.monotonic()
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        reply = connection.getresponse()
        if reply.status != 200:
            raise RuntimeError(f"status {reply.status}: {reply.read(500)!r}")
        first, text, usage = 0.0, "", {}
        for line in reply:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            for choice in event["choices"]:
                content = choice["delta"].get("content")
                if content:
                    first = first or time.monotonic() - began
                    text += content
            usage = event.get("usage") or usage
        self.messages.append({"role": "assistant", "content": text})
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        return Turn(
            self.number,
            number,
            id,
            usage["prompt_tokens"],
            cached,
            first,
        )


def converse(
    port: int, conversations: Sequence[Conversation], options: Options, with_session: bool
) -> list[Turn]:
    """Hold all conversations to their end."""
    later, waiting, done = deque(conversations), deque[Conversation](), list[Turn]()
    for _ in range(options.active):
        waiting.append(later.popleft())

    def serve() -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            while len(done) < options.conversations * options.turns:
                try:
                    conversation = waiting.popleft()
                except IndexError:  # the last turns of some conversations are under way
                    time.sleep(0.001)
                    continue
                done.append(conversation.ask(connection, with_session))
                if conversation.questions:
                    waiting.append(conversation)
                elif later:
                    waiting.append(later.popleft())

    with ThreadPoolExecutor(options.concurrency) as pool:
        for served in [pool.submit(serve) for _ in range(options.concurrency)]:
            served.result()
    return done


class Servers:
    """The servers behind the gateway, and what the gateway's access log says of them."""

    def __init__(self, folder: Path, model: Path, names: Sequence[str]) -> None:
        self._folder, self._model = folder, model
        self._running: dict[str, LlamaServer] = {}
        self.log = folder / "access.log"
        for name in names:
            (folder / name).mkdir()
            self.start(name)

    def start(self, name: str) -> None:
        """Start a server, again at its old port if it was killed."""
        port = self._running[name].port if name in self._running else 0
        server = LlamaServer(
            self._model,
            str(SLOTS),
            alias="tiny",
            folder=self._folder / name,
            port=port,
        )
        self._running[name] = server.__enter__()

    def kill(self, name: str) -> None:
        self._running[name].kill()

    def stop(self) -> None:
        for server in self._running.values():
            server.stop()

    def gateway(self, affinity: str) -> Gateway:
        config = f"[log]\naccess = {self.log}\n[routing]\naffinity = {affinity}\n"
        for name, server in self._running.items():
            config += f"[backend {name}]\nurl = {server.url}\nhealth = /health\nmodels = tiny\n"
        return Gateway(folder=self._folder, config=config)

    def lines(self) -> dict[str, dict[str, Any]]:
        """The lines of the access log by request id, the last one of each."""
        return {line["id"]: line for line in map(json.loads, self.log.read_text().splitlines())}


# -- what is measured ------------------------------------------------------------------------------


def held(folder: Path, model: Path, mode: str, options: Options) -> Result:
    """Hold all conversations with cold caches.

    :param mode: a value of ``affinity``, or :data:`ALONE`.
    """
    names = SERVERS[:1] if mode == ALONE else SERVERS
    servers = Servers(folder, model, names)
    try:
        with servers.gateway("off" if mode == ALONE else mode) as gateway:
            conversations = [Conversation(n, options.turns) for n in range(options.conversations)]
            began = time.monotonic()
            turns = converse(gateway.port, conversations, options, mode == "session")
            seconds = time.monotonic() - began
            result = result_of(turns, seconds, servers.lines())
            if mode == "prompt":
                result["outage"] = outage(servers, gateway, conversations)
    finally:
        servers.stop()
    return result


def result_of(turns: Sequence[Turn], seconds: float, lines: Mapping[str, Any]) -> Result:
    requests, busy = Counter[str](), Counter[str]()
    for turn in turns:
        line = lines[turn.id]
        requests[line["backend"][-1]] += 1
        busy[line["backend"][-1]] += line["total_ms"] / 1000 / seconds
    by_turn = [[turn for turn in turns if turn.number == n] for n in range(turns[-1].number + 1)]
    later = [turn.first_token * 1000 for turn in turns if turn.number]
    return {
        "cached": cached(turns),
        "cached_by_turn": [cached(same) for same in by_turn],
        "ttft_ms": statistics.median(later),
        "ttft_ms_by_turn": [
            statistics.median(turn.first_token * 1000 for turn in same) for same in by_turn
        ],
        "seconds": seconds,
        "requests": dict(requests),
        "in_flight": dict(busy),
    }


def cached(turns: Iterable[Turn]) -> float:
    """Which part of the prompts' tokens came from a cache."""
    turns = list(turns)
    return sum(turn.cached_tokens for turn in turns) / sum(turn.prompt_tokens for turn in turns)


def most_to_mean(loads: Mapping[str, float]) -> float:
    return max(loads.values()) / statistics.mean(loads.values())


def outage(
    servers: Servers, gateway: Gateway, conversations: Sequence[Conversation]
) -> dict[str, int]:
    """Kill a server and start it again; count the conversations that another server answers."""

    def places() -> dict[int, str]:
        """The server of each conversation. One request at a time: no server has too much load."""
        ids = {}
        with closing(http.client.HTTPConnection("127.0.0.1", gateway.port)) as connection:
            for conversation in conversations:
                conversation.questions.append("And now?")
                ids[conversation.number] = conversation.ask(connection, False).id
                del conversation.messages[-2:]
        lines = servers.lines()
        return {number: lines[id]["backend"][-1] for number, id in ids.items()}

    gone = SERVERS[1]
    before = places()
    servers.kill(gone)
    without = places()
    servers.start(gone)
    time.sleep(CHECKED)
    places()  # one of these requests is the trial of the server
    time.sleep(RAMP_SECONDS)
    after = places()
    return {
        "conversations": len(before),
        "of_the_killed": sum(name == gone for name in before.values()),
        "others_moved": sum(
            name != gone and without[number] != name for number, name in before.items()
        ),
        "moved_after_return": sum(after[number] != name for number, name in before.items()),
    }


# -- what is shown ---------------------------------------------------------------------------------


def table(results: Mapping[str, Result]) -> str:
    alone = results[ALONE]
    rows = [
        ["", "from cache", "of one server's", "TTFT p50, ms", "requests: max/mean", "in flight"]
    ]
    for mode, result in results.items():
        rows.append(
            [
                mode,
                f"{result['cached']:.1%}",
                f"{result['cached'] / alone['cached']:.1%}",
                f"{result['ttft_ms']:.1f}",
                f"{most_to_mean(result['requests']):.2f}",
                f"{most_to_mean(result['in_flight']):.2f}",
            ]
        )
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if n else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    if "prompt" in results:
        found = results["prompt"]["outage"]
        lines += [
            "",
            f"One server killed: {found['of_the_killed']} of {found['conversations']} "
            f"conversations were its own. {found['others_moved']} others moved. After its return, "
            f"{found['moved_after_return']} were not where they had been.",
        ]
    return "\n".join(lines) + "\n"


def draw(results: Mapping[str, Result], folder: Path) -> None:
    for name, key, factor, title in (
        ("affinity-cache", "cached_by_turn", 100, "share of the prompt from cache, %, by turn"),
        ("affinity-ttft", "ttft_ms_by_turn", 1, "TTFT, p50 ms, by turn"),
    ):
        curves = {
            mode: [(turn, factor * value) for turn, value in enumerate(result[key], start=1)]
            for mode, result in results.items()
        }
        svg = plots.lines(title, curves, linear=True)
        (folder / f"{name}.svg").write_text(svg, encoding="utf-8")


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.affinity", description=__doc__)
    add = parser.add_argument
    add("--conversations", type=int, default=60)
    add("--turns", type=int, default=6, help="questions of each conversation (%(default)s)")
    add("--active", type=int, default=8, help="conversations at the same time (%(default)s)")
    add("--concurrency", type=int, default=8, help="requests at the same time (%(default)s)")
    add("--modes", default=",".join(MODES), help="what to measure (%(default)s)")
    add("--out", type=Path, default=Path("build/affinity"), help="the folder of the results")
    parsed = parser.parse_args(given)
    options = Options(parsed.conversations, parsed.turns, parsed.active, parsed.concurrency)
    parsed.out.mkdir(parents=True, exist_ok=True)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "tiny.gguf"
        tinymodel.write(model)
        for mode in parsed.modes.split(","):
            place = Path(folder) / mode.replace(" ", "-")
            place.mkdir()
            results[mode] = held(place, model, mode, options)
    (parsed.out / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    shown = table(results)
    (parsed.out / "table.txt").write_text(shown, encoding="utf-8")
    print(shown, end="")
    draw(results, parsed.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
