"""The form of an ini file: text -> sections and keys with their lines, and what has no form.

The syntax is that of Python's configparser, with ``=`` as the only delimiter and comments on lines
of their own. configparser itself is not used: it knows no line numbers, and stops at the first
mistake where an operator wants to see all of them. What sections and keys mean is not known here.
A mistake never quotes its line, which may hold a secret.
"""

import re
from typing import NamedTuple

_HEADER = re.compile(r"\[([^\]]+)\](.*)", re.DOTALL)


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
    reader = _Reader()
    for number, line in enumerate(text.split("\n"), 1):
        reader.read(number, line)
    reader.end_value()
    return reader.sections, reader.mistakes


class _Reader:
    """Reads line by line, in one pass."""

    def __init__(self) -> None:
        self.sections: list[Section] = []
        self.mistakes: list[Mistake] = []
        self._before_first = False  # whether a line before the first section was complained of
        self._indent = 0  # of the last line that began something
        # The key whose value may go on in the next line.
        self._line = 0
        self._key = ""
        self._value: list[str] | None = None

    def read(self, number: int, line: str) -> None:
        text = line.strip()
        if not text:
            if self._value is not None:
                self._value.append("")
            return
        if text[0] in "#;":
            return
        indent = len(line) - len(line.lstrip())
        if self._value is not None and indent > self._indent:
            self._value.append(text)
            return
        self.end_value()
        self._indent = indent
        if header := _HEADER.match(text):
            self._begin_section(number, header[1], header[2].strip())
        elif self.sections:
            self._begin_value(number, text)
        elif not self._before_first:
            self._before_first = True
            self._wrong(number, "stands before the first section, expected one such as [gateway]")

    def end_value(self) -> None:
        """The value does not go on."""
        if self._value is not None:
            text = "\n".join(self._value).rstrip()
            self.sections[-1].entries.append(Entry(self._line, self._key, text))
            self._value = None

    def _begin_section(self, number: int, name: str, rest: str) -> None:
        self.sections.append(Section(number, " ".join(name.split()), []))
        if rest[:1] not in ("", "#", ";"):  # such as the port in "[gateway] port = 80"
            self._wrong(number, "goes on after the section's name, expected a line of its own")

    def _begin_value(self, number: int, text: str) -> None:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            self._wrong(number, 'is not understood, expected "key = value" or "[section]"')
            return
        self._line, self._key, self._value = number, key.strip().lower(), [value.strip()]

    def _wrong(self, number: int, reason: str) -> None:
        self.mistakes.append(Mistake(number, reason))
