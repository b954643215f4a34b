"""The mistakes in settings, as lines: how many, and without control characters."""

from pathlib import Path

from tests.inifile import ini_problems


def test_of_very_many_mistakes_the_first_are_listed(tmp_path: Path) -> None:
    for text in ("[gateway]\n" + "port = 1\n" * 2000, "[x]\n" * 2000, "[log]\n" + "y\n" * 2000):
        lines = ini_problems(tmp_path, text)
        assert len(lines) == 101
        assert lines[0].startswith(("FILE:1: ", "FILE:2: ", "FILE:3: "))
        assert lines[-1] == "There are more mistakes."


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    for line in ini_problems(tmp_path, "[\x1b[2J]\n[gateway]\n\x1b[2Jport = \x1b[2J\n"):
        assert line.isprintable()
