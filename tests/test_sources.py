"""The sources: what each may contain, and the mistakes in it."""

import subprocess
import sys
from pathlib import Path

import pytest

from gatewayd.settings.declaring import Setting
from gatewayd.settings.load import SettingsError, load
from gatewayd.settings.model import BackendSettings, GatewaySettings, Settings
from gatewayd.settings.values import Secret
from tests.inifile import EVERY, ini_file, ini_problems, problems


def test_a_file_may_have_a_byte_order_mark_CRLF_indents_and_upper_case_keys(tmp_path: Path) -> None:
    path = ini_file(
        tmp_path, "\ufeff; comment\r\n[gateway] # here too\r\n  PORT = 1\r\n  listen=::1\r\n"
    )
    assert load({}, path=path).gateway == GatewaySettings(listen="::1", port=1)


def test_the_keys_of_a_repeated_section_are_checked_too(tmp_path: Path) -> None:
    text = "[log]\nlevel = info\n[log]\nlevel = x\n[log]\nlevel = y\n"
    assert [line.split(": ")[0] for line in ini_problems(tmp_path, text)] == [
        "FILE:3", "FILE:4", "FILE:4", "FILE:5", "FILE:6", "FILE:6",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[gateway]\n\nport = \xff\n", ":3: is not UTF-8, expected a text file"),
        (b"[gateway]\nport = 1\0\n", ":2: has a NUL byte, expected a text file"),
        (b"#" * 2**20 + b"\n", ": is too large, expected a file of at most 1 MiB"),
    ],
)
def test_a_file_that_is_not_text_is_one_mistake(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    path = tmp_path / "x.ini"
    path.write_bytes(content)
    assert problems(path=str(path)) == [f"FILE{expected}"]


@pytest.mark.parametrize("path", ["/", "/gone\n/x", "/dev/zero", "a\0b", "x" * 5000])
def test_a_path_that_cannot_be_read_is_one_mistake(path: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load({"GATEWAYD_CONFIG": path})
    [line] = caught.value.problems
    assert "expected a " in line
    assert line.isprintable()


def test_a_file_without_permission_is_one_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tests may run as root, who can read any file.
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = ini_file(tmp_path, "")
    monkeypatch.setattr("os.open", refuse)
    assert problems(path=path) == [
        "FILE: cannot be read (Permission denied), expected a readable file"
    ]


@pytest.mark.parametrize("piped", [True, False])
def test_standard_input_may_be_a_file_and_no_pipe(tmp_path: Path, piped: bool) -> None:
    path = tmp_path / "x.ini"
    path.write_text("[gateway]\nport = 1\n")
    check = "from twisted.scripts.twistd import run; run()"
    command = [sys.executable, "-c", check, "gatewayd", "--check", "--config", "/dev/stdin"]
    with path.open() as file:
        done = subprocess.run(
            command,
            stdin=None if piped else file,
            input="[gateway]\n" if piped else None,
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            text=True,
            timeout=30,
        )
    if piped:
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "/dev/stdin: is a pipe, expected a regular file\n"
    else:
        assert (done.returncode, done.stderr) == (0, "")


def test_only_the_first_line_of_a_value_is_quoted(tmp_path: Path) -> None:
    [line] = ini_problems(tmp_path, "[log]\nlevel = info\n  api_key = sk-secret\n")
    assert line.startswith("FILE:2: [log] level: 'info' and more lines is unknown, expected")


@pytest.mark.parametrize(
    "text",
    [
        "api_key = sk-very secret",
        "api_key = sk-véry",
        "api_key =\nsk-very1=",
        "api_key sk-very",
        "api_key: sk-very=",
        "api_key_sk-very=",
        "sk-very2 = 1\nsk-very2 = 1",
        "url = http://sk-very@a",
        "url = http://u:sk-very@a:x/?sk-very#sk-very",
        "url = http://a/?key=sk-very",
        "url = sk-very",
        "url = http://[sk-very",
        "url = http://a:sk-very",
        "idle = 1\n  api_key = sk-very",
        "api_key_file = sk-very",
        "api_key = sk-very\napi_key_file = /dev/null",
    ],
)
def test_no_message_shows_a_secret(tmp_path: Path, text: str) -> None:
    lines = ini_problems(tmp_path, f"[backend a]\n{text}\n")
    assert lines
    assert "very" not in "\n".join(lines)


def test_an_empty_variable_with_a_short_name_counts_as_unset() -> None:
    assert load({"PORT": "", "BACKEND_URL": " "}) == Settings()


def test_a_long_variable_name_overrides_a_short_one() -> None:
    assert load({"PORT": "1", "GATEWAYD_GATEWAY_PORT": "2"}).gateway.port == 2


@pytest.mark.parametrize(("section", "key", "setting"), EVERY)
def test_a_variable_reaches_every_setting(section: str, key: str, setting: Setting) -> None:
    name = f"GATEWAYD_{section.replace(' ', '_')}_{key}".upper()
    text = "0.0.0.0 : ÿ"
    if key in ("api_key_file", "token_file", "access", "models", "tls_key"):
        text = "\a"  # neither a file that is there nor the name of one, or of a model
    if section.endswith(" NAME"):
        assert any(line.startswith(f"environment: {name}: ") for line in problems({name: text}))
    else:
        [line] = problems({name: text})
        assert line.startswith(f"environment: {name}: ")


@pytest.mark.parametrize(
    "variable",
    [
        "GATEWAYD_PORT=tcp://10.0.0.1:8000",
        "GATEWAYD_PORT_8000_TCP_ADDR=10.0.0.1",
        "GATEWAYD_SERVICE_HOST=10.0.0.1",
        "GATEWAYD_GATEWAY_PORT=tcp://10.0.0.1:8000",
        "GATEWAYD_BACKEND_SERVICE_HOST=10.0.0.1",
        "GATEWAYD_BACKEND_SERVICE_PORT_HTTP=80",
        "GATEWAYD_BACKEND_PORT_80_TCP=tcp://10.0.0.1:80",
        "GATEWAYD_BACKEND_PORT_80_TCP_PROTO=tcp",
        "GATEWAYD_HOME=/srv",
        "GATEWAYD_=x",
        "GATEWAYDX_GATEWAY_PORT=x",
        "GATEWAY_PORT=x",
    ],
)
def test_variables_of_other_programs_are_ignored(variable: str) -> None:
    name, _, text = variable.partition("=")
    assert load({name: text}) == Settings()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("GATEWAYD_GATEWAY_PROT", "unknown key, did you mean PORT? expected one of LISTEN,"),
        ("GATEWAYD_LOG_", "unknown key, expected one of FORMAT, LEVEL, ACCESS after GATEWAYD_"),
        ("GATEWAYD_BACKEND_A_ULR", "unknown key, did you mean URL? expected one of URL,"),
        (
            "GATEWAYD_BACKEND_URL",
            "does not name the backend, expected GATEWAYD_BACKEND_NAME_URL or BACKEND_URL",
        ),
        ("GATEWAYD_BACKEND_API_KEY", "does not name the backend, expected GATEWAYD_BACKEND_N"),
        ("GATEWAYD_BACKEND__URL", "has no proper name, expected"),
        ("GATEWAYD_BACKEND_ä_URL", "has no proper name, expected"),
    ],
)
def test_an_unknown_key_after_the_name_of_a_section_is_a_mistake(name: str, reason: str) -> None:
    [line] = problems({name: "http://a"})
    assert line.startswith(f"environment: {name}: {reason}")


