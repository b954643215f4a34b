"""Ini files, and the mistakes in them, as tests of settings write and read them."""

from pathlib import Path

import pytest

from gatewayd.settings.load import SettingsError, load
from gatewayd.settings.model import NAMED, SETTINGS, Settings

#: Each kind of section as documentation writes it, a key of it, and its declaration.
EVERY = [
    (f"{kind} NAME" if kind in NAMED else kind, key, setting)
    for kind, settings in SETTINGS.items()
    for key, setting in settings.items()
]


def ini_file(folder: Path, text: str) -> str:
    """Write an ini file that only its owner can read; return its path."""
    path = folder / "gatewayd.ini"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    path.chmod(0o600)
    return str(path)


def read(folder: Path, text: str) -> Settings:
    """The settings in an ini file alone."""
    return load({}, path=ini_file(folder, text))


def problems(
    environ: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
    path: str | None = None,
) -> list[str]:
    """The problems of these sources, with ``FILE`` for the path of the ini file."""
    with pytest.raises(SettingsError) as caught:
        load(environ or {}, options, path)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return [line.replace(path or "\0", "FILE") for line in caught.value.problems]


def ini_problems(folder: Path, text: str) -> list[str]:
    """The problems of an ini file alone."""
    return problems(path=ini_file(folder, text))


def ini_warnings(folder: Path, text: str) -> list[str]:
    """The warnings of an ini file alone, with ``FILE`` for its path."""
    path = ini_file(folder, text)
    return [line.replace(path, "FILE") for line in load({}, path=path).warnings]
