"""The syntax of ini files: text -> headers, entries and syntax mistakes, each with its line.

The syntax is that of Python's configparser, with ``=`` as the only delimiter and comments only on
lines of their own. configparser itself is not used: it reports no line numbers for keys, and it
stops at the first mistake, while an operator needs to see all of them. The names of sections and
keys are checked by :mod:`.sources`. A mistake never quotes its line, which may contain a secret.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

_HEADER = re.compile(r"\[([^\]]+)\](.*)", re.DOTALL)


class Header(NamedTuple):
    """``[name]``; white space in the name is reduced to single spaces."""

    line: int
    name: str


class Entry(NamedTuple):
    """``key = text`` in the section of the last header; the key is in lower case."""

    line: int
    key: str
    text: str


class Mistake(NamedTuple):
    line: int
    reason: str


def parse(text: str) -> Iterator[Header | Entry | Mistake]:
    """Read a file in one pass; items come in the order of their lines."""
    in_section = outside_reported = False
    indent = 0  # of the last line that was not a continuation
    key_line, key = 0, ""
    value: list[str] | None = None  # lines of a value that the next line may continue
    for number, line in enumerate(text.split("\n"), 1):
        content = line.strip()
        if not content:
            if value is not None:
                value.append("")
            continue
        if content[0] in "#;":
            continue
        line_indent = len(line) - len(line.lstrip())
        if value is not None and line_indent > indent:
            value.append(content)
            continue
        if value is not None:
            yield Entry(key_line, key, "\n".join(value).rstrip())
            value = None
        indent = line_indent
        if header := _HEADER.match(content):
            in_section = True
            yield Header(number, " ".join(header[1].split()))
            if header[2].strip()[:1] not in ("", "#", ";"):  # such as "[gateway] port = 80"
                yield Mistake(number, "has text after the section, expected it on the next line")
        elif not in_section:
            if not outside_reported:
                reason = "comes before the first section, expected a section such as [gateway]"
                yield Mistake(number, reason)
            outside_reported = True
        else:
            before, equals, after = content.partition("=")
            if equals and before.strip():
                key_line, key, value = number, before.strip().lower(), [after.strip()]
            else:
                yield Mistake(number, 'is not understood, expected "key = value" or "[section]"')
    if value is not None:
        yield Entry(key_line, key, "\n".join(value).rstrip())
