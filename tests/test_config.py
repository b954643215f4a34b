"""The settings: every source, every mistake, and documentation that cannot drift."""

import re
import stat
import traceback
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gatewayd.daemon.bound import BOUND, keep_bound
from gatewayd.settings import ini, values
from gatewayd.settings.checks import warnings_of
from gatewayd.settings.load import SettingsError, load
from gatewayd.settings.model import (
    NAMED,
    SETTINGS,
    BackendSettings,
    GatewaySettings,
    LimitSettings,
    LogSettings,
    Setting,
    Settings,
    TimeoutSettings,
    TokenSettings,
)
from gatewayd.settings.values import Secret

ROOT = Path(__file__).parent.parent
DOCS = (ROOT / "docs" / "configuration.rst").read_text()
SHIPPED = (ROOT / "etc" / "gatewayd.ini").read_text()
#: Each kind of section as documentation writes it, a key of it, and its declaration.
EVERY = [
    (f"{kind} NAME" if kind in NAMED else kind, key, setting)
    for kind, settings in SETTINGS.items()
    for key, setting in settings.items()
]

# A self-signed certificate that expired long ago; only its form matters here.
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBCjCBsaADAgECAgEBMAoGCCqGSM49BAMCMA8xDTALBgNVBAMMBHRlc3QwHhcN
MjAwMTAxMDAwMDAwWhcNMjAwMTAyMDAwMDAwWjAPMQ0wCwYDVQQDDAR0ZXN0MFkw
EwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE6rfym0Hvy2JDF6JbS9AT9E1mI9ALk/xp
BAjytqEzcSbjXp91PDThsokKIVgbWVumFtzgRl+yfUu7/KQiDWcT8TAKBggqhkjO
PQQDAgNIADBFAiAp+rh7sPXrmpseouIJ732WmHlrJightANh3TKzCs4XVwIhAOvE
xZ6xJl/pJAhe8i3iGBlzWXGrUq4XAi3Z63jyU0BX
-----END CERTIFICATE-----
"""

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write an ini file only its owner may read; return its path."""

    def write(text: str) -> str:
        path = tmp_path / "gatewayd.ini"
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        path.chmod(0o600)
        return str(path)

    return write


def problems(
    environ: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
    path: str | None = None,
) -> list[str]:
    """The problems of these sources; the file's path is cut down to FILE."""
    with pytest.raises(SettingsError) as caught:
        load(environ or {}, options, path)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return [line.replace(path or "\0", "FILE") for line in caught.value.problems]


def ini_problems(write: Write, text: str) -> list[str]:
    return problems(path=write(text))


class TestSources:
    def test_without_any_source_there_are_the_defaults(self) -> None:
        assert load({}) == Settings()
        assert Settings().gateway == GatewaySettings(
            listen="127.0.0.1",
            port=8000,
            root_path="",
            api_title="gatewayd",
            request_id_header="X-Request-ID",
            drain=30.0,
        )
        assert Settings().timeouts == TimeoutSettings(10, 60, 60, 60, 5, 600, 120, 0, 15)
        assert Settings().limits == LimitSettings(
            2**14, 2**25, 64, 2**22, 2**26, connections=10000, in_flight=1000
        )
        assert Settings().log == LogSettings("json", "info", "-")
        assert Settings().backends == ()

    def test_each_source_overrides_those_before_it(self, write: Write) -> None:
        path = write("[gateway]\nport = 1\nlisten = 127.0.0.2\ndrain = 3\n")
        settings = load({"PORT": "2", "GATEWAYD_GATEWAY_LISTEN": "::1"}, {"port": "4"}, path)
        assert settings.gateway == GatewaySettings(listen="::1", port=4, drain=3.0)
        assert load({"PORT": "2"}, None, path).gateway.port == 2

    def test_GATEWAYD_CONFIG_names_the_file_unless_the_command_line_does(
        self, write: Write, tmp_path: Path
    ) -> None:
        path = write("[gateway]\nport = 1\n")
        other = tmp_path / "other.ini"
        other.write_text("[gateway]\nport = 2\n")
        assert load({"GATEWAYD_CONFIG": str(other)}).gateway.port == 2
        assert load({"GATEWAYD_CONFIG": str(other)}, path=path).gateway.port == 1
        assert load({"GATEWAYD_CONFIG": ""}).gateway.port == 8000

    def test_a_wrong_value_is_a_mistake_although_another_source_overrides_it(
        self, write: Write
    ) -> None:
        assert len(problems({"PORT": "80"}, None, write("[gateway]\nport = x\n"))) == 1

    def test_a_file_may_have_a_byte_order_mark_CRLF_indents_and_upper_case_keys(
        self, write: Write
    ) -> None:
        path = write("\ufeff; comment\r\n[gateway] # here too\r\n  PORT = 1\r\n  listen=::1\r\n")
        assert load({}, path=path).gateway == GatewaySettings(listen="::1", port=1)

    def test_settings_are_frozen_and_equal_when_read_again(self, write: Write) -> None:
        path = write("[backend a]\nurl = http://a\napi_key = k\n")
        assert load({}, path=path) == load({}, path=path)
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            load({}).gateway.port = 1  # type: ignore[misc]  # what is tested


