"""The sources of settings: an ini file, the environment, the command line.

Each is read into a :class:`.draft.Draft`. Text becomes a section and a key here, and nowhere else;
unknown sections and keys are mistakes.
"""

import difflib
import re
import stat
from collections.abc import Iterable, Mapping

from . import ini
from .declaring import SectionId
from .draft import MOST_PROBLEMS, Draft, Place, Source
from .files import read_file
from .model import NAMED, OPTIONS, SETTINGS, VARIABLES

#: The name of a backend or a token.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NAME_EXPECTED = "expected a name of at most 64 letters, digits and . _ -"
# What Kubernetes adds to the environment for services named gatewayd and gatewayd-something.
_KUBERNETES = re.compile(
    r"\w+(_SERVICE_HOST|_SERVICE_PORT(_\w+)?|_PORT_[0-9]+_(TCP|UDP|SCTP)(_\w+)?)="
    r"|\w+_PORT=(tcp|udp|sctp)://"
)


def read_options(draft: Draft, options: Mapping[str, str]) -> None:
    """Read options of the command line, by name without dashes."""
    for name, text in options.items():
        section, key = OPTIONS[name]
        draft.put(section, key, text, Place(Source.COMMAND_LINE, 0, f"command line: --{name}"))


# The ini file


def read_ini(draft: Draft, path: str) -> None:
    try:
        file = read_file(path)
    except ValueError as error:
        return draft.problem(_in_file(path, 0), str(error))
    content = file.content
    if b"\0" in content:
        line = content.count(b"\n", 0, content.index(b"\0")) + 1
        return draft.problem(_in_file(path, line), "has a NUL byte, expected a text file")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return draft.problem(_in_file(path, line), "is not UTF-8, expected a text file")
    exposed = file.readable_by(stat.S_IRGRP | stat.S_IROTH)
    section: SectionId | None = None
    for item in ini.parse(text):
        if isinstance(item, ini.Mistake):
            draft.problem(_in_file(path, item.line), item.reason)
        elif isinstance(item, ini.Header):
            section = _begin_section(draft, path, item)
        elif section is not None:  # the entries of an unknown section are ignored
            _read_entry(draft, path, section, item, exposed)


def _in_file(path: str, line: int, what: str = "") -> Place:
    return Place(Source.FILE, line, path + (f":{line}" if line else "") + (what and f": {what}"))


def _begin_section(draft: Draft, path: str, header: ini.Header) -> SectionId | None:
    """The section of a header; None if there is no such section."""
    section = SectionId(*header.name.split(" ", 1))
    shown = f"[{header.name[:80]}]"
    place = _in_file(path, header.line, shown)
    if section.kind in NAMED and not NAME.fullmatch(section.name):
        draft.problem(place, f"has no proper name, {_NAME_EXPECTED}")
        return None
    if section.kind not in SETTINGS or (section.name and section.kind not in NAMED):
        known = [str(SectionId(kind, "NAME" if kind in NAMED else "")) for kind in SETTINGS]
        draft.problem(place, f"unknown section, {_suggestion(draft, shown, known)}")
        return None
    if section in draft.sections:
        draft.problem(place, "occurs twice, expected once")
    start = _in_file(path, header.line, f"{section} ")
    draft.begin(section, start).start = start  # the last header of a section counts
    return section


def _read_entry(
    draft: Draft, path: str, section: SectionId, entry: ini.Entry, exposed: bool
) -> None:
    """:param exposed: whether other users can read the file."""
    line, key, text = entry
    settings = SETTINGS[section.kind]
    if key not in settings:
        place = _in_file(path, line, f"{section} {_key_shown(key, settings)}")
        return draft.problem(place, f"unknown key, {_suggestion(draft, key, settings)}")
    place = _in_file(path, line, f"{section} {key}")
    if first := draft.sections[section].places.get(key):
        draft.problem(place, f"is also given on line {first.line}, expected once")
    draft.put(section, key, text, place)
    if exposed and settings[key].is_secret:
        draft.warn_exposed(place)


