"""Files that settings name: what is read, what is refused, and what is warned of."""

import base64
import os
import pickle
import re
import socket
import stat
import subprocess
import sys
from datetime import datetime, tzinfo
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st

from gatewayd.settings import pem, values
from gatewayd.settings.files import File, read_file
from gatewayd.settings.load import SettingsError, load
from gatewayd.settings.model import Settings
from tests.certificates import certificate

DIGEST = "ab" * 32


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The files of a certificate and its key."""
    return certificate(tmp_path_factory.mktemp("pair"), "own")


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def settings(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "gatewayd.ini"
    path.write_text(text)
    path.chmod(0o600)
    return load({}, path=str(path))


def problems(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        settings(tmp_path, text)
    return [line.removeprefix(f"{tmp_path}/gatewayd.ini") for line in caught.value.problems]


KEYS = {
    "[backend a] api_key_file": "[backend a]\nurl = http://a\napi_key_file = {}\n",
    "[backend a] tls_ca": "[backend a]\nurl = http://a\ntls_ca = {}\n",
    "[token a] token_file": "[token a]\n\ntoken_file = {}\n",
    "[gateway] tls_certificate": "[gateway]\ntls_key =\ntls_certificate = {}\n",
    "[gateway] tls_key": "[gateway]\ntls_certificate =\ntls_key = {}\n",
}


class TestSpecialFiles:
    @pytest.mark.parametrize("key", KEYS)
    def test_a_pipe_is_refused_at_once_wherever_a_file_is_named(
        self, tmp_path: Path, fifo: Path, key: str
    ) -> None:
        [line] = problems(tmp_path, KEYS[key].format(fifo))
        assert line == f":3: {key}: is a pipe, expected a regular file"

    def test_a_pipe_as_the_ini_file_is_refused_at_once(self, fifo: Path) -> None:
        with pytest.raises(SettingsError, match="fifo: is a pipe, expected a regular file"):
            load({}, path=str(fifo))

    @pytest.mark.parametrize(
        ("path", "kind"), [("/dev/zero", "a device"), ("/dev/null", "a device"), ("/", "a dir")]
    )
    def test_devices_and_folders_are_refused(self, path: str, kind: str) -> None:
        with pytest.raises(ValueError, match=f"is {kind}.*, expected a regular file"):
            read_file(path)

    def test_a_socket_is_refused(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(f"{tmp_path}/s")
            with pytest.raises(ValueError, match="is a socket, expected a regular file"):
                read_file(f"{tmp_path}/s")

    def test_a_pipe_that_takes_the_place_of_a_file_in_between_does_not_block(
        self, tmp_path: Path, fifo: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plain = tmp_path / "plain"
        plain.touch()
        status = os.stat(plain)
        monkeypatch.setattr("os.stat", lambda _: status)
        with pytest.raises(ValueError, match="is a pipe, expected a regular file"):
            read_file(str(fifo))

    @pytest.mark.parametrize("piped", [True, False])
    def test_standard_input_may_be_a_file_and_no_pipe(self, tmp_path: Path, piped: bool) -> None:
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

    def test_a_link_to_a_file_is_as_good_as_the_file(self, tmp_path: Path) -> None:
        (tmp_path / "plain").write_bytes(b"x")
        (tmp_path / "link").symlink_to("plain")
        assert read_file(str(tmp_path / "link")).content == b"x"


class TestContent:
    def test_settings_are_equal_if_their_files_have_the_same_content(self, tmp_path: Path) -> None:
        one, _ = certificate(tmp_path, "one")
        two, _ = certificate(tmp_path, "two")
        now = tmp_path / "now.pem"
        text = f"[backend a]\nurl = https://a\ntls_ca = {now}\n"
        read = []
        for file in (one, one, two):
            now.write_bytes(Path(file).read_bytes())
            read.append(settings(tmp_path, text))
        assert read[0] == read[1] != read[2]

    def test_settings_cross_to_another_process_whole_and_show_no_secret(
        self, tmp_path: Path
    ) -> None:
        crt, key = certificate(tmp_path, "own")
        text = f"[gateway]\ntls_certificate = {crt}\ntls_key = {key}\n"
        text += "[backend a]\nurl = http://a\napi_key = sk-very\n[token a]\nsha256 = " + DIGEST
        given = settings(tmp_path, text)
        again = pickle.loads(pickle.dumps(given))
        assert again == given
        assert again.backends[0].api_key.reveal() == "sk-very"
        assert again.gateway.tls_key.content == Path(key).read_bytes()
        assert "sk-very" not in repr(again)
        assert "PRIVATE" not in repr(again) and "\\xab" not in repr(again)
        assert repr(File("/a/path", b"secret")) == "<file /a/path>"

    def test_a_name_without_a_slash_is_looked_up_in_the_folder_of_the_start(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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


class TestCertificates:
    @pytest.mark.parametrize(
        ("key", "other"), [("tls_certificate", "tls_key"), ("tls_key", "tls_certificate")]
    )
    @pytest.mark.parametrize("empty", ["", "{other} =\n"])
    def test_one_alone_is_one_mistake(
        self, tmp_path: Path, key: str, other: str, empty: str
    ) -> None:
        pair = dict(zip(("tls_certificate", "tls_key"), certificate(tmp_path, "own"), strict=True))
        text = f"[gateway]\n{key} = {pair[key]}\n{empty.format(other=other)}"
        assert problems(tmp_path, text) == [
            f":2: [gateway] {key}: is given without {other}, expected both"
        ]

    @pytest.mark.parametrize(
        ("key", "other"), [("tls_certificate", "tls_key"), ("tls_key", "tls_certificate")]
    )
    def test_one_that_cannot_be_read_beside_a_good_one_is_one_mistake(
        self, tmp_path: Path, key: str, other: str
    ) -> None:
        pair = dict(zip(("tls_certificate", "tls_key"), certificate(tmp_path, "own"), strict=True))
        text = f"[gateway]\n{key} = {pair[key]}\n{other} = /nonexistent\n"
        [line] = problems(tmp_path, text)
        assert line.startswith(f":3: [gateway] {other}: cannot be read (No such file")

    def test_a_key_of_another_certificate_or_with_a_passphrase_is_a_mistake(
        self, tmp_path: Path
    ) -> None:
        crt, key = certificate(tmp_path, "own")
        _, other = certificate(tmp_path, "other")
        locked = tmp_path / "locked.key"
        subprocess.run(
            ["openssl", "pkey", "-in", key, "-aes128", "-passout", "pass:x", "-out", str(locked)],
            check=True,
        )
        for wrong in (other, locked, crt):
            [line] = problems(tmp_path, f"[gateway]\ntls_certificate = {crt}\ntls_key = {wrong}\n")
            assert line.startswith(":3: [gateway] tls_key: does not match tls_certificate")

    def test_a_certificate_that_openssl_dislikes_is_a_mistake_of_its_setting(
        self, tmp_path: Path
    ) -> None:
        crt, key = certificate(tmp_path, "own")
        good = Path(crt).read_text()
        bad = tmp_path / "bad.pem"
        bad.write_text(good + good.replace("MII", "MIX"))
        trusting = f"[backend a]\nurl = https://a\ntls_ca = {bad}\n"
        [line] = problems(tmp_path, trusting)
        assert line.startswith(":3: [backend a] tls_ca: certificate 2 cannot be read (")
        own = f"[gateway]\ntls_key = {key}\ntls_certificate = {bad}\n"
        [line] = problems(tmp_path, own)
        assert line.startswith(":3: [gateway] tls_certificate: certificate 2 cannot be read (")

    @settings_of_hypothesis(suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        st.sampled_from(["tls_certificate", "tls_key", "tls_ca"]),
        st.dictionaries(st.integers(0, 300), st.integers(0, 255), min_size=1, max_size=4),
        st.integers(0, 300),
    )
    def test_whatever_bytes_are_wrong_in_a_file_it_is_a_mistake_of_its_setting_or_works(
        self, tmp_path: Path, pair: tuple[str, str], key: str, wrong: dict[int, int], end: int
    ) -> None:
        files = {"tls_certificate": pair[0], "tls_key": pair[1], "tls_ca": pair[0]}
        first, *lines, last = Path(files[key]).read_text().splitlines()
        content = bytearray(base64.b64decode("".join(lines)))
        for place, byte in wrong.items():
            content[place % len(content)] = byte
        content = content[: len(content) - max(0, end - 250)]
        bad = tmp_path / "bad.pem"
        bad.write_text("\n".join([first, base64.encodebytes(content).decode(), last]))
        files[key] = str(bad)
        text = "[backend a]\nurl = https://a\ntls_ca = {tls_ca}\n[gateway]\n"
        text += "tls_certificate = {tls_certificate}\ntls_key = {tls_key}\n"
        try:
            settings(tmp_path, text.format(**files))
        except SettingsError as error:
            (line,) = error.problems
            # A certificate that is good in itself may be that of another key.
            named = "tls_key" if key == "tls_certificate" and "] tls_key: is not" in line else key
            assert f"] {named}: " in line and "expected " in line

    def test_a_certificate_that_is_not_valid_yet_is_a_warning_with_its_date(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class LongAgo(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> "LongAgo":
                return cls(2020, 1, 1, tzinfo=tz)

        crt, key = certificate(tmp_path, "own")
        Path(key).chmod(0o600)
        monkeypatch.setattr(pem, "datetime", LongAgo)
        text = f"[gateway]\ntls_certificate = {crt}\ntls_key = {key}\n"
        [line] = settings(tmp_path, text).warnings
        assert re.search(r":2: \[gateway\] tls_certificate: is not valid before 2\d{3}-", line)

    @pytest.mark.parametrize(
        ("days", "said"), [(-1, "expired on 20"), (1, None)], ids=["expired", "good"]
    )
    def test_a_certificate_that_has_expired_is_a_warning_with_its_date(
        self, tmp_path: Path, days: int, said: str | None
    ) -> None:
        crt, key = certificate(tmp_path, "own", days=days)
        Path(key).chmod(0o600)
        text = f"[gateway]\ntls_certificate = {crt}\ntls_key = {key}\n"
        text += f"[backend a]\nurl = https://a\ntls_ca = {crt}\n"
        warnings = settings(tmp_path, text).warnings
        if said is None:
            assert warnings == ()
        else:
            assert len(warnings) == 2
            assert f":2: [gateway] tls_certificate: {said}" in warnings[0]
            assert ":6: [backend a] tls_ca: contains only certificates that have exp" in warnings[1]

    @pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o604])
    def test_a_key_that_everybody_may_read_is_a_warning(self, tmp_path: Path, mode: int) -> None:
        crt, key = certificate(tmp_path, "own")
        Path(key).chmod(mode)
        warnings = settings(
            tmp_path, f"[gateway]\ntls_certificate = {crt}\ntls_key = {key}\n"
        ).warnings
        assert len(warnings) == bool(mode & stat.S_IROTH)
        assert all("[gateway] tls_key: the file with this key can" in line for line in warnings)


class TestTokens:
    def test_two_with_one_digest_are_a_warning(self, tmp_path: Path) -> None:
        text = f"[token a]\nsha256 = {DIGEST}\n[token b]\nsha256 = {DIGEST.upper()}\n"
        [line] = settings(tmp_path, text).warnings
        assert ":4: [token b] sha256: is also the token of [token a], expected another one" in line

    def test_two_different_ones_are_none(self, tmp_path: Path) -> None:
        text = f"[token a]\nsha256 = {DIGEST}\n[token b]\nsha256 = {'cd' * 32}\n"
        assert settings(tmp_path, text).warnings == ()
