"""Files that settings name: only regular files are read."""

import os
import socket
from pathlib import Path

import pytest

from gatewayd.settings.files import read_file
from gatewayd.settings.load import SettingsError, load
from tests.inifile import ini_problems


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


KEYS = {
    "[backend a] api_key_file": "[backend a]\nurl = http://a\napi_key_file = {}\n",
    "[backend a] tls_ca": "[backend a]\nurl = http://a\ntls_ca = {}\n",
    "[token a] token_file": "[token a]\n\ntoken_file = {}\n",
    "[gateway] tls_certificate": "[gateway]\ntls_key =\ntls_certificate = {}\n",
    "[gateway] tls_key": "[gateway]\ntls_certificate =\ntls_key = {}\n",
}


@pytest.mark.parametrize("key", KEYS)
def test_a_pipe_is_refused_at_once_wherever_a_file_is_named(
    tmp_path: Path, fifo: Path, key: str
) -> None:
    [line] = ini_problems(tmp_path, KEYS[key].format(fifo))
    assert line == f"FILE:3: {key}: is a pipe, expected a regular file"


def test_a_pipe_as_the_ini_file_is_refused_at_once(fifo: Path) -> None:
    with pytest.raises(SettingsError, match="fifo: is a pipe, expected a regular file"):
        load({}, path=str(fifo))


@pytest.mark.parametrize(
    ("path", "kind"), [("/dev/zero", "a device"), ("/dev/null", "a device"), ("/", "a dir")]
)
def test_devices_and_folders_are_refused(path: str, kind: str) -> None:
    with pytest.raises(ValueError, match=f"is {kind}.*, expected a regular file"):
        read_file(path)


def test_a_socket_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{tmp_path}/s")
        with pytest.raises(ValueError, match="is a socket, expected a regular file"):
            read_file(f"{tmp_path}/s")


def test_a_pipe_that_replaces_a_file_after_the_check_does_not_block(
    tmp_path: Path, fifo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    status = os.stat(plain)
    monkeypatch.setattr("os.stat", lambda _: status)
    with pytest.raises(ValueError, match="is a pipe, expected a regular file"):
        read_file(str(fifo))


def test_a_link_to_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"x")
    (tmp_path / "link").symlink_to("plain")
    assert read_file(str(tmp_path / "link")).content == b"x"
