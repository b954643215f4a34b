"""What is installed beside the code: units, man page, files for other programs. They fit the code,
and the programs that they are for take them.
"""

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from twisted.internet.task import Clock

from gatewayd import __version__
from gatewayd.api.app import API
from gatewayd.daemon.drain import FLUSH_SECONDS
from gatewayd.exchange import End, Exchange
from gatewayd.settings.load import load
from gatewayd.settings.model import Settings
from gatewayd.tap import Options
from gatewayd.telemetry.access import Line
from gatewayd.telemetry.metrics import BackendState, PrometheusMetrics, Snapshot
from tests.programs import needs, path_of

ROOT = Path(__file__).parent.parent
DEPLOY, DOCS, ETC = ROOT / "deploy", ROOT / "docs", ROOT / "etc"
BIN = "/opt/gatewayd/bin"
#: What `systemd-analyze security` may say at most, in tenths.
EXPOSURE = 25


def run(program: str, *arguments: str, cwd: Path) -> str:
    """What a program prints; it must end with 0."""
    done = subprocess.run(
        [path_of(program), *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        env={**os.environ, "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""},
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


# -- dependencies --------------------------------------------------------------------------------


def test_the_lock_has_a_version_that_fits_of_every_dependency_with_its_checksums() -> None:
    entries = re.split(r"\n(?=[a-z])", (ROOT / "requirements.lock").read_text())[1:]
    locked = {}
    for entry in entries:
        pinned = Requirement(entry.partition(" ")[0])
        assert "--hash=sha256:" in entry, entry
        (version,) = pinned.specifier
        assert version.operator == "=="
        locked[canonicalize_name(pinned.name)] = version.version
    package = configparser.ConfigParser()
    package.read(ROOT / "setup.cfg")
    for line in package["options"]["install_requires"].split("\n")[1:]:
        needed = Requirement(line)
        version_of = locked[canonicalize_name(needed.name)]
        assert needed.specifier.contains(version_of), f"{line}: run make lock"


# -- systemd -------------------------------------------------------------------------------------


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, with programs that are there."""
    programs = Path(sys.executable).parent
    for unit in ("gatewayd.service", "gatewayd.socket"):
        text = (ETC / unit).read_text()
        (tmp_path / unit).write_text(text.replace(BIN, str(programs)))
    return tmp_path


def service() -> list[tuple[str, str]]:
    lines = (ETC / "gatewayd.service").read_text().splitlines()
    pairs = (line.partition("=") for line in lines if re.match("[A-Za-z]+=", line))
    return [(key, value) for key, _, value in pairs]


@needs("systemd-analyze")
def test_systemd_reports_no_mistake_in_the_units(units: Path) -> None:
    output = run(
        "systemd-analyze", "verify", "--man=no", "./gatewayd.service", "./gatewayd.socket",
        cwd=units,
    )  # fmt: skip
    assert output == ""


@needs("systemd-analyze")
def test_the_service_is_hardened(units: Path) -> None:
    output = run(
        "systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE - 1}",
        "--no-pager", "./gatewayd.service",
        cwd=units,
    )  # fmt: skip
    found = re.search(r"Overall exposure level for gatewayd.service: ([0-9.]+)", output)
    assert found and float(found[1]) < EXPOSURE / 10, output


def test_the_unit_uses_options_that_the_command_line_accepts() -> None:
    values = dict(service())
    program, *words = values["ExecStart"].split()
    assert program == f"{BIN}/twistd"
    assert words[:3] == ["--nodaemon", "--pidfile=", "gatewayd"]
    known = {f"--{name}" for name, *_ in Options.optParameters}
    assert {word for word in words[3:] if word.startswith("-")} <= known


def test_a_reload_is_a_command_that_waits_for_the_daemon() -> None:
    values = dict(service())
    assert values["ExecReload"] == f"{BIN}/gatewayd reload $MAINPID"
    assert values["Type"] == "notify"


def test_systemd_waits_longer_than_a_drain_takes() -> None:
    drain = Settings().gateway.drain
    assert float(dict(service())["TimeoutStopSec"]) >= drain + FLUSH_SECONDS + 5


def test_the_socket_is_where_the_settings_say() -> None:
    gateway, socket = Settings().gateway, configparser.ConfigParser(strict=False)
    socket.optionxform = str  # type: ignore[assignment,method-assign]  # as the docs of it say
    socket.read(ETC / "gatewayd.socket")
    assert socket["Socket"]["ListenStream"] == f"{gateway.listen}:{gateway.port}"


# -- the man page --------------------------------------------------------------------------------


@needs("groff")
def test_the_man_page_is_clean_and_names_every_option() -> None:
    page = DOCS / "gatewayd.8"
    output = run("groff", "-man", "-ww", "-b", "-z", "-Tutf8", str(page), cwd=ROOT)
    assert output == ""
    text = page.read_text().replace("\\-", "-")
    for name, *_ in (*Options.optParameters, *Options.optFlags, ("version",), ("help",)):
        assert f"--{name}" in text
    assert f'"gatewayd {__version__}"' in text


# -- metrics -------------------------------------------------------------------------------------


def families() -> dict[str, str]:
    """All metrics there are, by the name that a page has them under, with their type."""
    found = {}
    for metric in PrometheusMetrics(Clock()).registry.collect():
        names = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
        for suffix in names.get(metric.type, ("",)):
            found[metric.name + suffix] = metric.type
    assert len(found) > 10
    return found


def shown() -> PrometheusMetrics:
    """Metrics that have counted a request of each kind, and so have all of their labels."""
    metrics = PrometheusMetrics(Clock())
    metrics.watch(lambda: Snapshot(0, 0, {"b": BackendState(True, 0)}))
    for usage in (SimpleNamespace(prompt_tokens=1, completion_tokens=1), None):
        exchange = Exchange("id", 0.0, "", lambda _: None)
        exchange.stream, exchange.first_event, exchange.events = True, 0.0, 2
        exchange.backends, exchange.usage, exchange.bytes_in = ["b"], usage, 1
        exchange.finish(End.COMPLETE, 1.0)
        metrics(exchange)
    metrics.settle()
    return metrics


def labels() -> set[str]:
    samples = [s for metric in shown().registry.collect() for s in metric.samples]
    return {label for sample in samples for label in sample.labels} - {"le"}


def check_expression(expression: str) -> None:
    names = set(re.findall(r"\b(?:gatewayd|process)_\w+", re.sub(r'"[^"]*"', '""', expression)))
    assert names or 'up{job="gatewayd"}' in expression, expression
    assert names <= families().keys(), names - families().keys()
    used = {
        name
        for braces in re.findall(r"\{([^}]*)\}", expression)
        for name in re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", braces)
    }
    for by in re.findall(r"\bby \(([^)]*)\)", expression):
        used.update(name.strip() for name in by.split(","))
    assert used <= labels() | {"instance", "job", "le"}, expression
    for kind in re.findall(r'end=~?"([^"]*)"', expression):
        assert kind in {*End, "backend_.*"}


def rules() -> Iterator[dict[str, Any]]:
    for group in yaml.safe_load((DEPLOY / "prometheus-alerts.yml").read_text())["groups"]:
        yield from group["rules"]


def test_alerts_are_about_metrics_that_exist() -> None:
    for rule in rules():
        check_expression(rule["expr"])
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names)) > 5


@needs("promtool")
def test_every_alert_fires_when_it_should_and_only_then(tmp_path: Path) -> None:
    cases = Path(__file__).parent / "prometheus-alerts-test.yml"
    for file in (cases, DEPLOY / "prometheus-alerts.yml"):
        shutil.copy(file, tmp_path)
    run("promtool", "test", "rules", cases.name, cwd=tmp_path)
    tried = [
        (test["alertname"], bool(test.get("exp_alerts")))
        for case in yaml.safe_load(cases.read_text())["tests"]
        for test in case["alert_rule_test"]
    ]
    for rule in rules():
        assert (rule["alert"], True) in tried and (rule["alert"], False) in tried, rule["alert"]


def test_the_dashboard_shows_metrics_that_exist_and_all_of_them() -> None:
    board = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    for expression in expressions:
        check_expression(expression)
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    shown = " ".join(expressions)
    for name, kind in families().items():
        if kind != "histogram" or name.endswith("_bucket"):
            assert name in shown, name


def test_the_manual_lists_every_metric_and_its_labels() -> None:
    text = (DOCS / "operations.rst").read_text()
    for metric in PrometheusMetrics(Clock()).registry.collect():
        name = metric.name + ("_total" if metric.type == "counter" else "")
        assert f"``{name}``" in text, name
    for label in labels():
        assert f"``{label}``" in text, label


def test_the_manual_lists_every_field_of_an_access_line() -> None:
    text = (DOCS / "operations.rst").read_text()
    for field in Line.__struct_fields__:
        assert f"``{field}``" in text, field
    for end in End:
        assert f"``{end}``" in text, end


# -- containers ----------------------------------------------------------------------------------


@pytest.fixture
def manifests() -> dict[str, Any]:
    found = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    return {manifest["kind"]: manifest for manifest in found}


def kubernetes_settings(manifests: dict[str, Any], tmp_path: Path) -> Settings:
    """The settings as the container has them."""
    (container,) = manifests["Deployment"]["spec"]["template"]["spec"]["containers"]
    (mount,) = (m for m in container["volumeMounts"] if m["name"] == "settings")
    option, path = container["args"]
    assert option == "--config" and Path(path).parent == Path(mount["mountPath"])
    ini = tmp_path / Path(path).name
    ini.write_text(manifests["ConfigMap"]["data"][Path(path).name])
    environment = {entry["name"]: "a-key" for entry in container["env"]}
    return load({**image_environment(), **environment}, {}, str(ini))


def image_environment() -> dict[str, str]:
    text = (ROOT / "Containerfile").read_text().replace("\\\n", " ")
    (line,) = re.findall(r"^ENV (.*)$", text, re.MULTILINE)
    return dict(word.split("=", 1) for word in line.split())


def test_kubernetes_gives_a_drain_its_time(manifests: dict[str, Any], tmp_path: Path) -> None:
    settings = kubernetes_settings(manifests, tmp_path)
    pod = manifests["Deployment"]["spec"]["template"]["spec"]
    command = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert command[0] == "sleep"
    needed = float(command[1]) + settings.gateway.drain + FLUSH_SECONDS
    assert needed + 5 <= pod["terminationGracePeriodSeconds"] <= needed + 15
    ready = pod["containers"][0]["readinessProbe"]
    assert float(command[1]) > ready["periodSeconds"] * ready["failureThreshold"]


def test_kubernetes_probes_and_ports_are_those_of_the_gateway(
    manifests: dict[str, Any], tmp_path: Path
) -> None:
    settings = kubernetes_settings(manifests, tmp_path)
    assert [backend.name for backend in settings.backends] == ["gpu1"]
    assert settings.backends[0].api_key is not None
    (container,) = manifests["Deployment"]["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert settings.metrics.listen is not None
    assert ports == {"http": settings.gateway.port, "metrics": settings.metrics.listen[1]}
    assert settings.gateway.listen == "0.0.0.0"
    routes = {rule.rule for rule in API.app.url_map.iter_rules()}
    probes = {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}
    for probe, path in probes.items():
        request = container[f"{probe}Probe"]["httpGet"]
        assert request == {"path": path, "port": "http"}
        assert path in routes
    labels = manifests["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert manifests["Service"]["spec"]["selector"] == labels
    assert manifests["Service"]["spec"]["ports"][0]["targetPort"] == "http"


def test_the_image_is_one_that_runs_without_root_and_with_the_environment_alone() -> None:
    text = (ROOT / "Containerfile").read_text()
    assert re.search(r"^USER [1-9][0-9]*:[1-9][0-9]*$", text, re.MULTILINE)
    assert "\nSTOPSIGNAL SIGTERM\n" in text
    entry = json.loads(text.partition("\nENTRYPOINT ")[2])
    assert entry == ["twistd", "--nodaemon", "--pidfile=", "gatewayd"]
    settings = load({**image_environment(), "BACKEND_URL": "http://gpu1:8080"}, {}, None)
    assert (settings.gateway.listen, settings.gateway.port) == ("0.0.0.0", 8000)
    assert settings.backends[0].url == "http://gpu1:8080"
    assert settings.metrics.listen == ("0.0.0.0", 9100)
    ignored = (ROOT / ".containerignore").read_text().splitlines()
    assert "*" in ignored
    for needed in ("gatewayd", "twisted", "etc", "docs", "deploy", "setup.cfg", "README.rst"):
        assert f"!{needed}" in ignored, f"setup.cfg needs {needed}"
    assert "pip install --no-cache-dir --require-hashes -r requirements.lock" in text
    assert "!requirements.lock" in ignored


@needs("haproxy")
def test_haproxy_takes_its_configuration(tmp_path: Path) -> None:
    run("haproxy", "-c", "-f", str(DEPLOY / "haproxy.cfg"), cwd=tmp_path)


def test_haproxys_clocks_are_due_after_the_gateways() -> None:
    text, clocks = (DEPLOY / "haproxy.cfg").read_text(), Settings().timeouts
    found = dict(re.findall(r"^ +timeout ([a-z-]+) (\d+)s$", text, re.MULTILINE))
    assert float(found["server"]) > max(clocks.first_byte, clocks.idle)
    assert float(found["client"]) > max(clocks.request_body, clocks.client_write)
    assert float(found["http-request"]) >= clocks.request_head
    ports = re.findall(r"^ +server \S+ 127.0.0.1:(\d+)$", text, re.MULTILINE)
    assert len(ports) == 2
