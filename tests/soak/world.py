"""One run: a gateway, its backends and some clients, all made from one seed."""

from __future__ import annotations

import gc
import hashlib
import json
import random
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import attrs
from twisted.internet import error

from gatewayd.daemon.service import GatewayService
from gatewayd.routing.target import Target
from gatewayd.settings.load import load
from gatewayd.settings.model import Settings
from tests.certificates import certificate

from .backend import Attempt, BackendEnd
from .client import Ask, ClientEnd
from .network import Connector, Network, Plain, Secure
from .plans import EVENT_LIMIT, REPLY_LIMIT, Plan, Planner

#: The token of clients and the key of backends. Neither may reach the other side.
TOKEN, KEY = "gw-client-token", "sk-backend-key"

#: Virtual seconds without a byte for any client after which a run counts as hanging.
LONGEST = 100.0

#: Seconds after the last disconnect of a client, after which nothing may be pending.
SETTLED = 30.0


@attrs.frozen
class Certificates:
    """One certificate for all: the gateway's and the backends'."""

    certificate: str
    key: str
    server: ssl.SSLContext
    client: ssl.SSLContext

    @classmethod
    def make(cls, folder: Path) -> Certificates:
        made, key = certificate(folder, "soak")
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(made, key)
        client = ssl.create_default_context(cafile=made)
        return cls(made, key, server, client)


