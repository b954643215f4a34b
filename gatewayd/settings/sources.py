"""What the ini file, the environment and the command line give, each value with its place.

Nothing here knows which settings there are: a `Schema` says it, and :mod:`gatewayd.settings.model`
makes one. A source that comes later replaces what an earlier one gave, but every value is checked,
so a mistake does not hide behind a variable that happens to be set.
"""

import difflib
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import attrs

from . import ini
from .files import read_file
from .values import secret

#: The most mistakes that are listed: a file of something else has one in each line.
MOST_PROBLEMS = 100

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PROPER = "expected one of letters, digits and . _ -, at most 64"
# What Kubernetes puts into the environment for services named gatewayd and gatewayd-something.
_KUBERNETES = re.compile(
    r"\w+(_SERVICE_HOST|_SERVICE_PORT(_\w+)?|_PORT_[0-9]+_(TCP|UDP|SCTP)(_\w+)?)="
    r"|\w+_PORT=(tcp|udp|sctp)://"
)


@attrs.frozen
class About:
    """What is known of one key: its default as text (None: must be given), parser and meaning."""

    default: str | None
    parse: Callable[[str], Any]
    doc: str
    is_file: bool = False
    """Whether the value is the name of a file."""


@attrs.frozen
class Schema:
    """The settings there are."""

    keys: Mapping[str, Mapping[str, About]]
    """By section, then by key."""
    named: frozenset[str]
    """Sections written ``[backend NAME]``, any number of them."""
    variables: Mapping[str, tuple[str, str]]
    """Environment variables with a name of their own -> section and key."""
    options: Mapping[str, tuple[str, str]]
    """Options of the command line, likewise."""

    def title(self, kind: str) -> str:
        return f"{kind} NAME" if kind in self.named else kind


class Place(NamedTuple):
    """Where something was given, in the order in which mistakes are listed."""

    source: int
    line: int
    text: str


def _place(path: str, line: int, what: str = "") -> Place:
    """A place in an ini file; line 0 is the file as a whole."""
    return Place(0, line, path + (f":{line}" if line else "") + (what and f": {what}"))


