"""The syntax of ini files: read as configparser reads it, in one pass, with line numbers."""

import configparser
import time

from hypothesis import example, given
from hypothesis import strategies as st

from gatewayd.settings.ini import Entry, Header, Mistake, parse

WORDS = st.text("ab =#;[]\t\r é\x1c\x85", max_size=8)
LINES = st.one_of(
    st.sampled_from(["[a]", "[b]", "k = v", "l=", "  more", "\tmore", "# c", " ; c", "", " ", "="]),
    WORDS,
    st.builds("{}={}".format, WORDS, WORDS),
)
TEXTS = st.lists(LINES, max_size=12).map("\n".join)


def by_configparser(text: str) -> list[tuple[str, list[tuple[str, str]]]] | None:
    """What configparser reads; None if it refuses the text."""
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
def test_a_file_that_configparser_accepts_is_read_in_the_same_way(text: str) -> None:
    expected = by_configparser(text)
    items = list(parse(text))
    if expected is None or any(isinstance(item, Mistake) for item in items):
        return
    if any("]" in name for name, _ in expected):
        return  # configparser ends a header at its last bracket, and reads a comment as the name
    found: list[tuple[str, list[tuple[str, str]]]] = []
    for item in items:
        if isinstance(item, Header):
            found.append((item.name, []))
        elif isinstance(item, Entry):
            found[-1][1].append((item.key, item.text))
    assert found == [(" ".join(name.split()), entries) for name, entries in expected]


@given(TEXTS)
def test_a_file_that_configparser_refuses_has_a_mistake_or_a_duplicate(text: str) -> None:
    if by_configparser(text) is not None:
        return
    items = list(parse(text))
    names: list[str] = []
    keys: list[tuple[int, str]] = []
    for item in items:
        if isinstance(item, Header):
            names.append(item.name)
        elif isinstance(item, Entry):
            keys.append((len(names), item.key))
    mistake = any(isinstance(item, Mistake) for item in items)
    assert mistake or len(set(names)) < len(names) or len(set(keys)) < len(keys)


@given(TEXTS | st.text(max_size=200))
def test_every_item_has_its_line_and_they_are_in_order(text: str) -> None:
    lines = text.split("\n")
    items = list(parse(text))
    assert [item.line for item in items] == sorted(item.line for item in items)
    for item in items:
        line = lines[item.line - 1].strip()
        if isinstance(item, Header):
            assert line.startswith("[")
        elif isinstance(item, Entry):
            assert line.partition("=")[0].strip().lower() == item.key


def test_an_alias_that_is_spelled_like_a_key_does_not_take_its_line() -> None:
    text = "[backend a]\nmodels =\n  idle = real\n  other = b\nidle = x\n"
    assert list(parse(text)) == [
        Header(1, "backend a"),
        Entry(2, "models", "\nidle = real\nother = b"),
        Entry(5, "idle", "x"),
    ]


def test_a_line_after_a_mistake_does_not_continue_the_value_before_it() -> None:
    items = list(parse("[a]\nk = v\njunk\n  more\nl = w\n"))
    assert [item for item in items if isinstance(item, Entry)] == [
        Entry(2, "k", "v"),
        Entry(5, "l", "w"),
    ]
    assert [item.line for item in items if isinstance(item, Mistake)] == [3, 4]


def test_many_duplicates_take_no_longer_than_as_many_different_lines() -> None:
    def seconds(text: str) -> float:
        began = time.process_time()
        list(parse(text))
        return time.process_time() - began

    different = seconds("[a]\n" + "".join(f"k{n} = v\n" for n in range(100_000)))
    for same in ("k = v\n", "[a]\n", "junk\n"):
        assert seconds("[a]\n" + same * 100_000) < 10 * different