class TestEnvironment:
    def test_empty_short_names_are_as_if_unset(self) -> None:
        assert load({"PORT": "", "BACKEND_URL": " "}) == Settings()

    def test_a_long_name_overrides_a_short_one(self) -> None:
        assert load({"PORT": "1", "GATEWAYD_GATEWAY_PORT": "2"}).gateway.port == 2

    @pytest.mark.parametrize(("section", "key", "setting"), EVERY)
    def test_it_reaches_every_setting(self, section: str, key: str, setting: Setting) -> None:
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
    def test_what_others_put_there_is_ignored(self, variable: str) -> None:
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
    def test_an_unknown_key_after_the_name_of_a_section_is_a_mistake(
        self, name: str, reason: str
    ) -> None:
        [line] = problems({name: "http://a"})
        assert line.startswith(f"environment: {name}: {reason}")

    def test_a_backend_is_found_whatever_its_case_and_punctuation(self, write: Write) -> None:
        path = write("[backend My-GPU.1]\nurl = http://a\n[backend b]\nurl = http://b\n")
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

    def test_a_variable_that_may_mean_two_backends_is_a_mistake(self, write: Write) -> None:
        path = write("[backend a-1]\nurl = http://a\n[backend a.1]\nurl = http://b\n")
        assert problems({"GATEWAYD_BACKEND_A_1_IDLE": "1"}, None, path) == [
            "environment: GATEWAYD_BACKEND_A_1_IDLE: matches [backend a-1] and [backend a.1], "
            "expected names that differ in more than case"
        ]

    def test_a_backend_without_a_url_is_a_mistake(self) -> None:
        [line] = problems({"GATEWAYD_BACKEND_A_IDLE": "1"})
        assert line.startswith("environment: GATEWAYD_BACKEND_A_URL: is missing, expected a base")

    def test_BACKEND_URL_makes_the_first_backend(self, write: Write) -> None:
        path = write("[backend a]\nurl = http://a\n")
        environ = {"BACKEND_URL": "http://b/v1", "GATEWAYD_BACKEND_DEFAULT_IDLE": "7"}
        assert load(environ, path=path).backends == (
            BackendSettings("default", "http://b", idle=7.0),
            BackendSettings("a", "http://a"),
        )

    def test_BACKEND_URL_overrides_the_default_backend_where_it_stands(self, write: Write) -> None:
        path = write("[backend a]\nurl = http://a\n[backend default]\nurl = http://x\nidle = 1\n")
        assert load({"BACKEND_URL": "http://b"}, {"backend-url": "http://c"}, path).backends == (
            BackendSettings("a", "http://a"),
            BackendSettings("default", "http://c", idle=1.0),
        )


