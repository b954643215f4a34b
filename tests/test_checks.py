"""Settings that depend on each other, secrets in files, and warnings."""

import re
import stat
import subprocess
from datetime import datetime, tzinfo
from pathlib import Path

import pytest

from gatewayd.settings import pem
from gatewayd.settings.checks import warnings_of
from gatewayd.settings.load import load
from gatewayd.settings.values import Secret
from tests.certificates import certificate
from tests.inifile import ini_file, ini_problems, ini_warnings

DIGEST = "ab" * 32


def test_a_key_comes_from_a_file_without_its_line_end(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"sk-very-secret\r\n")
    key.chmod(0o600)
    path = ini_file(tmp_path, f"[backend a]\nurl = http://a\napi_key_file = {key}\n")
    settings = load({}, path=path)
    assert settings.backends[0].api_key == Secret("sk-very-secret")
    assert settings.warnings == ()


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"\xff", b"a\nb\n", b"a" * 2**21])
def test_a_key_file_without_a_proper_key_is_a_mistake(tmp_path: Path, content: bytes) -> None:
    key = tmp_path / "key"
    key.write_bytes(content)
    [line] = ini_problems(tmp_path, f"[backend a]\nurl = http://a\napi_key_file = {key}\n")
    assert line.startswith("FILE:3: [backend a] api_key_file: ")
    assert "words" not in line


def test_a_key_file_that_is_not_there_is_a_mistake_and_not_quoted(tmp_path: Path) -> None:
    assert ini_problems(tmp_path, "[backend a]\nurl = http://a\napi_key_file = sk-oops\n") == [
        "FILE:3: [backend a] api_key_file: cannot be read (No such file or directory), "
        "expected a readable file"
    ]


def test_both_a_key_and_its_file_are_a_mistake(tmp_path: Path) -> None:
    text = "[backend a]\nurl = http://a\napi_key = k\napi_key_file = f\n"
    assert ini_problems(tmp_path, text) == [
        "FILE:4: [backend a] api_key_file: is given together with api_key, expected one of the two"
    ]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_file_with_a_key_that_others_can_read_is_a_warning(tmp_path: Path, mode: int) -> None:
    key = tmp_path / "key"
    key.write_text("k2")
    key.chmod(mode)
    path = ini_file(
        tmp_path,
        "[backend a]\nurl = http://a\napi_key = k1\n"
        f"[backend b]\nurl = http://b\napi_key_file = {key}\n",
    )
    Path(path).chmod(mode)
    assert [line.replace(path, "FILE") for line in load({}, path=path).warnings] == [
        "FILE:3: [backend a] api_key: "
        "the file with this key can be read by other users, expected mode 0600",
        "FILE:6: [backend b] api_key_file: "
        "the file with this key can be read by other users, expected mode 0600",
    ]


def test_a_credential_of_systemd_is_no_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its access list is for the service's user, and makes the mode look like 0440."""
    folder = tmp_path / "credentials"
    folder.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    (folder / "key").write_text("k2")
    (folder / "key").chmod(0o440)
    path = ini_file(tmp_path, f"[backend b]\nurl = http://b\napi_key_file = {folder}/key\n")
    Path(path).chmod(0o644)
    assert load({}, path=path).warnings == ()


def test_a_file_without_a_key_is_no_warning_if_others_can_read_it(tmp_path: Path) -> None:
    path = ini_file(tmp_path, "[gateway]\nport = 1\n")
    Path(path).chmod(0o644)
    assert load({}, path=path).warnings == ()


@pytest.mark.parametrize(
    ("key", "other"), [("tls_certificate", "tls_key"), ("tls_key", "tls_certificate")]
)
@pytest.mark.parametrize("empty", ["", "{other} =\n"])
def test_a_certificate_or_key_without_the_other_is_one_mistake(
    tmp_path: Path, key: str, other: str, empty: str
) -> None:
    pair = dict(zip(("tls_certificate", "tls_key"), certificate(tmp_path, "own"), strict=True))
    text = f"[gateway]\n{key} = {pair[key]}\n{empty.format(other=other)}"
    assert ini_problems(tmp_path, text) == [
        f"FILE:2: [gateway] {key}: is given without {other}, expected both"
    ]


@pytest.mark.parametrize(
    ("key", "other"), [("tls_certificate", "tls_key"), ("tls_key", "tls_certificate")]
)
def test_an_unreadable_certificate_or_key_is_one_mistake(
    tmp_path: Path, key: str, other: str
) -> None:
    pair = dict(zip(("tls_certificate", "tls_key"), certificate(tmp_path, "own"), strict=True))
    text = f"[gateway]\n{key} = {pair[key]}\n{other} = /nonexistent\n"
    [line] = ini_problems(tmp_path, text)
    assert line.startswith(f"FILE:3: [gateway] {other}: cannot be read (No such file")