def _key_shown(key: str, known: Iterable[str]) -> str:
    """The key, unless it may be a secret that was written on the wrong side of an equals sign."""
    close = re.fullmatch("[a-z0-9_-]+", key) and difflib.get_close_matches(key, known, 1, 0.8)
    return key if close or re.fullmatch("[a-z_]{1,20}", key) else "..."


# The environment


def read_environment(draft: Draft, environ: Mapping[str, str]) -> None:
    """Read ``GATEWAYD_<SECTION>_<KEY>`` and the variables with short names.

    The ini file must be read before: the name of a variable is matched with its sections.
    """
    for name, (section, key) in VARIABLES.items():
        if environ.get(name, "").strip():
            draft.put(section, key, environ[name], _in_environment(name))
    for name in sorted(environ):
        if not name.startswith("GATEWAYD_") or _KUBERNETES.match(f"{name}={environ[name]}"):
            continue
        rest, place = name.removeprefix("GATEWAYD_").lower(), _in_environment(name)
        kind = next((kind for kind in SETTINGS if rest.startswith(f"{kind}_")), "")
        if not kind:
            continue
        rest = rest.removeprefix(f"{kind}_")
        section, key = SectionId(kind), rest
        if kind in NAMED:
            section, key = _split_variable(draft, kind, rest, place)
        if key in SETTINGS[kind]:
            draft.put(section, key, environ[name], place)
        else:
            draft.problem(place, _unknown_variable(draft, kind, rest))


def _in_environment(what: str) -> Place:
    return Place(Source.ENVIRONMENT, 0, f"environment: {what}")


def _split_variable(draft: Draft, kind: str, rest: str, place: Place) -> tuple[SectionId, str]:
    """``gpu_1_api_key`` -> the section with that name, perhaps ``[backend GPU-1]``, and the key.

    The key is empty if `rest` ends with none.
    """
    keys = [key for key in SETTINGS[kind] if rest.endswith(f"_{key}")]
    key = max(keys, key=len, default="")
    name = rest.removesuffix(f"_{key}")
    found = [
        section
        for section in draft.of_kind(kind)
        if re.sub("[^a-z0-9]", "_", section.name.lower()) == name
    ]
    if len(found) > 1:
        sections = " and ".join(map(str, found))
        draft.problem(place, f"matches {sections}, expected names that differ in more than case")
    elif key and not found and not NAME.fullmatch(name):
        draft.problem(place, f"has no proper name, {_NAME_EXPECTED}")
    section = found[0] if found else SectionId(kind, name)
    if key:
        draft.begin(section, _in_environment(f"GATEWAYD_{kind}_{name}_".upper()))
    return section, key


def _unknown_variable(draft: Draft, kind: str, rest: str) -> str:
    """What is wrong with the variable ``GATEWAYD_<kind>_<rest>``."""
    start, keys = f"GATEWAYD_{kind}_".upper(), [key.upper() for key in SETTINGS[kind]]
    if kind not in NAMED:
        return f"unknown key, {_suggestion(draft, rest.upper(), keys)} after {start}"
    if rest in SETTINGS[kind]:
        short = f"{kind}_{rest}".upper()
        other = f" or {short}" if short in VARIABLES else ""
        return f"does not name the {kind}, expected {start}NAME_{rest.upper()}{other}"
    key = rest.partition("_")[2].upper()
    return f"unknown key, {_suggestion(draft, key, keys)} after {start}NAME_"


def _suggestion(draft: Draft, word: str, known: Iterable[str]) -> str:
    expected = f"expected one of {', '.join(known)}"
    if len(draft.problems) > MOST_PROBLEMS:
        return expected  # finding a similar word is slow, and this problem is not listed
    close = difflib.get_close_matches(word, known, 1)
    return f"did you mean {close[0]}? {expected}" if close else expected
