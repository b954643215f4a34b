"""The command line of ``twistd gatewayd``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from twisted.application.service import IServiceMaker
from twisted.plugin import getPlugins

import gatewayd
from gatewayd.settings.model import SETTINGS, BackendSettings, GatewaySettings, Settings
from gatewayd.tap import Options, makeService

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def environ(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without settings."""
    for name in list(os.environ):
        if name in ("PORT", "BACKEND_URL") or name.startswith("GATEWAYD_"):
            monkeypatch.delenv(name)


def parse(*arguments: str) -> Options:
    options = Options()
    options.parseOptions(list(arguments))
    return options


def leave(*arguments: str) -> object:
    """The exit status of a command line that ends the program."""
    with pytest.raises(SystemExit) as caught:
        parse(*arguments)
    return caught.value.code


def test_without_options_there_are_the_defaults() -> None:
    assert parse().settings == Settings()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--port", "1", "--listen", "::1", "--backend-url", "http://a/v1"),
        ("-p1", "-l::1", "-bhttp://a/v1"),
    ],
)
def test_options_override_the_environment(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setenv("PORT", "2")
    monkeypatch.setenv("BACKEND_URL", "http://b")
    assert parse(*arguments).settings == Settings(
        gateway=GatewaySettings(listen="::1", port=1),
        backends=(BackendSettings("default", "http://a"),),
    )


def test_load_reads_the_same_sources_again_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "gatewayd.ini"
    path.write_text("[gateway]\nport = 1\ndrain = 1\n")
    monkeypatch.chdir(tmp_path)
    options = parse("--config", "gatewayd.ini", "--port", "3")
    monkeypatch.chdir("/")
    path.write_text("[gateway]\nport = 2\ndrain = 2\n")
    assert options.settings.gateway == GatewaySettings(port=3, drain=1.0)
    assert options.load().gateway == GatewaySettings(port=3, drain=2.0)


def test_mistakes_are_lines_on_standard_error_and_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "gatewayd.ini"
    path.write_text("[gateway]\nport = abc\n")
    monkeypatch.setenv("GATEWAYD_CONFIG", str(path))
    monkeypatch.setenv("BACKEND_URL", "gpu1")
    assert leave("--port", "x") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(": ")[:2] for line in err.splitlines()] == [
        [f"{path}:2", "[gateway] port"],
        ["environment", "BACKEND_URL"],
        ["command line", "--port"],
    ]


@pytest.mark.parametrize("arguments", [("--prot", "1"), ("--port",), ("extra",)])
def test_a_wrong_command_line_is_one_line_and_status_1(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert leave(*arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("command line: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "summary"),
    [
        ((), "listens on 127.0.0.1:8000, no backend, requests are echoed"),
        (("-l::1", "-bhttp://a"), "listens on [::1]:8000, backends default"),
    ],
)
def test_check_prints_a_summary_of_the_settings(
    arguments: tuple[str, ...], summary: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert leave("--check", *arguments) == 0
    assert capsys.readouterr() == (f"CONFIG ok: {summary}.\n", "")


def test_check_warns_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert leave("--check", "--listen", "0.0.0.0") == 0
    out, err = capsys.readouterr()
    assert out.startswith("CONFIG ok: ")
    assert err.startswith("[gateway] listen: 0.0.0.0 is not a loopback address")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_check_and_start_report_the_same_if_a_backend_cannot_be_built(
    workers: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no such cipher")

    monkeypatch.setattr("gatewayd.backend.openai.OpenAIBackend.__init__", fails)
    monkeypatch.setenv("GATEWAYD_GATEWAY_WORKERS", workers)
    monkeypatch.setattr("gatewayd.daemon.signals.hold", lambda: None)
    monkeypatch.setattr("gatewayd.daemon.descriptors.raise_limit", lambda: None)
    monkeypatch.setattr("gatewayd.daemon.reactor.use_monotonic_time", lambda _: None)
    problem = "[backend default]: cannot be used (no such cipher)\n"
    assert leave("--check", "--backend-url", "http://a") == 1
    assert capsys.readouterr() == ("", problem)
    options = parse("--backend-url", "http://a")
    with pytest.raises(SystemExit) as caught:
        makeService(options)
    assert (caught.value.code, capsys.readouterr()) == (1, ("", problem))


def test_check_of_a_broken_file_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert leave("--check", "--config", str(tmp_path)) == 1
    assert capsys.readouterr() == (
        "",
        f"{tmp_path}: is a directory, expected a regular file\n",
    )


def test_version_is_that_of_gatewayd(capsys: pytest.CaptureFixture[str]) -> None:
    assert leave("--version") == 0
    assert capsys.readouterr().out == f"gatewayd {gatewayd.__version__}\n"


def test_help_names_every_option_with_its_default() -> None:
    text = " ".join(Options().getUsage(width=200).split())
    for name in ("--backend-url=", "--check", "--config=", "--listen=", "--port=", "--version"):
        assert name in text
    for key in ("listen", "port"):
        assert f"(default: {SETTINGS['gateway'][key].default})" in text


def test_twistd_finds_the_plugin() -> None:
    [maker] = [maker for maker in getPlugins(IServiceMaker) if maker.tapname == "gatewayd"]
    assert maker.options is Options


@pytest.mark.parametrize("mode", [("--nodaemon",), ()])
def test_after_a_mistake_twistd_prints_one_line_and_opens_nothing(
    tmp_path: Path, mode: tuple[str, ...]
) -> None:
    path = tmp_path / "gatewayd.ini"
    path.write_text("[gateway]\nport = 70000\n")
    twistd = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]
    result = subprocess.run(
        [*twistd, *mode, "gatewayd", "--config", str(path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == (
        f"{path}:2: [gateway] port: '70000' is not valid, expected a whole number from 0 to 65535\n"
    )
    assert [entry.name for entry in tmp_path.iterdir()] == ["gatewayd.ini"]
