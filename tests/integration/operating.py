"""What an operator's tests share: a gateway with an ini file, its access log, and clients that may
have a token or speak TLS.
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from tests.faultbackend import FaultBackend, Record
from tests.integration.faults import Answer, Client, wait_for
from tests.integration.processes import START, Gateway

#: The most that a machine with other things to do may take for what is done at once.
AT_ONCE = 1.0


def ini(**sections: Mapping[str, object]) -> str:
    """The text of an ini file; ``__`` in a section's name is a space."""
    lines = []
    for section, keys in sections.items():
        lines.append(f"[{section.replace('__', ' ')}]")
        lines += [f"{key} = {value}" for key, value in keys.items()]
    return "\n".join([*lines, ""])


def in_front_of(sim: FaultBackend, log: Path, **gateway: object) -> str:
    """The settings of a gateway with one backend and this access log.

    :param gateway: what its section says.
    """
    return ini(gateway=gateway, log={"access": log}, backend__b={"url": sim.url})


class Listens(Protocol):
    """What there is to know of a gateway for a call."""

    @property
    def port(self) -> int:
        """Its port on 127.0.0.1."""


class Caller(Client):
    """A connection to a gateway.

    :param token: what it sends with each request.
    """

    def __init__(
        self, gateway: Listens, token: str = "", tls: ssl.SSLContext | None = None
    ) -> None:
        try:
            super().__init__(gateway.port)
        except OSError:
            self.sock.close()
            raise
        if tls is not None:
            self.sock = tls.wrap_socket(self.sock, server_hostname="127.0.0.1")
        self.token = token
        self._port = gateway.port

    def send(self, method: str, path: str, body: bytes = b"", **headers: str) -> None:
        head = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self._port}"]
        if self.token:
            head.append(f"Authorization: Bearer {self.token}")
        if body:
            head.append(f"Content-Length: {len(body)}")
        head += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.sock.sendall("\r\n".join([*head, "", ""]).encode() + body)

    def get(self, path: str) -> Answer:
        self.send("GET", path)
        return self.answer("")

    def begin_chat(self, fault: str = "", stream: bool = False, **more: Any) -> None:
        """:param more: the request's id, and members of its body."""
        id = more.pop("id")
        message = {"role": "user", "content": f"fault:{fault}" if fault else "hello"}
        body = json.dumps({"model": "m", "messages": [message], "stream": stream, **more}).encode()
        self.send(
            "POST", "/v1/chat/completions", body,
            Content_Type="application/json", X_Request_ID=id,
        )  # fmt: skip

    def chat(self, fault: str = "", stream: bool = False, **more: Any) -> Answer:
        began = time.monotonic()
        self.begin_chat(fault, stream, **more)
        return self.answer(more["id"], began)


def get(gateway: Listens, path: str, token: str = "") -> Answer:
    with Caller(gateway, token) as caller:
        return caller.get(path)


def chat(gateway: Listens, fault: str = "", stream: bool = False, **more: Any) -> Answer:
    """One chat on a connection of its own.

    :param more: ``token``, ``tls``, the request's id, and members of its body.
    """
    token, tls = more.pop("token", ""), more.pop("tls", None)
    with Caller(gateway, token, tls) as caller:
        return caller.chat(fault, stream, **{"id": "", **more})


class Crowd:
    """Chats that run at the same time, each by a thread."""

    def __init__(self, gateway: Listens, pool: ThreadPoolExecutor) -> None:
        self._gateway = gateway
        self._pool = pool
        self.ids: list[str] = []
        self._answers: list[Future[Answer]] = []

    def begin(self, count: int, name: str, fault: str, stream: bool, **more: Any) -> None:
        for number in range(count):
            id = f"{name}-{number}"
            self.ids.append(id)
            self._answers.append(
                self._pool.submit(chat, self._gateway, fault, stream, id=id, **more)
            )

    def answers(self) -> list[Answer]:
        """All of them, when they have ended."""
        return [answer.result(60) for answer in self._answers]


@contextmanager
def crowd(gateway: Listens, size: int = 64) -> Iterator[Crowd]:
    with ThreadPoolExecutor(size) as pool:
        yield Crowd(gateway, pool)


