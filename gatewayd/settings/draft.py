"""A draft of the settings: the values given so far, their places, mistakes and warnings.

:mod:`.sources` fills a draft, :mod:`.checks` completes it, and :mod:`.load` makes the settings from
it. Every value is parsed when it is given, even if a later source overrides it. Otherwise its
mistake would appear only when that source is removed.
"""

import os
from enum import IntEnum
from typing import Any, NamedTuple

from .declaring import SectionId
from .model import SETTINGS

#: The number of problems that are listed; a wrong file may have one in each line.
MOST_PROBLEMS = 100


class Source(IntEnum):
    """The sources in the order in which they are read; a later one overrides an earlier one."""

    FILE = 0
    ENVIRONMENT = 1
    COMMAND_LINE = 2


class Place(NamedTuple):
    """Where something was given. Places sort in the order in which problems are listed."""

    source: Source
    line: int
    """0 in a source without lines, and for the file as a whole."""
    text: str
    """The beginning of a message: ``FILE:4: [gateway] port``."""


class Section:
    """The values of one section, and where they came from.

    :param start: the place of the section itself. A missing key is reported there; the text ends
        where the key would follow.
    """

    def __init__(self, start: Place) -> None:
        self.start = start
        self.values: dict[str, Any] = {}  # None: given, but empty
        self.places: dict[str, Place] = {}

    def was_given(self, key: str) -> bool:
        """Whether there is a value that is not empty, even one that could not be parsed."""
        if key in self.values:
            return self.values[key] is not None
        return key in self.places


class Draft:
    """
    :param folder: the folder of files that are named without a leading slash; empty for the
        working folder.
    """

    def __init__(self, folder: str = "") -> None:
        self._folder = folder
        self.sections: dict[SectionId, Section] = {}
        self.problems: list[tuple[Place, str]] = []
        self._warnings: list[str] = []

    def begin(self, id: SectionId, start: Place) -> Section:
        """The section; it is made if it does not exist yet."""
        return self.sections.setdefault(id, Section(start))

    def of_kind(self, kind: str) -> list[SectionId]:
        return [id for id in self.sections if id.kind == kind]

    def values(self, kind: str) -> dict[str, Any]:
        """The values of the only section of its kind."""
        section = self.sections.get(SectionId(kind))
        return section.values if section else {}

    def put(self, id: SectionId, key: str, text: str, place: Place) -> None:
        """Parse a value and keep it; it replaces an earlier one."""
        section = self.begin(id, place)
        section.places[key] = place
        setting, text = SETTINGS[id.kind][key], text.strip()
        if setting.is_file and text not in ("", "-"):
            text = os.path.join(self._folder, text)
        try:
            section.values[key] = setting.parse(text)
        except ValueError as error:
            section.values.pop(key, None)
            self.problem(place, str(error))

    def problem(self, place: Place, reason: str) -> None:
        self.problems.append((place, reason))

    def missing(self, id: SectionId, key: str, expected: str) -> None:
        source, line, text = self.sections[id].start
        place = Place(source, line, text + (key.upper() if source is Source.ENVIRONMENT else key))
        self.problem(place, f"is missing, expected {expected}")

    def warn(self, place: Place, reason: str) -> None:
        self._warnings.append(f"{place.text}: {reason}")

    def warn_exposed(self, place: Place, mode: str = "0600") -> None:
        self.warn(place, f"the file with this key can be read by other users, expected mode {mode}")

    def problem_lines(self) -> tuple[str, ...]:
        """One line for each problem, in the order of their places."""
        listed = sorted(self.problems)[:MOST_PROBLEMS]
        lines = tuple(_one_line(f"{place.text}: {reason}") for place, reason in listed)
        more = len(self.problems) > len(listed)
        return (*lines, "There are more mistakes.") if more else lines

    def warning_lines(self) -> tuple[str, ...]:
        return tuple(map(_one_line, self._warnings))


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