class Gathering:
    """What the sources have given so far: values by section and key, and what is wrong.

    :param folder: where a relative name of a file is looked up; empty for the working folder.
    """

    def __init__(self, schema: Schema, folder: str = "") -> None:
        self.schema = schema
        self._folder = folder
        # Sections as they are written in the file, "backend gpu1"; in the order of their making.
        self.sections: dict[str, dict[str, Any]] = {}
        self.places: dict[tuple[str, str], Place] = {}
        self.problems: list[tuple[Place, str]] = []
        self.warnings: list[str] = []

    def put(self, section: str, key: str, text: str, place: Place) -> None:
        values = self.sections.setdefault(section, {})
        self.places[section, key] = place
        about, text = self.schema.keys[section.partition(" ")[0]][key], text.strip()
        if about.is_file and text not in ("", "-"):
            text = os.path.join(self._folder, text)
        try:
            values[key] = about.parse(text)
        except ValueError as error:
            values.pop(key, None)
            self.problems.append((place, str(error)))

    # The file

    def read_ini(self, path: str) -> None:
        def blame(line: int, reason: str) -> None:
            self.problems.append((_place(path, line), reason))

        try:
            file = read_file(path)
        except ValueError as error:
            return blame(0, str(error))
        content = file.content
        if b"\0" in content:
            line = content.count(b"\n", 0, content.index(b"\0")) + 1
            return blame(line, "has a NUL byte, expected a text file")
        try:
            found, mistakes = ini.parse(content.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            return blame(line, "is not UTF-8, expected a text file")
        for mistake in mistakes[: MOST_PROBLEMS + 1]:
            blame(mistake.line, mistake.reason)
        for section in found:
            self._read_section(path, section, file.readable_by(stat.S_IRGRP | stat.S_IROTH))

    def _read_section(self, path: str, found: ini.Section, exposed: bool) -> None:
        """:param exposed: whether others may read the file."""
        header = f"[{found.name[:80]}]"
        kind, _, name = found.name.partition(" ")
        place = _place(path, found.line, header)
        if kind in self.schema.named and not _NAME.fullmatch(name):
            self.problems.append((place, f"has no proper name, {_PROPER}"))
            return
        if kind not in self.schema.keys or (name and kind not in self.schema.named):
            known = [f"[{self.schema.title(kind)}]" for kind in self.schema.keys]
            self._unknown_name(place, "section", header, known)
            return
        if found.name in self.sections:
            self.problems.append((place, "is there twice, expected once"))
        self.sections.setdefault(found.name, {})
        self.places[found.name, ""] = _place(path, found.line, f"{header} ")
        keys = self.schema.keys[kind]
        for line, key, text in found.entries:
            if key not in keys:
                place = _place(path, line, f"{header} {_key_shown(key, keys)}")
                self._unknown_name(place, "key", key, keys)
                continue
            place = _place(path, line, f"{header} {key}")
            if (found.name, key) in self.places:
                first = self.places[found.name, key].line
                self.problems.append((place, f"is given on line {first} too, expected once"))
            self.put(found.name, key, text, place)
            if exposed and keys[key].parse is secret:
                self.warn_exposed(place)

    def _unknown_name(self, place: Place, what: str, name: str, known: Iterable[str]) -> None:
        # Looking for a similar name takes long; nobody will read it behind so many others.
        near = _instead(name, known) if len(self.problems) <= MOST_PROBLEMS else ""
        self.problems.append((place, f"unknown {what}, {near}"))

    # The environment and the command line

    def read_environment(self, environ: Mapping[str, str]) -> None:
        for name, (section, key) in self.schema.variables.items():
            if environ.get(name, "").strip():
                self.put(section, key, environ[name], Place(1, 0, f"environment: {name}"))
        for name in sorted(environ):
            rest = name.removeprefix("GATEWAYD_").lower()
            kind = next((kind for kind in self.schema.keys if rest.startswith(f"{kind}_")), "")
            if rest == name.lower() or not kind or _KUBERNETES.match(f"{name}={environ[name]}"):
                continue
            place = Place(1, 0, f"environment: {name}")
            rest = rest.removeprefix(f"{kind}_")
            section, key = (
                self._named(kind, rest, place) if kind in self.schema.named else (kind, rest)
            )
            if key in self.schema.keys[kind]:
                self.put(section, key, environ[name], place)
            else:
                self.problems.append((place, self._unknown(kind, rest)))

    def _unknown(self, kind: str, rest: str) -> str:
        """What is wrong with the variable ``GATEWAYD_<kind>_<rest>``."""
        start, keys = f"GATEWAYD_{kind}_".upper(), [key.upper() for key in self.schema.keys[kind]]
        if kind not in self.schema.named:
            return f"unknown key, {_instead(rest.upper(), keys)} after {start}"
        if rest in self.schema.keys[kind]:
            short = f"{kind}_{rest}".upper()
            other = f" or {short}" if short in self.schema.variables else ""
            return f"names no {kind}, expected {start}NAME_{rest.upper()}{other}"
        return f"unknown key, {_instead(rest.partition('_')[2].upper(), keys)} after {start}NAME_"

    def _named(self, kind: str, rest: str, place: Place) -> tuple[str, str]:
        """``gpu_1_api_key`` -> the section of that name, perhaps ``backend GPU-1``, and the key."""
        key = max(
            (key for key in self.schema.keys[kind] if rest.endswith(f"_{key}")), key=len, default=""
        )
        name = rest.removesuffix(f"_{key}")
        found = [
            section
            for section in self.sections
            if section.startswith(f"{kind} ")
            and re.sub("[^a-z0-9]", "_", section.removeprefix(f"{kind} ").lower()) == name
        ]
        if len(found) > 1:
            both = " or ".join(f"[{section}]" for section in found)
            self.problems.append((place, f"may mean {both}, expected names that differ more"))
        elif key and not found and not _NAME.fullmatch(name):
            self.problems.append((place, f"has no proper name, {_PROPER}"))
        section = found[0] if found else f"{kind} {name}"
        start = f"GATEWAYD_{kind}_{name}_".upper()
        self.places.setdefault((section, ""), Place(1, 0, f"environment: {start}"))
        return section, key

    def read_options(self, options: Mapping[str, str]) -> None:
        for name, text in options.items():
            section, key = self.schema.options[name]
            self.put(section, key, text, Place(2, 0, f"command line: --{name}"))

    # Afterwards

    def in_file(self, section: str) -> bool:
        return (section, "") in self.places and self.places[section, ""].source == 0

    def missing(self, section: str, key: str, expected: str) -> None:
        source, line, start = self.places[section, ""]
        place = Place(source, line, start + (key.upper() if source else key))
        self.problems.append((place, f"is missing, expected {expected}"))

    def was_given(self, section: str, key: str) -> bool:
        """Whether there is a value that is not empty, be it one that could not be read."""
        if key in self.sections.get(section, {}):
            return self.sections[section][key] is not None
        return (section, key) in self.places

    def alone(self, section: str, key: str, missing: str) -> None:
        """One of two keys that only make sense together is missing."""
        place = self.places[section, key]
        self.problems.append((place, f"is given alone, expected {missing} beside it"))

    def warn(self, place: Place, said: str) -> None:
        self.warnings.append(f"{place.text}: {said}")

    def warn_exposed(self, place: Place, mode: str = "0600") -> None:
        self.warn(place, f"others may read the file of this key, expected one with mode {mode}")

    def problem_lines(self) -> tuple[str, ...]:
        listed = sorted(self.problems)[:MOST_PROBLEMS]
        lines = tuple(_one_line(f"{place.text}: {why}") for place, why in listed)
        return (*lines, "There are more mistakes.") if len(self.problems) > len(listed) else lines

    def warning_lines(self) -> tuple[str, ...]:
        return tuple(map(_one_line, self.warnings))


def _instead(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, known, 1)
    return (f"did you mean {close[0]}? " if close else "") + f"expected one of {', '.join(known)}"


def _key_shown(key: str, known: Iterable[str]) -> str:
    """The key, unless it looks like a secret that fell on the wrong side of an equals sign."""
    close = re.fullmatch("[a-z0-9_-]+", key) and difflib.get_close_matches(key, known, 1, 0.8)
    return key if close or re.fullmatch("[a-z_]{1,20}", key) else "..."


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
