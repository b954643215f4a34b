"""The recipes of the documentation are ini files that ``--check`` accepts without a warning."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gatewayd.tap import Options
from tests.recipes import DOCS, prepare, recipes

TITLES = [
    "Two llama.cpp boxes",
    "vLLM with a hosted fallback",
    "Ollama behind tokens",
    "Claude Code with llama.cpp",
]


def test_each_section_has_an_ini_file() -> None:
    assert list(recipes()) == TITLES
    assert DOCS.read_text().count("code-block:: ini") == len(TITLES)


@pytest.mark.parametrize("title", TITLES)
def test_a_recipe_passes_the_check(
    title: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "gatewayd.ini"
    config.write_text(prepare(recipes()[title], tmp_path))
    with pytest.raises(SystemExit) as caught:
        Options().parseOptions(["--check", "--config", str(config)])
    out, err = capsys.readouterr()
    assert (caught.value.code, err) == (0, "")
    for name in re.findall(r"\[backend (\S+)\]", config.read_text()):
        assert name in out