class TestBackends:
    def test_their_timeouts_are_their_own_or_the_common_ones(self, write: Write) -> None:
        path = write(
            "[backend a]\nurl = http://a\nidle = 0\nfirst_byte =\n"
            "[timeouts]\nconnect = 1\nidle = 2\nfirst_byte = 3\ntotal = 4\n"
        )
        [backend] = load({}, path=path).backends
        assert (backend.connect, backend.idle, backend.first_byte, backend.total) == (1, 0, 3, 4)

    def test_a_key_comes_from_a_file_without_its_line_end(
        self, write: Write, tmp_path: Path
    ) -> None:
        key = tmp_path / "key"
        key.write_bytes(b"sk-very-secret\r\n")
        key.chmod(0o600)
        path = write(f"[backend a]\nurl = http://a\napi_key_file = {key}\n")
        settings = load({}, path=path)
        assert settings.backends[0].api_key == Secret("sk-very-secret")
        assert settings.warnings == ()

    @pytest.mark.parametrize(
        "content", [b"", b"\n", b"two words", b"\xff", b"a\nb\n", b"a" * 2**21]
    )
    def test_a_key_file_without_a_proper_key_is_a_mistake(
        self, write: Write, tmp_path: Path, content: bytes
    ) -> None:
        key = tmp_path / "key"
        key.write_bytes(content)
        [line] = ini_problems(write, f"[backend a]\nurl = http://a\napi_key_file = {key}\n")
        assert line.startswith("FILE:3: [backend a] api_key_file: ")
        assert "words" not in line

    def test_a_key_file_that_is_not_there_is_a_mistake_and_not_quoted(self, write: Write) -> None:
        assert ini_problems(write, "[backend a]\nurl = http://a\napi_key_file = sk-oops\n") == [
            "FILE:3: [backend a] api_key_file: cannot be read (No such file or directory), "
            "expected a readable file"
        ]

    def test_both_a_key_and_its_file_are_a_mistake(self, write: Write) -> None:
        text = "[backend a]\nurl = http://a\napi_key = k\napi_key_file = f\n"
        assert ini_problems(write, text) == [
            "FILE:4: [backend a] api_key_file: is given together with api_key, "
            "expected one of the two"
        ]

    def test_tls_ca_must_have_a_certificate(self, write: Write, tmp_path: Path) -> None:
        good, bad = tmp_path / "good.pem", tmp_path / "bad.pem"
        good.write_text(f"# Árvíztűrő\n{CERTIFICATE}")
        bad.write_text("nothing")
        text = "[backend a]\nurl = https://a\ntls_ca = "
        trusted = load({}, path=write(text + str(good))).backends[0].tls_ca
        assert trusted is not None
        assert (trusted.path, trusted.content) == (str(good), good.read_bytes())
        for path in (bad, tmp_path, tmp_path / "gone", "/dev/null"):
            [line] = ini_problems(write, text + str(path))
            assert line.startswith("FILE:3: [backend a] tls_ca: ")
            assert "expected a" in line