class World:
    """
    :param folder: where its access log is written.
    """

    def __init__(self, seed: int, folder: Path, certificates: Certificates) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        random.seed(seed)  # for the jitter of a backend's back-off
        self.attempts: list[Attempt] = []
        self.backends: list[BackendEnd] = []
        self.clients: list[ClientEnd] = []
        self.problems: list[str] = []
        self.most_buffered = 0
        self._log = folder / f"access-{seed}.log"
        self._log.unlink(missing_ok=True)
        self.targets: set[Target] = set()
        self._certificates = certificates
        self._planner = Planner(self.random)
        self._network = Network(self.random, self._on_connect)
        # Twisted gathers small writes of a TLS client for a turn of the global reactor.
        self._clock = patch("twisted.protocols.tls._get_default_clock", lambda: self._network)
        self._clock.start()
        pick = self.random.choice
        self._ports = {9000 + n: pick([False, False, True]) for n in range(pick([1, 1, 2, 3]))}
        self._capacity = pick([2_000, 16_000, 64_000, 256_000])
        self.secure = pick([False, False, True])
        self.tokens = pick([False, True])
        self._choose_reask()
        self._variables = self._settings()
        self.service = GatewayService(self._load(), self._load, self._network)
        self.service.recorder.startService()
        self.service.privilegedStartService()
        self._calls: list[tuple[float, Callable[[], Any]]] = []

    # -- the gateway ---------------------------------------------------------------------------

    def _settings(self) -> dict[str, str]:
        pick = self.random.choice
        first_byte, total = pick([("3", "0"), ("3", "30"), ("0", "30")])  # a call is due
        variables = {
            "TIMEOUTS_REQUEST_HEAD": "2",
            "TIMEOUTS_REQUEST_BODY": "4",
            "TIMEOUTS_CLIENT_IDLE": "3",
            "TIMEOUTS_CLIENT_WRITE": "3",
            "TIMEOUTS_CONNECT": "1",
            "TIMEOUTS_FIRST_BYTE": first_byte,
            "TIMEOUTS_IDLE": "2",
            "TIMEOUTS_TOTAL": total,
            "TIMEOUTS_PING": pick(["0", "0.5"]),
            "LIMITS_EVENT": str(EVENT_LIMIT),
            "LIMITS_REPLY": str(REPLY_LIMIT),
            "LIMITS_REQUEST_BODY": "65536",
            "LIMITS_IN_FLIGHT": pick(["3", "100"]),
            "LIMITS_CONNECTIONS": pick(["4", "100"]),
            "LOG_ACCESS": str(self._log),
            "ROUTING_REASK": "before-commit" if self.reask else "never",
            "ROUTING_ATTEMPTS": str(max(2, self.attempts_allowed)),
            "TIMEOUTS_PATIENCE": self._patience,
            **self._routing(),
        }
        for port, secure in self._ports.items():
            start = f"BACKEND_B{port}"
            variables[f"{start}_URL"] = f"http{'s' if secure else ''}://127.0.0.1:{port}"
            variables[f"{start}_API_KEY"] = KEY
            if secure:
                variables[f"{start}_TLS_CA"] = self._certificates.certificate
            if self.random.random() < 0.2:
                variables[f"{start}_IN_FLIGHT"] = "2"
        if self.secure:
            variables["GATEWAY_TLS_CERTIFICATE"] = self._certificates.certificate
            variables["GATEWAY_TLS_KEY"] = self._certificates.key
        if self.tokens:
            variables["TOKEN_T_SHA256"] = hashlib.sha256(TOKEN.encode()).hexdigest()
        return {f"GATEWAYD_{name}": value for name, value in variables.items()}

    def _routing(self) -> dict[str, str]:
        """The order of backends, by a generator of its own as :meth:`_choose_reask`."""
        choose = random.Random(f"routing {self.seed}").choice
        variables = {"ROUTING_AFFINITY": choose(["prompt", "session", "off"])}
        for port in self._ports:
            variables[f"BACKEND_B{port}_WEIGHT"] = choose(["1", "1", "0.5", "3"])
            variables[f"BACKEND_B{port}_PRIORITY"] = choose(["0", "0", "1"])
        return variables

    def _choose_reask(self) -> None:
        """Choices of their own generator, so that the others of a seed stay what they were."""
        choose = random.Random(f"reask 3 {self.seed}").choice
        self.reask = choose([False, False, True])
        #: How many backends may execute a request.
        self.attempts_allowed = choose([2, 3]) if self.reask else 1
        self._patience = choose(["0", "0.2", "0.4"]) if self.reask else "0"
        if self.reask:
            self._ports |= {9000 + n: False for n in range(choose([2, 4]))}

    def _load(self) -> Settings:
        return load(self._variables)

    def _reload(self) -> None:
        """Change some settings, or write a mistake into them, which must change nothing."""
        pick, variables = self.random.choice, self._variables
        what = pick(["nothing", "limits", "clocks", "key", "mistake"])
        if what == "limits":
            variables["GATEWAYD_LIMITS_IN_FLIGHT"] = pick(["3", "100"])
            variables["GATEWAYD_LIMITS_REQUEST_BODY"] = pick(["65536", "80000"])
        elif what == "clocks":
            variables["GATEWAYD_TIMEOUTS_PING"] = pick(["0", "0.5", "1"])
        elif what == "key":  # the same as another server
            variables["GATEWAYD_BACKEND_B9000_API_KEY"] = KEY + pick(["1", "2"])
        elif what == "mistake":
            variables["GATEWAYD_BACKEND_B9000_URL"] = "ftp://127.0.0.1"
        self.service.reload()
        if what == "mistake":
            scheme = "https" if self._ports[9000] else "http"
            variables["GATEWAYD_BACKEND_B9000_URL"] = f"{scheme}://127.0.0.1:9000"

    def _on_connect(self, port: int, connector: Connector) -> None:
        chance = self.random.random()
        if chance < 0.05:
            self.at(0.0, lambda: connector.fail(error.ConnectionRefusedError()))
        elif chance < 0.08:
            return  # a black hole
        else:
            delay = self.random.choice([0.0, 0.0, 0.05, 0.5])
            self.at(delay, lambda: self._connected(port, connector))

    def _connected(self, port: int, connector: Connector) -> None:
        socket = connector.succeed(self._capacity)
        if socket is None:
            return
        secure = self._ports[port]
        end = Secure(socket, self._certificates.server, True) if secure else Plain(socket)
        early = self.random.random() < 0.2
        self.backends.append(BackendEnd(f"b{port}", end, self._plan, self.attempts, early))

    def _plan(self, id: str, path: str, backend: str) -> Plan:
        stream = id.endswith("-s")
        return self._planner.plan(id, stream, path == "/v1/audio/speech")

    # -- clients -------------------------------------------------------------------------------

    def add_client(self, number: int) -> None:
        pick, chance = self.random.choice, self.random.random
        minor = pick([1, 1, 1, 1, 0])
        count = 1 if minor == 0 else pick([1, 1, 2, 5, 30])
        asks = [self._ask(f"r{self.seed}-{number}-{n}", minor, count > 1) for n in range(count)]
        rate = pick([(1 << 20, 0.0)] * 4 + [(1000, 0.05), (5000, 0.2), (0, 0.0)])
        stays = chance() < 0.7
        leaves = None if stays else (self._network.seconds() + chance() * 4, chance() < 0.5)
        if not rate[0]:  # a paused backend would not see the gateway close
            leaves = leaves or (self._network.seconds() + 20, False)
        socket = self._network.accept("127.0.0.1", self._capacity)
        secure = self._certificates.client
        end = Secure(socket, secure, False) if self.secure else Plain(socket)
        pause = pick([0.0, 0.0, 0.01, 0.3])
        self.clients.append(ClientEnd(end, asks, minor, rate, leaves, pause, self.random))

    def _ask(self, id: str, minor: int, many: bool) -> Ask:
        chance, pick = self.random.random, self.random.choice
        stream = chance() < 0.6
        path = "/v1/chat/completions"
        if chance() < 0.15:
            path, stream = "/v1/audio/speech", False
        id += "-s" if stream else "-j"
        size = pick([0, 0, 200, 10_000]) if not many else 0
        request: dict[str, Any] = {"model": "m", "input": "x" * size}
        if path != "/v1/audio/speech":
            messages = [{"role": "user", "content": id + "z" * size}]
            request = {"model": "m", "stream": stream, "messages": messages}
        body = json.dumps(request).encode()
        headers = ["Host: g", f"X-Request-ID: {id}", "Content-Type: application/json"]
        fault = ""
        if self.tokens:
            if chance() < 0.05:
                fault = "token"
            else:
                headers.append(f"Authorization: Bearer {TOKEN}")
        if chance() < 0.05:
            body, fault = body[:-1], fault or "json"
        if chance() < 0.1:
            headers.append("Connection: close")
        if minor == 1 and chance() < 0.2:
            headers.append("Transfer-Encoding: chunked")
            framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        else:
            headers.append(f"Content-Length: {len(body)}")
            framed = body
        head = "\r\n".join([f"POST {path} HTTP/1.{minor}", *headers, "", ""]).encode()
        return Ask(id, path, stream, body, head + framed, fault)

    # -- running -------------------------------------------------------------------------------

    def at(self, delay: float, call: Callable[[], Any]) -> None:
        """Call something after some seconds, without a timer of the gateway."""
        self._calls.append((self._network.seconds() + delay, call))

    def run(self, connections: int) -> None:
        """Let ``count`` clients connect, and run until nothing happens any more."""
        for number in range(connections):
            delay = self.random.random() * 3
            self.at(delay, lambda number=number: self.add_client(number))  # type: ignore[misc]
        if self.random.random() < 0.4:
            for _ in range(self.random.choice([1, 1, 4])):
                self.at(self.random.random() * 4, self._reload)
        self._until(lambda: len(self.clients) == connections and all(c.done for c in self.clients))
        self.left_at = self._network.seconds()
        self._until(lambda: self._network.seconds() > self.left_at + SETTLED)
        gc.collect()

    def _until(self, reached: Callable[[], bool]) -> None:
        received, since = -1, 0.0
        while not reached():
            now = self._network.seconds()
            if received != (sofar := sum(len(c.received) for c in self.clients)):
                received, since = sofar, now
            if now > since + LONGEST:
                waiting = [c.asks[0].id for c in self.clients if not c.done]
                self.problems.append(f"after {LONGEST} s these clients still wait: {waiting}")
                return
            self._settle(now)
            if reached():
                return
            times = [when for when, _ in self._calls]
            times += [call.getTime() for call in self._network.getDelayedCalls()[:1]]
            times += [end.wake for end in self._ends() if end.wake is not None]
            soonest = min((t for t in times if t > now), default=now + 1.0)
            self._network.advance(soonest - now)

    def _ends(self) -> list[ClientEnd | BackendEnd]:
        return [*self.clients, *self.backends]

    def _settle(self, now: float) -> None:
        """Handle all that is ready, without advancing the clock."""
        for _ in range(20_000):
            due = [call for call in self._calls if call[0] <= now]
            self._calls = [call for call in self._calls if call[0] > now]
            for _, call in due:
                call()
            moved = bool(due)
            for end in self._ends():
                moved = end.act(now) or moved
            moved = self._network.turn() or moved
            self._look()
            calls = self._network.getDelayedCalls()
            if calls and calls[0].getTime() <= now:
                self._network.advance(0)
            elif not moved:
                return
        self.problems.append(f"the loop is busy without end at {now}")

    # -- what is looked at all the time --------------------------------------------------------

    def _look(self) -> None:
        self.targets |= set(self.service.serving.api.router.targets)
        for target in self.targets:
            agent = getattr(target.backend, "_agent", None)
            for connection in getattr(agent, "_idle", ()):
                self._look_at_idle(connection)
        for connection in self._network.connections:
            waiting = len(connection.dataBuffer) - connection.offset + connection._tempDataLen
            self.most_buffered = max(self.most_buffered, waiting)

    def _look_at_idle(self, connection: Any) -> None:
        transport = connection.transport
        tcp = getattr(transport, "transport", transport)
        if not hasattr(tcp, "socket"):
            said = "is closed"
        elif not self._network.is_read(tcp):
            said = "is not read"
        elif tcp.dataBuffer or tcp._tempDataLen:
            said = "has unsent bytes"
        else:
            return
        self.problems.append(f"a connection in the pool {said}")

    @property
    def pending(self) -> list[str]:
        """What is still under way."""
        found = [str(call) for call in self._network.getDelayedCalls()]
        site, api = self.service.serving.site, self.service.serving.api
        found += [f"exchange {exchange.id}" for exchange in site.state.active]
        found += [f"channel {channel}" for channel in site.state.connections]
        for target in self.targets:
            if target.in_flight:
                found.append(f"{target.in_flight} requests in flight at {target.backend.name}")
        if api._admission._in_flight:
            found.append(f"{api._admission._in_flight} requests admitted")
        return found + [f"connection {c}" for c in self._network.connections]

    def log_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    def close(self) -> None:
        self.service.recorder.stopService()
        self._log.unlink(missing_ok=True)
        self._clock.stop()
