"""The form of an ini file: it is read as configparser reads it, in one pass, with line numbers."""

import configparser
import time

from hypothesis import example, given
from hypothesis import strategies as st

from gatewayd.settings import ini

WORDS = st.text("ab =#;[]\t\r é\x1c\x85", max_size=8)
LINES = st.one_of(
    st.sampled_from(["[a]", "[b]", "k = v", "l=", "  more", "\tmore", "# c", " ; c", "", " ", "="]),
    WORDS,
    st.builds("{}={}".format, WORDS, WORDS),
)
TEXTS = st.lists(LINES, max_size=12).map("\n".join)


def by_configparser(text: str) -> list[tuple[str, list[tuple[str, str]]]] | None:
    """What configparser makes of it; None if it is not pleased."""
    parser = configparser.ConfigParser(delimiters="=", interpolation=None, default_section="")
    try:
        parser.read_file(text.split("\n"))
    except configparser.Error:
        return None
    return [(name, list(parser.items(name))) for name in parser.sections()]


@given(TEXTS)
@example("[a]\nk = one\n  two\n\n  # no\n  four\n\nl =\n")
@example("[a]\n  k = v\n l = w\n   m = x\n")
@example("[;];]")
def test_what_configparser_takes_is_read_as_by_configparser(text: str) -> None:
    expected = by_configparser(text)
    sections, mistakes = ini.parse(text)
    if expected is None or mistakes:
        return
    if any("]" in name for name, _ in expected):
        return  # configparser ends a header at its last bracket, and takes a comment for the name
    assert [(s.name, [(e.key, e.text) for e in s.entries]) for s in sections] == [
        (" ".join(name.split()), entries) for name, entries in expected
    ]


@given(TEXTS)
def test_what_configparser_refuses_is_a_mistake_or_something_twice(text: str) -> None:
    if by_configparser(text) is not None:
        return
    sections, mistakes = ini.parse(text)
    names = [section.name for section in sections]
    keys = [(section.line, entry.key) for section in sections for entry in section.entries]
    assert mistakes or len(set(names)) < len(names) or len(set(keys)) < len(keys)


@given(TEXTS)
def test_every_key_is_at_its_line(text: str) -> None:
    lines = text.split("\n")
    sections, mistakes = ini.parse(text)
    for section in sections:
        assert lines[section.line - 1].strip().startswith("[")
        for entry in section.entries:
            line = lines[entry.line - 1]
            assert line.partition("=")[0].strip().lower() == entry.key
    assert all(1 <= mistake.line <= len(lines) for mistake in mistakes)


def test_an_alias_that_is_spelled_like_a_key_does_not_take_its_line() -> None:
    text = "[backend a]\nmodels =\n  idle = real\n  other = b\nidle = x\n"
    ((_, _, entries),) = ini.parse(text)[0]
    assert entries == [
        ini.Entry(2, "models", "\nidle = real\nother = b"),
        ini.Entry(5, "idle", "x"),
    ]


def test_what_follows_a_line_without_form_is_not_taken_for_the_value_before() -> None:
    sections, mistakes = ini.parse("[a]\nk = v\njunk\n  more\nl = w\n")
    assert [(entry.key, entry.text) for entry in sections[0].entries] == [("k", "v"), ("l", "w")]
    assert [mistake.line for mistake in mistakes] == [3, 4]


def test_many_duplicates_take_no_longer_than_as_many_different_lines() -> None:
    def seconds(text: str) -> float:
        began = time.process_time()
        ini.parse(text)
        return time.process_time() - began

    different = seconds("[a]\n" + "".join(f"k{n} = v\n" for n in range(100_000)))
    for same in ("k = v\n", "[a]\n", "junk\n"):
        assert seconds("[a]\n" + same * 100_000) < 10 * different