class TestMistakes:
    def test_all_of_them_are_reported_at_once_in_order(self, write: Write) -> None:
        path = write(
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
            "[gateway main]\n"
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
            "[gateway], [timeouts], [limits], [backend NAME], [token NAME], [log], [metrics]"
        )
        assert lines[8] == "FILE:12: [gateway]: occurs twice, expected once"

    def test_of_very_many_the_first_are_reported(self, write: Write) -> None:
        for text in ("[gateway]\n" + "port = 1\n" * 2000, "[x]\n" * 2000, "[log]\n" + "y\n" * 2000):
            lines = ini_problems(write, text)
            assert len(lines) == 101
            assert lines[0].startswith(("FILE:1: ", "FILE:2: ", "FILE:3: "))
            assert lines[-1] == "There are more mistakes."

    def test_the_keys_of_a_repeated_section_are_looked_at_too(self, write: Write) -> None:
        text = "[log]\nlevel = info\n[log]\nlevel = x\n[log]\nlevel = y\n"
        assert [line.split(": ")[0] for line in ini_problems(write, text)] == [
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
    def test_a_file_that_is_no_text_is_one_line(
        self, tmp_path: Path, content: bytes, expected: str
    ) -> None:
        path = tmp_path / "x.ini"
        path.write_bytes(content)
        assert problems(path=str(path)) == [f"FILE{expected}"]

    @pytest.mark.parametrize("path", ["/", "/gone\n/x", "/dev/zero", "a\0b", "x" * 5000])
    def test_a_file_that_cannot_be_read_is_one_line(self, path: str) -> None:
        with pytest.raises(SettingsError) as caught:
            load({"GATEWAYD_CONFIG": path})
        [line] = caught.value.problems
        assert "expected a " in line
        assert line.isprintable()

    def test_an_unreadable_file_is_one_line(
        self, write: Write, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Tests may run as root, who can read any file.
        def refuse(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        path = write("")
        monkeypatch.setattr("os.open", refuse)
        assert problems(path=path) == [
            "FILE: cannot be read (Permission denied), expected a readable file"
        ]

    def test_names_cannot_write_to_the_terminal(self, write: Write) -> None:
        for line in ini_problems(write, "[\x1b[2J]\n[gateway]\n\x1b[2Jport = \x1b[2J\n"):
            assert line.isprintable()

    def test_a_value_on_two_lines_is_quoted_up_to_its_first(self, write: Write) -> None:
        [line] = ini_problems(write, "[log]\nlevel = info\n  api_key = sk-secret\n")
        assert line.startswith("FILE:2: [log] level: 'info' and more lines is unknown, expected")


class TestSecrets:
    def test_a_secret_shows_itself_only_when_asked_to(self) -> None:
        secret = Secret("sk-very")
        assert secret.reveal() == "sk-very"
        assert f"{secret} {secret!r} {secret!s:>5} {[secret]}" == "*** ***   *** [***]"
        assert secret == Secret("sk-very") != Secret("sk-other")

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
    def test_no_mistake_shows_one(self, write: Write, text: str) -> None:
        lines = ini_problems(write, f"[backend a]\n{text}\n")
        assert lines
        assert "very" not in "\n".join(lines)

    def test_no_traceback_has_one(self, write: Write) -> None:
        environ = {"GATEWAYD_BACKEND_A_API_KEY": "sk very", "BACKEND_URL": "http://very@a"}
        with pytest.raises(SettingsError) as caught:
            load(environ)
        assert "very" not in "".join(traceback.format_exception(caught.value))
        assert caught.value.__context__ is None

    @pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
    def test_a_file_others_may_read_with_a_key_in_it_is_a_warning(
        self, write: Write, tmp_path: Path, mode: int
    ) -> None:
        key = tmp_path / "key"
        key.write_text("k2")
        key.chmod(mode)
        path = write(
            "[backend a]\nurl = http://a\napi_key = k1\n"
            f"[backend b]\nurl = http://b\napi_key_file = {key}\n"
        )
        Path(path).chmod(mode)
        assert [line.replace(path, "FILE") for line in load({}, path=path).warnings] == [
            "FILE:3: [backend a] api_key: "
            "the file with this key can be read by other users, expected mode 0600",
            "FILE:6: [backend b] api_key_file: "
            "the file with this key can be read by other users, expected mode 0600",
        ]

    def test_a_credential_of_systemd_is_none(
        self, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its access list is for the service's user, and makes the mode look like 0440."""
        folder = tmp_path / "credentials"
        folder.mkdir()
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
        (folder / "key").write_text("k2")
        (folder / "key").chmod(0o440)
        path = write(f"[backend b]\nurl = http://b\napi_key_file = {folder}/key\n")
        Path(path).chmod(0o644)
        assert load({}, path=path).warnings == ()

    def test_a_file_others_may_read_without_a_key_is_none(self, write: Write) -> None:
        path = write("[gateway]\nport = 1\n")
        Path(path).chmod(0o644)
        assert load({}, path=path).warnings == ()


class TestListen:
    @pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.1"])
    def test_an_address_that_is_not_a_loopback_one_is_a_warning(self, address: str) -> None:
        [warning] = warnings_of(load({}, {"listen": address}))
        assert warning.startswith(f"[gateway] listen: {address} is not a loopback address")

    @pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
    def test_a_loopback_address_is_none(self, address: str) -> None:
        assert warnings_of(load({}, {"listen": address})) == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://gpu1", "http://gpu1"),
        ("HTTP://GPU1:8080/V1x", "http://gpu1:8080/V1x"),
        ("http://gpu1:8080/v1", "http://gpu1:8080"),
        ("http://gpu1:8080/v1/", "http://gpu1:8080"),
        ("http://gpu1:/v1//", "http://gpu1"),
        ("https://a.example/openai/v1", "https://a.example/openai"),
        ("https://a.example/openai/v1beta", "https://a.example/openai/v1beta"),
        ("http://[::1]:8080/v1", "http://[::1]:8080"),
        ("http://10.0.0.5:1", "http://10.0.0.5:1"),
        ("http://my_service", "http://my_service"),
    ],
)
def test_a_base_url_loses_v1_and_the_slash(text: str, expected: str) -> None:
    assert values.base_url(text) == expected
    assert values.base_url(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "gpu1", "gpu1:8080", "//gpu1", "ftp://gpu1", "http://", "http:///v1", "http://:80",
        "http://u@gpu1", "http://@gpu1", "http://gpu1?", "http://gpu1#", "http://gpu1/?a=b",
        "http://gpu1:0", "http://gpu1:65536", "http://gpu1:x", "http://gpu1:-1", "http://[::1",
        "http://[x]", "http://[v1.a]", "http://[fe80::1%25eth0]", "http://a b", "http://a\tb",
        "http://a..b", "http://.a", "http://-a", f"http://{'a' * 64}", f"http://{'a.' * 127}a",
        "http://gpü", "http://a/../b", "http://a/./b", "http://a//b", "http://a\\b", "http:\\\\a",
        'http://a/"', "http://%61",
    ],
)  # fmt: skip
def test_another_url_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a base URL such as"):
        values.base_url(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("/", ""),
        ("a", "/a"),
        ("/a/", "/a"),
        ("/a/b//", "/a/b"),
        ("/a.b_c~d-e", "/a.b_c~d-e"),
    ],
)
def test_a_root_path_begins_with_a_slash_and_ends_with_none(text: str, expected: str) -> None:
    assert values.root_path(text) == expected


