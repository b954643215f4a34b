"""What a process imports: nothing of TLS, unless its settings use it; then all of it at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gatewayd.daemon.worker import WORKER_NUMBER, Handover, message
from gatewayd.settings.model import Settings
from gatewayd.telemetry.multiprocess import FOLDER_VARIABLE
from tests.certificates import certificate
from tests.faultbackend import FaultBackend
from tests.inifile import ini_file

#: Packages that only TLS needs. They take 12 MiB.
TLS = {"OpenSSL", "cryptography", "service_identity"}

#: Packages that Twisted imports for what no process here does.
UNUSED = {"automat"}

#: Makes the service as twistd does, with an ini file, and then runs the lines of a test.
START = """
import sys
from twisted.scripts.twistd import ServerOptions
from gatewayd import tap
twistd = ServerOptions()
twistd.parseOptions(["--nodaemon", "gatewayd", "--config", sys.argv[1]])
service = tap.makeService(twistd.subOptions)
"""
PRINT = "print(*sorted({name.partition('.')[0] for name in sys.modules}))\n"
PLAIN = "[gateway]\nport = 0\n[backend b]\nurl = http://127.0.0.1:9\n"
HTTPS = "[gateway]\nport = 0\n[backend b]\nurl = https://127.0.0.1:9\n"


def run(folder: Path, ini: str, then: str = PRINT, handover: Handover | None = None) -> str:
    """The output of a process that makes the service from this ini file."""
    environment = dict(os.environ)
    if handover is not None:
        environment |= {WORKER_NUMBER: "0", FOLDER_VARIABLE: str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", START + then, ini_file(folder, ini)],
        input=b"" if handover is None else message(handover),
        env=environment,
        cwd=folder,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def packages(output: str) -> set[str]:
    return set(output.splitlines()[-1].split())


def test_a_process_without_tls_does_not_import_it(tmp_path: Path) -> None:
    assert not (TLS | UNUSED) & packages(run(tmp_path, PLAIN))


def test_neither_a_supervisor_nor_a_worker_without_tls_imports_it(tmp_path: Path) -> None:
    workers = PLAIN.replace("[backend", "workers = 2\n[backend")
    assert not (TLS | UNUSED) & packages(run(tmp_path, workers))
    handover = Handover(Settings(), sockets=0, kept=False)
    assert not (TLS | UNUSED) & packages(run(tmp_path, PLAIN, handover=handover))


def test_a_process_imports_only_its_own_kind_of_service(tmp_path: Path) -> None:
    """The modules of the other kind would take half a MiB."""
    kinds = "{'gatewayd.daemon.service', 'gatewayd.daemon.supervisor'}"
    then = f"print(*sorted({kinds} & {{*sys.modules}}))"
    workers = PLAIN.replace("[backend", "workers = 2\n[backend")
    assert run(tmp_path, PLAIN, then).split() == ["gatewayd.daemon.service"]
    assert run(tmp_path, workers, then).split() == ["gatewayd.daemon.supervisor"]


def test_an_https_backend_and_an_own_certificate_import_it_at_the_start(tmp_path: Path) -> None:
    assert packages(run(tmp_path, HTTPS)) >= TLS
    files = "[gateway]\ntls_certificate = {}\ntls_key = {}\n".format(*certificate(tmp_path, "own"))
    assert packages(run(tmp_path, files)) >= TLS


RELOAD = """
from pathlib import Path
from twisted.internet import reactor
def last():
    config = Path(sys.argv[1])
    config.write_text(config.read_text().replace("http:", "https:"))
    service.reload()
    reactor.stop()
reactor.callWhenRunning(last)
service.startService()
reactor.run()
"""


def test_a_reload_that_adds_an_https_backend_imports_it(tmp_path: Path) -> None:
    assert packages(run(tmp_path, PLAIN, RELOAD + PRINT)) >= TLS


#: Asks the backend for its models, and prints which modules that imported.
HANDSHAKE = """
from twisted.internet import reactor
before = set(sys.modules)
target, = service.serving.generation.targets
def done(_):
    print("imported:", *sorted(set(sys.modules) - before))
    reactor.stop()
target.backend.models("id").addBoth(done)
reactor.run()
"""


@pytest.mark.parametrize("trusted", [True, False], ids=["trusted", "refused"])
def test_a_handshake_imports_nothing(tmp_path: Path, trusted: bool) -> None:
    """No descriptor may be left then to read a module with."""
    pair = certificate(tmp_path, "backend")
    with FaultBackend(tls=pair) as backend:
        ini = HTTPS.replace("https://127.0.0.1:9", backend.url)
        ini += f"tls_ca = {pair[0]}\n" if trusted else ""
        assert run(tmp_path, ini, HANDSHAKE).splitlines()[-1].strip() == "imported:"