def test_a_variable_finds_a_backend_regardless_of_case_and_punctuation(tmp_path: Path) -> None:
    path = ini_file(tmp_path, "[backend My-GPU.1]\nurl = http://a\n[backend b]\nurl = http://b\n")
    environ = {
        "GATEWAYD_BACKEND_MY_GPU_1_URL": "http://c",
        "GATEWAYD_BACKEND_MY_GPU_1_FIRST_BYTE": "3",
        "GATEWAYD_BACKEND_NEW_ONE_URL": "http://d",
        "GATEWAYD_BACKEND_NEW_ONE_API_KEY": "k",
    }
    assert load(environ, path=path).backends == (
        BackendSettings("My-GPU.1", "http://c", first_byte=3.0),
        BackendSettings("b", "http://b"),
        BackendSettings("new_one", "http://d", api_key=Secret("k")),
    )


def test_a_variable_that_may_mean_two_backends_is_a_mistake(tmp_path: Path) -> None:
    path = ini_file(tmp_path, "[backend a-1]\nurl = http://a\n[backend a.1]\nurl = http://b\n")
    assert problems({"GATEWAYD_BACKEND_A_1_IDLE": "1"}, None, path) == [
        "environment: GATEWAYD_BACKEND_A_1_IDLE: matches [backend a-1] and [backend a.1], "
        "expected names that differ in more than case"
    ]


def test_a_backend_without_a_url_is_a_mistake() -> None:
    [line] = problems({"GATEWAYD_BACKEND_A_IDLE": "1"})
    assert line.startswith("environment: GATEWAYD_BACKEND_A_URL: is missing, expected a base")