@pytest.mark.parametrize(
    "text", ["/a//b", "/..", "/a/./b", "/a b", "/ä", "/a?b", "/a#b", "/%2e", "a\n"]
)
def test_another_root_path_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a path"):
        values.root_path(text)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("request_id_header", ""), ("request_id_header", "X Id"), ("request_id_header", "X:Id"),
        ("request_id_header", "Content-Length"), ("request_id_header", "a" * 65),
        ("api_title", ""), ("api_title", "a\r\nb"), ("api_title", "ä"), ("api_title", "a" * 65),
        ("listen", ""), ("listen", "example.com"), ("listen", "[::1]"), ("listen", "127.0.0.1:80"),
        ("port", ""), ("port", "8_000"), ("port", "+80"), ("port", "0x50"), ("port", "٣"),
        ("port", "9" * 5000), ("drain", "-1"), ("drain", "nan"), ("drain", "inf"),
    ],
)  # fmt: skip
def test_another_value_of_the_gateway_is_refused(key: str, text: str) -> None:
    [line] = problems({f"GATEWAYD_GATEWAY_{key.upper()}": text})
    assert "expected " in line
    assert len(line) < 250


@pytest.mark.parametrize("text", ["/", "/health", "/a/b?c=d&e=%20"])
def test_a_health_path_may_have_a_query(text: str) -> None:
    assert values.url_path(text) == text


@pytest.mark.parametrize(
    "text", ["health", "http://a/health", "/a b", "/ä", "/a#b", "/" + "a" * 256]
)
def test_another_health_path_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a path, expected one such as /health"):
        values.url_path(text)


@given(
    st.integers(1, 2**40), st.sampled_from(["", " "]), st.sampled_from(["KiB", "mib", "GIB", ""])
)
def test_a_size_is_a_number_of_units(number: int, space: str, unit: str) -> None:
    times = {"": 1, "KiB": 2**10, "mib": 2**20, "GIB": 2**30}[unit]
    text = f"{number}{space if unit else ''}{unit}"
    if number * times <= 2**40:
        assert values.size(text) == number * times
    else:
        with pytest.raises(ValueError, match="is not a size"):
            values.size(text)


@given(st.floats(0, 1e8))
def test_seconds_may_have_fractions(number: float) -> None:
    text = f"{number:.6f}"
    assert values.seconds(text) == float(text)
    assert values.seconds(str(int(number))) == int(number)


@given(st.text(max_size=20) | st.from_regex(r"[0-9.eE+_ -]{1,12}( ?[kKmM][iI]?[bB])?"))
@example("nan")
@example("1e5")
@example("٣")
@example("1_000")
@example(".")
@example("0")
@example("-1")
def test_numbers_are_finite_and_not_negative_or_refused(text: str) -> None:
    for parse, least in ((values.size, 1), (values.seconds, 0), (values.positive_seconds, 1e-9)):
        try:
            number = parse(text)
        except ValueError as error:
            assert "expected" in str(error)
        else:
            assert least <= number <= 2**40
            assert text.isascii()


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


@given(ANY_INI.filter(lambda text: "\0" not in text))  # the caller refuses those
def test_every_line_number_is_in_the_file(text: str) -> None:
    lines = text.split("\n")
    for item in ini.parse(text):
        assert 1 <= item.line <= len(lines)
        if isinstance(item, ini.Entry):
            assert lines[item.line - 1].partition("=")[0].strip().lower() == item.key


