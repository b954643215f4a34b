"""The ini files of ``docs/recipes.rst``, made to work in a folder of a test."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from tests.certificates import certificate

DOCS = Path(__file__).parent.parent / "docs" / "recipes.rst"

_FOLDER = "/etc/gatewayd/"
_TITLE = re.compile(r"^(.+)\n-+\n", re.MULTILINE)
_INI = re.compile(r"^\.\. code-block:: ini\n\n((?: {4}.*\n|\n)+)", re.MULTILINE)
_SECRET = re.compile(rf"_file = {_FOLDER}(\S+)$", re.MULTILINE)


def recipes() -> dict[str, str]:
    """The ini file of each section, by the section's title."""
    _, *sections = _TITLE.split(DOCS.read_text())
    found = zip(sections[::2], map(_INI.findall, sections[1::2]), strict=True)
    return {title: textwrap.dedent(ini) for title, (ini,) in found}


def prepare(ini: str, folder: Path, **urls: str) -> str:
    """The ini file with its files in ``folder``; the secret in a file is ``in-NAME``.

    :param urls: other URLs for backends, by their names.
    """
    for name in _SECRET.findall(ini):
        (folder / name).write_text(f"in-{name}")
        (folder / name).chmod(0o600)
    if "tls_certificate" in ini:
        certificate(folder, "gateway")
        (folder / "gateway.key").chmod(0o600)
    for name, url in urls.items():
        ini, count = re.subn(rf"(\[backend {name}\]\nurl = )\S+", rf"\g<1>{url}", ini)
        assert count == 1, name
    return ini.replace(_FOLDER, f"{folder}/")