def test_a_key_of_another_certificate_or_with_a_passphrase_is_a_mistake(tmp_path: Path) -> None:
    crt, key = certificate(tmp_path, "own")
    _, other = certificate(tmp_path, "other")
    locked = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "pkey", "-in", key, "-aes128", "-passout", "pass:x", "-out", str(locked)],
        check=True,
    )
    for wrong in (other, locked, crt):
        [line] = ini_problems(tmp_path, f"[gateway]\ntls_certificate = {crt}\ntls_key = {wrong}\n")
        assert line.startswith("FILE:3: [gateway] tls_key: does not match tls_certificate")


def test_a_certificate_that_is_not_valid_yet_is_a_warning_with_its_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class LongAgo(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "LongAgo":
            return cls(2020, 1, 1, tzinfo=tz)

    crt, key = certificate(tmp_path, "own")
    Path(key).chmod(0o600)
    monkeypatch.setattr(pem, "datetime", LongAgo)
    text = f"[gateway]\ntls_certificate = {crt}\ntls_key = {key}\n"
    [line] = ini_warnings(tmp_path, text)
    assert re.search(r"FILE:2: \[gateway\] tls_certificate: is not valid before 2\d{3}-", line)


@pytest.mark.parametrize(
    ("days", "said"), [(-1, "expired on 20"), (1, None)], ids=["expired", "good"]
)
def test_a_certificate_that_has_expired_is_a_warning_with_its_date(
    tmp_path: Path, days: int, said: str | None
) -> None:
    crt, key = certificate(tmp_path, "own", days=days)
    Path(key).chmod(0o600)
    text = f"[gateway]\ntls_certificate = {crt}\ntls_key = {key}\n"
    text += f"[backend a]\nurl = https://a\ntls_ca = {crt}\n"
    warnings = ini_warnings(tmp_path, text)
    if said is None:
        assert warnings == []
    else:
        assert len(warnings) == 2
        assert f"FILE:2: [gateway] tls_certificate: {said}" in warnings[0]
        assert "FILE:6: [backend a] tls_ca: contains only certificates that have exp" in warnings[1]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o604])
def test_a_private_key_that_everyone_can_read_is_a_warning(tmp_path: Path, mode: int) -> None:
    crt, key = certificate(tmp_path, "own")
    Path(key).chmod(mode)
    warnings = ini_warnings(tmp_path, f"[gateway]\ntls_certificate = {crt}\ntls_key = {key}\n")
    assert len(warnings) == bool(mode & stat.S_IROTH)
    assert all("[gateway] tls_key: the file with this key can" in line for line in warnings)


def test_two_tokens_with_the_same_digest_are_a_warning(tmp_path: Path) -> None:
    text = f"[token a]\nsha256 = {DIGEST}\n[token b]\nsha256 = {DIGEST.upper()}\n"
    [line] = ini_warnings(tmp_path, text)
    assert "FILE:4: [token b] sha256: is also the token of [token a], expected another one" in line


def test_two_different_tokens_are_no_warning(tmp_path: Path) -> None:
    text = f"[token a]\nsha256 = {DIGEST}\n[token b]\nsha256 = {'cd' * 32}\n"
    assert ini_warnings(tmp_path, text) == []


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.1"])
def test_an_address_other_than_loopback_is_a_warning(address: str) -> None:
    [warning] = warnings_of(load({}, {"listen": address}))
    assert warning.startswith(f"[gateway] listen: {address} is not a loopback address")


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_a_loopback_address_is_no_warning(address: str) -> None:
    assert warnings_of(load({}, {"listen": address})) == ()


@pytest.mark.parametrize(
    ("text", "vain"),
    [
        ("[timeouts]\npatience = 5\n[backend a]\nurl = http://a\n", True),
        ("[backend a]\nurl = http://a\npatience = 5\n[backend b]\nurl = http://b\n", True),
        ("[timeouts]\npatience = 5\n[routing]\nreask = before-commit\n", False),
        (
            "[timeouts]\npatience = 5\n[backend a]\nurl = http://a\nreask = before-commit\n"
            "[backend b]\nurl = http://b\n",
            False,
        ),
        ("[routing]\nreask = before-commit\n[backend a]\nurl = http://a\n", False),
    ],
)
def test_a_patience_without_effect_is_a_warning(tmp_path: Path, text: str, vain: bool) -> None:
    warnings = warnings_of(load({}, path=ini_file(tmp_path, text)))
    assert any("patience has no effect" in warning for warning in warnings) is vain
