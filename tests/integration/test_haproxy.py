"""deploy/haproxy.cfg with local addresses: two gateways behind HAProxy, one of which stops."""

import http.client
import json
import os
import pwd
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.faultbackend import FaultBackend
from tests.integration.processes import Gateway, Server, free_port
from tests.integration.realtimeserver import RealtimeServer
from tests.programs import needs, path_of

pytestmark = needs("haproxy")

CONFIG = Path(__file__).parents[2] / "deploy" / "haproxy.cfg"
ERRORS = (OSError, http.client.HTTPException, ValueError, AssertionError)


class HAProxy(Server):
    """HAProxy with our configuration, in front of these gateways."""

    def __init__(self, *gateways: Server, folder: Path) -> None:
        port, text = free_port(), CONFIG.read_text()
        places = {
            "    bind :8000": f"    bind 127.0.0.1:{port}",
            "    stats socket /run/haproxy/": "    stats socket unix@",
        }
        for number, gateway in enumerate(gateways, 1):
            places[f"127.0.0.1:800{number}"] = gateway.url.removeprefix("http://")
        if os.geteuid() != 0:  # only root can become another user
            places |= dict.fromkeys(("    user haproxy\n", "    group haproxy\n"), "")
            places["    chroot /var/lib/haproxy\n"] = ""
        for written, used in places.items():
            assert text.count(written) == 1, written
            text = text.replace(written, used)
        self._folder = folder
        (folder / "haproxy.cfg").write_text(text)
        command = [path_of("haproxy"), "-db", "-f", "haproxy.cfg"]
        super().__init__(command, port=port, health="/readyz", folder=folder)

    def say(self, command: str) -> str:
        """Send one command to the admin socket, and return the answer."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(self._folder / "admin.sock"))
            connection.sendall(command.encode() + b"\n")
            return connection.recv(65536).decode().strip()


class Load:
    """Clients that each send one request after another on a persistent connection.

    :param url: the base URL.
    """

    def __init__(self, url: str) -> None:
        self.failures: list[str] = []
        self.good: Counter[str] = Counter()
        self._address = url.removeprefix("http://")
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, call: Callable[[http.client.HTTPConnection], None], clients: int) -> None:
        for _ in range(clients):
            thread = threading.Thread(target=self._run, args=(call,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def wait(self, **counts: int) -> None:
        """Wait for at least so many good replies of each kind."""
        deadline = time.monotonic() + 20
        while any(self.good[kind] < count for kind, count in counts.items()):
            assert not self.failures, self.failures[:5]
            assert time.monotonic() < deadline, self.good
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop each client after its current reply."""
        self._over.set()
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive(), "a client waits for ever"

    def _run(self, call: Callable[[http.client.HTTPConnection], None]) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=15)
        while not self._over.is_set():
            try:
                call(connection)
            except ERRORS as error:
                self.failures.append(f"{call.__name__}: {type(error).__name__}: {error}")
                connection.close()
            else:
                self.good[call.__name__] += 1
        connection.close()


def ask(connection: http.client.HTTPConnection, prompt: str, stream: bool) -> str:
    """Send a chat request, check that the reply is good, and return its body."""
    body = {"messages": [{"role": "user", "content": prompt}], "stream": stream}
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    response = connection.getresponse()
    text = response.read().decode()  # raises where the last chunk is missing
    assert response.status == 200, f"{response.status} {text}"
    return text


def completion(connection: http.client.HTTPConnection) -> None:
    assert json.loads(ask(connection, "fault:slow-first-byte:0.02", False))["choices"]


def stream(connection: http.client.HTTPConnection) -> None:
    text = ask(connection, "fault:tokens:20:0.05", True)  # takes a second or more
    assert text.endswith("data: [DONE]\n\n"), text[-200:]
    assert text.count("data: ") > 20


@pytest.fixture
def backend() -> Iterator[FaultBackend]:
    server = FaultBackend().start()
    yield server
    server.stop()


def fetch(port: int, path: str, **headers: str) -> tuple[int, bytes]:
    """GET a path on a new connection; return status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=15)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_the_metrics_of_a_gateway_are_not_public_through_haproxy(tmp_path: Path) -> None:
    """One gateway with a port for its metrics, and one without, by mistake."""
    own, folders = free_port(), [tmp_path / name for name in ("own", "forgotten", "proxy")]
    for folder in folders:
        folder.mkdir()
    with (
        Gateway(folder=folders[0], config=f"[metrics]\nlisten = 127.0.0.1:{own}\n") as first,
        Gateway(folder=folders[1]) as second,
        HAProxy(first, second, folder=folders[2]) as proxy,
    ):
        for path in ("/metrics", "//metrics", "/metrics?a=b", "/metrics/", "/%6detrics"):
            for _ in range(2):  # one for each gateway
                status, body = fetch(proxy.port, path)
                assert status in (403, 404) and json.loads(body)["error"]["code"], path
        assert b"gatewayd_requests_total" in fetch(own, "/metrics")[1]
        # The second gateway shows them to local clients, but refuses requests through HAProxy.
        assert fetch(second.port, "/metrics")[0] == 200
        assert fetch(second.port, "/metrics", **{"X-Forwarded-For": "192.0.2.7"})[0] == 403
        if os.geteuid() == 0:
            assert os.stat(f"/proc/{proxy.pid}").st_uid == pwd.getpwnam("haproxy").pw_uid


def served(gateway: Gateway) -> int:
    """The number of completions that this gateway has served, streams included."""
    return len(re.findall(r'"route":"/v1/chat/completions".*"end":"complete"', gateway.output))


def test_a_gateway_that_is_stopped_under_load_costs_no_request(
    backend: FaultBackend, tmp_path: Path
) -> None:
    def folder(name: str) -> Path:
        (tmp_path / name).mkdir()
        return tmp_path / name

    with ExitStack() as stack:
        url = f"http://127.0.0.1:{backend.port}"
        first, second = (
            stack.enter_context(Gateway("--backend-url", url, folder=folder(name)))
            for name in ("first", "second")
        )
        proxy = stack.enter_context(HAProxy(first, second, folder=folder("proxy")))
        load = Load(proxy.url)
        load.start(completion, 8)
        load.start(stream, 12)
        load.wait(completion=50, stream=12)
        assert proxy.say("set server gateways/gateway1 state drain") == ""
        time.sleep(0.2)  # what was on its way has arrived
        first.stop()  # asserts that it exits with 0
        shared, left = served(first), served(second)
        load.wait(completion=load.good["completion"] + 50, stream=load.good["stream"] + 12)
        load.stop()
        assert load.failures == []
        assert shared > 20, "the load was not shared"
        assert served(second) >= left + 60


def test_a_websocket_passes_through_with_its_close_frames(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("gateway", "haproxy")]
    for folder in folders:
        folder.mkdir()
    with (
        RealtimeServer() as server,
        Gateway("--backend-url", server.url, folder=folders[0]) as gateway,
        HAProxy(gateway, gateway, folder=folders[1]) as proxy,
    ):
        url = f"ws{proxy.url.removeprefix('http')}/v1/realtime"
        for order, code in (("do:close:4000", 4000), ("do:die", 1011)):
            with connect(url, proxy=None) as client:
                for message in ("text", b"x" * 100_000):
                    client.send(message)
                    assert client.recv(timeout=5) == message
                client.send(order)
                with pytest.raises(ConnectionClosed) as closed:
                    client.recv(timeout=5)
            assert closed.value.rcvd is not None and closed.value.rcvd.code == code
