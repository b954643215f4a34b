"""All sources together: which one wins, and all mistakes at once."""

import pickle
import re
import traceback
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatewayd.settings import values
from gatewayd.settings.files import File
from gatewayd.settings.load import SettingsError, load
from gatewayd.settings.model import (
    BackendSettings,
    GatewaySettings,
    LimitSettings,
    LogSettings,
    Settings,
    TimeoutSettings,
)
from tests.certificates import certificate
from tests.inifile import EVERY, ini_file, problems, read


def test_without_any_source_there_are_the_defaults() -> None:
    assert load({}) == Settings()
    assert Settings().gateway == GatewaySettings(
        listen="127.0.0.1",
        port=8000,
        root_path="",
        api_title="gatewayd",
        request_id_header="X-Request-ID",
        drain=30.0,
    )
    assert Settings().timeouts == TimeoutSettings(10, 60, 60, 60, 5, 600, 0, 120, 0, 15)
    assert Settings().limits == LimitSettings(
        2**14, 2**25, 64, 2**22, 2**26, connections=10000, in_flight=1000
    )
    assert Settings().log == LogSettings("json", "info", "-")
    assert Settings().backends == ()


def test_each_source_overrides_those_before_it(tmp_path: Path) -> None:
    path = ini_file(tmp_path, "[gateway]\nport = 1\nlisten = 127.0.0.2\ndrain = 3\n")
    settings = load({"PORT": "2", "GATEWAYD_GATEWAY_LISTEN": "::1"}, {"port": "4"}, path)
    assert settings.gateway == GatewaySettings(listen="::1", port=4, drain=3.0)
    assert load({"PORT": "2"}, None, path).gateway.port == 2


def test_GATEWAYD_CONFIG_names_the_file_unless_the_command_line_does(tmp_path: Path) -> None:
    path = ini_file(tmp_path, "[gateway]\nport = 1\n")
    other = tmp_path / "other.ini"
    other.write_text("[gateway]\nport = 2\n")
    assert load({"GATEWAYD_CONFIG": str(other)}).gateway.port == 2
    assert load({"GATEWAYD_CONFIG": str(other)}, path=path).gateway.port == 1
    assert load({"GATEWAYD_CONFIG": ""}).gateway.port == 8000


def test_a_wrong_value_is_a_mistake_even_if_another_source_overrides_it(tmp_path: Path) -> None:
    assert len(problems({"PORT": "80"}, None, ini_file(tmp_path, "[gateway]\nport = x\n"))) == 1


def test_settings_are_frozen_and_equal_when_read_again(tmp_path: Path) -> None:
    path = ini_file(tmp_path, "[backend a]\nurl = http://a\napi_key = k\n")
    assert load({}, path=path) == load({}, path=path)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        load({}).gateway.port = 1  # type: ignore[misc]  # what is tested


def test_BACKEND_URL_makes_the_first_backend(tmp_path: Path) -> None:
    path = ini_file(tmp_path, "[backend a]\nurl = http://a\n")
    environ = {"BACKEND_URL": "http://b/v1", "GATEWAYD_BACKEND_DEFAULT_IDLE": "7"}
    assert load(environ, path=path).backends == (
        BackendSettings("default", "http://b", idle=7.0),
        BackendSettings("a", "http://a"),
    )


def test_BACKEND_URL_overrides_the_default_backend_where_it_stands(tmp_path: Path) -> None:
    path = ini_file(
        tmp_path, "[backend a]\nurl = http://a\n[backend default]\nurl = http://x\nidle = 1\n"
    )
    assert load({"BACKEND_URL": "http://b"}, {"backend-url": "http://c"}, path).backends == (
        BackendSettings("a", "http://a"),
        BackendSettings("default", "http://c", idle=1.0),
    )


def test_a_backend_has_its_own_timeouts_or_the_common_ones(tmp_path: Path) -> None:
    path = ini_file(
        tmp_path,
        "[backend a]\nurl = http://a\nidle = 0\nfirst_byte =\n"
        "[timeouts]\nconnect = 1\nidle = 2\nfirst_byte = 3\ntotal = 4\n",
    )
    [backend] = load({}, path=path).backends
    assert (backend.connect, backend.idle, backend.first_byte, backend.total) == (1, 0, 3, 4)


