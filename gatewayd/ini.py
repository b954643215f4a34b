"""The form of an ini file: text -> sections and keys with their lines, and what has no form.

configparser does the parsing. Added is what an operator wants from it: line numbers, and all the
mistakes at once where configparser stops at the first. What sections and keys mean is not known
here. A mistake never quotes its line, which may hold a secret.
"""

import configparser
import re
from typing import NamedTuple


class Entry(NamedTuple):
    line: int
    key: str
    text: str


class Section(NamedTuple):
    line: int
    name: str
    entries: list[Entry]


class Mistake(NamedTuple):
    line: int
    reason: str


def parse(text: str) -> tuple[list[Section], list[Mistake]]:
    """Sections and keys in order; one that is there twice comes twice."""
    lines = text.split("\n")
    mistakes: list[Mistake] = []
    ini = _read(lines, mistakes)
    numbers = _line_numbers(ini, lines, mistakes)
    sections = []
    for name in ini.sections():
        start = numbers.get((name, ""), 1)
        entries = [
            Entry(numbers.get((name, key), start), key.rstrip("\0"), value)
            for key, value in ini.items(name)
        ]
        sections.append(Section(start, " ".join(name.rstrip("\0").split()), entries))
    return sections, mistakes


def _read(lines: list[str], mistakes: list[Mistake]) -> configparser.ConfigParser:
    """Try until it goes well: a repeated name gets a NUL at its end, other mistakes go."""
    while True:
        # A section called DEFAULT would be mixed into all others; none can be called "".
        ini = configparser.ConfigParser(delimiters="=", interpolation=None, default_section="")
        try:
            ini.read_file(lines)
            return ini
        except configparser.DuplicateSectionError as error:
            lines[(error.lineno or 1) - 1] = f"[{error.section}\0]"
        except configparser.DuplicateOptionError as error:
            number = (error.lineno or 1) - 1
            key, _, value = lines[number].partition("=")
            lines[number] = f"{key.rstrip()}\0={value}"
        except configparser.MissingSectionHeaderError as error:
            reason = "stands before the first section, expected one such as [gateway]"
            mistakes.append(Mistake(error.lineno, reason))
            lines[error.lineno - 1] = "#"
            for number in range(error.lineno, len(lines)):
                if lines[number].lstrip().startswith("["):
                    break
                lines[number] = "#"
        except configparser.ParsingError as error:
            for number, _ in error.errors:
                reason = 'is not understood, expected "key = value" or "[section]"'
                mistakes.append(Mistake(number, reason))
                lines[number - 1] = "#"


def _line_numbers(
    ini: configparser.ConfigParser, lines: list[str], mistakes: list[Mistake]
) -> dict[tuple[str, str], int]:
    """The line of each section, under the key "", and of each key in it."""
    numbers: dict[tuple[str, str], int] = {}
    section = ""
    for number, line in enumerate(lines, 1):
        if (match := re.match(r"\s*\[(.+)\](.*)", line)) and ini.has_section(match[1]):
            section = match[1]
            numbers.setdefault((section, ""), number)
            # configparser passes over it in silence, over the port in "[gateway] port = 80" too.
            if match[2].strip()[:1] not in ("", "#", ";"):
                reason = "goes on after the section's name, expected a line of its own"
                mistakes.append(Mistake(number, reason))
        elif section:
            key = line.partition("=")[0].strip().lower()
            if ini.has_option(section, key):
                numbers.setdefault((section, key), number)
    return numbers
