"""The declarations of settings, and documentation that cannot drift from them."""

import re
import stat
from pathlib import Path

from gatewayd.settings.load import load
from gatewayd.settings.model import (
    BackendSettings,
    Settings,
    TokenSettings,
)
from tests.inifile import EVERY, ini_file, problems

ROOT = Path(__file__).parent.parent

DOCS = (ROOT / "docs" / "configuration.rst").read_text()

SHIPPED = (ROOT / "etc" / "gatewayd.ini").read_text()


def test_the_shipped_file_is_the_defaults() -> None:
    path = ROOT / "etc" / "gatewayd.ini"
    assert load({}, path=str(path)) == Settings()


def test_the_shipped_file_is_the_defaults_with_every_line_in_use(tmp_path: Path) -> None:
    """Without the keys of backends, which must not be empty or are in other files."""
    text = re.sub(r"(?m)^# (?=\[|\w+ =)", "", SHIPPED)
    text = re.sub(r"(?m)^api_key(_file)? =.*\n", "", text)
    text = text.replace("sha256 =", f"sha256 = {'ab' * 32}")
    assert load({}, path=ini_file(tmp_path, text)) == Settings(
        backends=(
            BackendSettings("gpu1", "http://127.0.0.1:8080"),
            BackendSettings("gpu2", "https://inference.example.com/openai"),
        ),
        tokens=(TokenSettings("alice", b"\xab" * 32),),
    )


def test_the_shipped_file_has_every_setting_and_no_other() -> None:
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


def test_the_tables_have_every_setting_and_no_other() -> None:
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


def test_the_documented_mistakes_are_the_real_ones(tmp_path: Path) -> None:
    path = ini_file(tmp_path, "\n\n[gateway]\nport = abc\n\n\n\n[timeouts]\nconect = 3\n")
    lines = problems({"BACKEND_URL": "gpu1"}, {"listen": "gpu1"}, path)
    assert len(lines) == 4
    for line in lines:
        assert line.replace("FILE", "/etc/gatewayd/gatewayd.ini") in DOCS


def test_the_documented_ini_file_can_be_loaded(tmp_path: Path) -> None:
    text = DOCS.partition("below them, UTF-8, at most 1 MiB::\n\n")[2].partition("``etc/")[0]
    key = tmp_path / "gpu2.key"
    key.write_text("k\n")
    key.chmod(stat.S_IRUSR)
    text = re.sub("(?m)^    ", "", text).replace("/etc/gatewayd/gpu2.key", str(key))
    settings = load({}, path=ini_file(tmp_path, text))
    assert settings.gateway.root_path == "/inference"
    assert [backend.first_byte for backend in settings.backends] == [600.0, 30.0]