def test_all_mistakes_are_reported_at_once_in_order(tmp_path: Path) -> None:
    path = ini_file(
        tmp_path,
        "port = 1\n"
        "listen = x\n"
        "[gateway]\n"
        "port = abc\n"
        "prot = 80\n"
        "junk\n"
        "port = 9\n"
        "[gatway]\n"
        "x = 1\n"
        "[timeouts] idle = 3\n"
        "[backend a b]\n"
        "[gateway]\n"
        "[DEFAULT]\n"
        "[limits\n"
        "[gateway main]\n",
    )
    lines = problems({"PORT": "70000"}, {"port": "-1"}, path)
    assert [line.split(": ")[0] for line in lines] == [
        "FILE:1", "FILE:4", "FILE:5", "FILE:6", "FILE:7", "FILE:8", "FILE:10", "FILE:11",
        "FILE:12", "FILE:13", "FILE:14", "FILE:15", "environment", "command line",
    ]  # fmt: skip
    assert lines[1] == (
        "FILE:4: [gateway] port: 'abc' is not valid, expected a whole number from 0 to 65535"
    )
    assert lines[2].startswith("FILE:5: [gateway] prot: unknown key, did you mean port? expect")
    assert lines[4] == "FILE:7: [gateway] port: is also given on line 4, expected once"
    assert lines[5] == (
        "FILE:8: [gatway]: unknown section, did you mean [gateway]? expected one of "
        "[gateway], [timeouts], [limits], [routing], [backend NAME], [token NAME], [log], [metrics]"
    )
    assert lines[8] == "FILE:12: [gateway]: occurs twice, expected once"


def test_no_traceback_shows_a_secret(tmp_path: Path) -> None:
    environ = {
        "GATEWAYD_BACKEND_A_API_KEY": "sk-a secret-word",
        "BACKEND_URL": "http://secret-word@a",
    }
    with pytest.raises(SettingsError) as caught:
        load(environ)
    assert "secret-word" not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__context__ is None


def test_settings_are_equal_if_their_files_have_the_same_content(tmp_path: Path) -> None:
    one, _ = certificate(tmp_path, "one")
    two, _ = certificate(tmp_path, "two")
    now = tmp_path / "now.pem"
    text = f"[backend a]\nurl = https://a\ntls_ca = {now}\n"
    found = []
    for file in (one, one, two):
        now.write_bytes(Path(file).read_bytes())
        found.append(read(tmp_path, text))
    assert found[0] == found[1] != found[2]


def test_pickled_settings_are_complete_and_their_repr_shows_no_secret(tmp_path: Path) -> None:
    crt, key = certificate(tmp_path, "own")
    text = f"[gateway]\ntls_certificate = {crt}\ntls_key = {key}\n"
    text += "[backend a]\nurl = http://a\napi_key = sk-very\n[token a]\nsha256 = " + "ab" * 32
    loaded = read(tmp_path, text)
    again = pickle.loads(pickle.dumps(loaded))
    assert again == loaded
    assert again.backends[0].api_key.reveal() == "sk-very"
    assert again.gateway.tls_key.content == Path(key).read_bytes()
    assert "sk-very" not in repr(again)
    assert "PRIVATE" not in repr(again) and "\\xab" not in repr(again)
    assert repr(File("/a/path", b"secret")) == "<file /a/path>"


def test_a_relative_file_name_is_looked_up_in_the_given_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text("sk-very")
    environ = {
        "BACKEND_URL": "http://a",
        "GATEWAYD_BACKEND_DEFAULT_API_KEY_FILE": "key",
        "GATEWAYD_LOG_ACCESS": "access.log",
    }
    monkeypatch.chdir("/")
    found = load(environ, folder=str(tmp_path))
    assert found.backends[0].api_key == values.Secret("sk-very")
    assert found.log.access == str(tmp_path / "access.log")
    assert load({}, folder=str(tmp_path)).log.access == "-"
    assert load({"GATEWAYD_LOG_ACCESS": ""}, folder=str(tmp_path)).log.access == ""


LINES = st.sampled_from([f"{key} = {setting.default}" for _, key, setting in EVERY])

HEADERS = st.sampled_from([f"[{section}]" for section, _, _ in EVERY])

ANY_INI = st.lists(LINES | HEADERS | st.text(max_size=30), max_size=20).map("\n".join)


@given(ANY_INI, st.dictionaries(st.sampled_from(["PORT", "BACKEND_URL"]), st.text()))
def test_any_text_is_settings_or_mistakes(
    tmp_path_factory: pytest.TempPathFactory, text: str, environ: dict[str, str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.ini"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        settings = load(environ, path=str(path))
    except SettingsError as error:
        assert error.problems
        for line in error.problems:
            assert line.isprintable()
            assert re.match(rf"{path}:[1-9][0-9]*: |environment: (PORT|BACKEND_URL): ", line)
    else:
        assert settings.gateway.port in range(65536)