def reached(sim: FaultBackend, ids: Iterable[str]) -> bool:
    """Whether the backend has all of these, and every stream among them has begun."""
    seen = {r.request_id for r in sim.records if r.complete and (r.sent or not r.stream)}
    return seen.issuperset(ids)


def is_whole(answer: Answer, sim: FaultBackend) -> bool:
    """Whether a client has got all that the backend sent, to the byte."""
    if (answer.status, answer.whole) != (200, True):
        return False
    (record,) = sim.records_for(answer.id)
    if not record.stream:
        return bytes(answer.body) == record.want_json_as(answer.id)
    return answer.payloads() == [*record.want_as(answer.id), b"[DONE]"]


def left_at(record: Record) -> float | None:
    """When the backend saw that it was left."""
    return record.peer_left


def log_lines(*files: Path) -> list[dict[str, Any]]:
    """The lines of access logs; each must be one JSON object."""
    lines = [line for file in files for line in file.read_bytes().splitlines(keepends=True)]
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def logged(ids: Iterable[str], *files: Path) -> list[dict[str, Any]]:
    """The lines of these requests, as soon as each has one.

    A client can have the end of its answer a moment before the line is written.
    """
    wanted = set(ids)

    def found() -> list[dict[str, Any]] | None:
        lines = [line for line in log_lines(*files) if line["id"] in wanted]
        return lines if {line["id"] for line in lines} == wanted else None

    return wait_for(found, 5, "a line of each request")


def ends(ids: Iterable[str], log: Path) -> list[str]:
    """How the log says that these requests ended, in the order of its lines."""
    wanted = set(ids)
    return [line["end"] for line in log_lines(log) if line["id"] in wanted]


def metric(page: bytes, name: str, **labels: str) -> float:
    """The sum of a metric's values over all series that have these labels."""
    total = 0.0
    for line in page.decode().splitlines():
        series, _, value = line.rpartition(" ")
        series_name, _, rest = series.partition("{")
        if series_name == name and all(f'{k}="{v}"' in rest for k, v in labels.items()):
            total += float(value)
    return total


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    return False


# Two workers.


def both_serve(gateway: Gateway) -> None:
    wait_for(lambda: "2 workers serve" in gateway.output, START, "both workers")


def workers(gateway: Gateway) -> list[int]:
    """Their process numbers."""
    task = Path(f"/proc/{gateway.pid}/task/{gateway.pid}/children")
    return [int(pid) for pid in task.read_text().split()]


# systemd.


class Notices:
    """systemd's end of the notify protocol: messages as they came, each a mapping."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path)
        self._socket.settimeout(START)

    def next(self, ignored: str = "WATCHDOG") -> dict[str, str]:
        while ignored in (message := self._receive()):
            pass
        return message

    def _receive(self) -> dict[str, str]:
        lines = self._socket.recv(4096).decode().split("\n")
        return dict(line.split("=", 1) for line in lines)

    def close(self) -> None:
        self._socket.close()


@contextmanager
def notices() -> Iterator[Notices]:
    with tempfile.TemporaryDirectory() as folder:  # a short path: it must fit into an address
        heard = Notices(f"{folder}/notify")
        try:
            yield heard
        finally:
            heard.close()


#: Hands descriptors over as systemd does, to the command behind them.
ACTIVATE = """
import fcntl, os, sys
given = [fcntl.fcntl(int(n), fcntl.F_DUPFD_CLOEXEC, 100) for n in sys.argv[1].split(",")]
for number, descriptor in enumerate(given, 3):
    os.dup2(descriptor, number, inheritable=True)
names = ":".join(["gatewayd"] * len(given))
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(given)), LISTEN_FDNAMES=names)
os.execv(sys.argv[2], sys.argv[2:])
"""


def activated(
    listening: socket.socket,
    folder: Path,
    *options: str,
    environment: Mapping[str, str] | None = None,
    more: Sequence[socket.socket] = (),
) -> Gateway:
    """A gateway that is given this socket, and more."""
    folder.mkdir()
    descriptors = [given.fileno() for given in (listening, *more)]
    return Gateway(
        *options,
        folder=folder,
        port=listening.getsockname()[1],
        environment=environment,
        before=[sys.executable, "-c", ACTIVATE, ",".join(map(str, descriptors))],
        descriptors=descriptors,
    )