class TestDocumentation:
    def test_the_shipped_file_is_the_defaults(self) -> None:
        path = ROOT / "etc" / "gatewayd.ini"
        assert load({}, path=str(path)) == Settings()

    def test_the_shipped_file_is_the_defaults_with_every_line_in_use(self, write: Write) -> None:
        """Except for the keys of backends, which cannot be empty or are elsewhere."""
        text = re.sub(r"(?m)^# (?=\[|\w+ =)", "", SHIPPED)
        text = re.sub(r"(?m)^api_key(_file)? =.*\n", "", text)
        text = text.replace("sha256 =", f"sha256 = {'ab' * 32}")
        assert load({}, path=write(text)) == Settings(
            backends=(
                BackendSettings("gpu1", "http://127.0.0.1:8080"),
                BackendSettings("gpu2", "https://inference.example.com/openai"),
            ),
            tokens=(TokenSettings("alice", b"\xab" * 32),),
        )

    def test_the_shipped_file_has_every_setting_and_no_other(self) -> None:
        named = SHIPPED.replace("backend gpu1", "backend NAME").replace("token alice", "token NAME")
        text = named.split("# Another one:")
        found: dict[tuple[str, str], tuple[str, str]] = {}
        section, comment = "", ""
        for line in (text[0] + text[1].partition("\n\n")[2]).splitlines():
            if match := re.fullmatch(r"(?:# )?\[(.+)\]", line):
                section = match[1]
            elif match := re.fullmatch(r"# (\w+) =(?: (.*))?", line):
                found[section, match[1]] = (match[2] or "", comment)
            comment = f"{comment} {line.removeprefix('# ')}".strip() if line else ""
        assert found == {
            (section, key): (setting.default or "", setting.doc)
            if setting.default is not None
            else ("http://127.0.0.1:8080/v1", setting.doc)
            for section, key, setting in EVERY
        }

    def test_the_tables_have_every_setting_and_no_other(self) -> None:
        found: dict[tuple[str, str], tuple[str, str]] = {}
        for section, body in re.findall(r"(?ms)^\[(.+?)\]\n~+\n(.*?)(?=^\[|\Z)", DOCS):
            for row in body.split("   * - ")[2:]:
                key, default, _, doc = re.split(r"\n     - ", row)
                found[section, key.strip("`")] = (default.strip("`"), " ".join(doc.split()))
        assert found == {
            (section, key): (
                "must be given" if setting.default is None else setting.default or "empty",
                setting.doc,
            )
            for section, key, setting in EVERY
        }

    def test_what_stays_until_a_restart_is_listed_there(self) -> None:
        listed = DOCS.partition("Until a restart these stay")[2].partition("A backend whose")[0]
        found = set(re.findall(r"``\[(\w+)\] (\w+)``", listed))
        bound = {(section, key) for section, keys in BOUND.items() for key in keys}
        assert found == bound | {("gateway", "tls_certificate")}

    @pytest.mark.parametrize(("section", "key", "setting"), EVERY)
    def test_every_other_setting_changes_with_a_reload(
        self, section: str, key: str, setting: Setting
    ) -> None:
        if section.endswith(" NAME"):
            return  # a backend or token is taken over as a whole
        other = attrs.evolve(getattr(Settings(), section), **{key: object()})
        kept, said = keep_bound(Settings(), attrs.evolve(Settings(), **{section: other}))
        stays = key in BOUND.get(section, ()) or key == "tls_certificate"
        assert (kept == Settings()) == stays == bool(said)

    def test_the_mistakes_in_it_look_as_they_do(self, write: Write) -> None:
        path = write("\n\n[gateway]\nport = abc\n\n\n\n[timeouts]\nconect = 3\n")
        lines = problems({"BACKEND_URL": "gpu1"}, {"listen": "gpu1"}, path)
        assert len(lines) == 4
        for line in lines:
            assert line.replace("FILE", "/etc/gatewayd/gatewayd.ini") in DOCS

    def test_the_file_in_it_is_one(self, write: Write, tmp_path: Path) -> None:
        text = DOCS.partition("below them, UTF-8, at most 1 MiB::\n\n")[2].partition("``etc/")[0]
        key = tmp_path / "gpu2.key"
        key.write_text("k\n")
        key.chmod(stat.S_IRUSR)
        text = re.sub("(?m)^    ", "", text).replace("/etc/gatewayd/gpu2.key", str(key))
        settings = load({}, path=write(text))
        assert settings.gateway.root_path == "/inference"
        assert [backend.first_byte for backend in settings.backends] == [600.0, 30.0]
