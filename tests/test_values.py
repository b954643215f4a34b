"""Parsers of single values: what each accepts, and what it refuses."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gatewayd.settings import values
from gatewayd.settings.values import Secret
from tests.inifile import problems


def test_a_secret_is_shown_only_by_reveal() -> None:
    secret = Secret("sk-very")
    assert secret.reveal() == "sk-very"
    assert f"{secret} {secret!r} {secret!s:>5} {[secret]}" == "*** ***   *** [***]"
    assert secret == Secret("sk-very") != Secret("sk-other")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://gpu1", "http://gpu1"),
        ("HTTP://GPU1:8080/V1x", "http://gpu1:8080/V1x"),
        ("http://gpu1:8080/v1", "http://gpu1:8080"),
        ("http://gpu1:8080/v1/", "http://gpu1:8080"),
        ("http://gpu1:/v1//", "http://gpu1"),
        ("https://a.example/openai/v1", "https://a.example/openai"),
        ("https://a.example/openai/v1beta", "https://a.example/openai/v1beta"),
        ("http://[::1]:8080/v1", "http://[::1]:8080"),
        ("http://10.0.0.5:1", "http://10.0.0.5:1"),
        ("http://my_service", "http://my_service"),
    ],
)
def test_a_base_url_loses_v1_and_the_slash(text: str, expected: str) -> None:
    assert values.base_url(text) == expected
    assert values.base_url(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "gpu1", "gpu1:8080", "//gpu1", "ftp://gpu1", "http://", "http:///v1", "http://:80",
        "http://u@gpu1", "http://@gpu1", "http://gpu1?", "http://gpu1#", "http://gpu1/?a=b",
        "http://gpu1:0", "http://gpu1:65536", "http://gpu1:x", "http://gpu1:-1", "http://[::1",
        "http://[x]", "http://[v1.a]", "http://[fe80::1%25eth0]", "http://a b", "http://a\tb",
        "http://a..b", "http://.a", "http://-a", f"http://{'a' * 64}", f"http://{'a.' * 127}a",
        "http://gpü", "http://a/../b", "http://a/./b", "http://a//b", "http://a\\b", "http:\\\\a",
        'http://a/"', "http://%61",
    ],
)  # fmt: skip
def test_a_wrong_url_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a base URL such as"):
        values.base_url(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("/", ""),
        ("a", "/a"),
        ("/a/", "/a"),
        ("/a/b//", "/a/b"),
        ("/a.b_c~d-e", "/a.b_c~d-e"),
    ],
)
def test_a_root_path_begins_with_a_slash_and_ends_with_none(text: str, expected: str) -> None:
    assert values.root_path(text) == expected


@pytest.mark.parametrize(
    "text", ["/a//b", "/..", "/a/./b", "/a b", "/ä", "/a?b", "/a#b", "/%2e", "a\n"]
)
def test_a_wrong_root_path_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a path"):
        values.root_path(text)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("request_id_header", ""), ("request_id_header", "X Id"), ("request_id_header", "X:Id"),
        ("request_id_header", "Content-Length"), ("request_id_header", "a" * 65),
        ("api_title", ""), ("api_title", "a\r\nb"), ("api_title", "ä"), ("api_title", "a" * 65),
        ("listen", ""), ("listen", "example.com"), ("listen", "[::1]"), ("listen", "127.0.0.1:80"),
        ("port", ""), ("port", "8_000"), ("port", "+80"), ("port", "0x50"), ("port", "٣"),
        ("port", "9" * 5000), ("drain", "-1"), ("drain", "nan"), ("drain", "inf"),
    ],
)  # fmt: skip
def test_a_wrong_value_of_the_gateway_is_refused(key: str, text: str) -> None:
    [line] = problems({f"GATEWAYD_GATEWAY_{key.upper()}": text})
    assert "expected " in line
    assert len(line) < 250


@pytest.mark.parametrize("text", ["/", "/health", "/a/b?c=d&e=%20"])
def test_a_health_path_may_have_a_query(text: str) -> None:
    assert values.url_path(text) == text


@pytest.mark.parametrize(
    "text", ["health", "http://a/health", "/a b", "/ä", "/a#b", "/" + "a" * 256]
)
def test_a_wrong_health_path_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a path, expected one such as /health"):
        values.url_path(text)


def test_a_weight_is_a_number_within_bounds() -> None:
    assert [values.weight(text) for text in ("1", "0.5", ".25", "1000")] == [1, 0.5, 0.25, 1000]


@pytest.mark.parametrize("text", ["", "0", "0.0001", "1001", "-1", "1e2", "nan", "inf", "1,5"])
def test_a_wrong_weight_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a weight, expected 0.001 to 1000"):
        values.weight(text)


def test_names_of_headers_are_separated_by_commas_or_white_space() -> None:
    assert values.header_names("X-Chat, X-Task\nX-A") == ("X-Chat", "X-Task", "X-A")
    assert values.header_names("") == ()
    with pytest.raises(ValueError, match="expected a header name"):
        values.header_names("X-Chat, Authorization")


@given(
    st.integers(1, 2**40), st.sampled_from(["", " "]), st.sampled_from(["KiB", "mib", "GIB", ""])
)
def test_a_size_is_a_number_of_units(number: int, space: str, unit: str) -> None:
    times = {"": 1, "KiB": 2**10, "mib": 2**20, "GIB": 2**30}[unit]
    text = f"{number}{space if unit else ''}{unit}"
    if number * times <= 2**40:
        assert values.size(text) == number * times
    else:
        with pytest.raises(ValueError, match="is not a size"):
            values.size(text)


@pytest.mark.parametrize(("text", "value"), [("auto", "auto"), ("AUTO", "auto"), ("4", 4)])
def test_a_number_may_be_left_to_the_server(text: str, value: object) -> None:
    assert values.or_auto(values.whole_number(1))(text) == value


@pytest.mark.parametrize("text", ["0", "-1", "automatic", "auto 4", ""])
def test_neither_a_number_nor_auto_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r", or auto$"):
        values.or_auto(values.whole_number(1))(text)


@given(st.floats(0, 1e8))
def test_seconds_may_have_fractions(number: float) -> None:
    text = f"{number:.6f}"
    assert values.seconds(text) == float(text)
    assert values.seconds(str(int(number))) == int(number)


@given(st.text(max_size=20) | st.from_regex(r"[0-9.eE+_ -]{1,12}( ?[kKmM][iI]?[bB])?"))
@example("nan")
@example("1e5")
@example("٣")
@example("1_000")
@example(".")
@example("0")
@example("-1")
def test_numbers_are_finite_and_not_negative_or_refused(text: str) -> None:
    for parse, least in ((values.size, 1), (values.seconds, 0), (values.positive_seconds, 1e-9)):
        try:
            number = parse(text)
        except ValueError as error:
            assert "expected" in str(error)
        else:
            assert least <= number <= 2**40
            assert text.isascii()


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("", ()),
        ("/props", ("/props",)),
        ("/tokenize, /slots/*\n/v1/stream*", ("/tokenize", "/slots/*", "/v1/stream*")),
        ("/ /* /a.b/c-d~e:f@g+h/", ("/", "/*", "/a.b/c-d~e:f@g+h/")),
        ("/.well-known/x", ("/.well-known/x",)),
    ],
)
def test_paths(text: str, entries: tuple[str, ...]) -> None:
    assert values.path_entries(text) == entries


@pytest.mark.parametrize(
    "text",
    [
        *("props", "*", "//x", "/a//b", "/a/../b", "/..", "/../*", "/a/.", "/a/..*", "/*/x"),
        *("/a**", "/a%2e", "/a?x", "/a#x", "/a;b", "/\u00e9", "/a\\b", "/" + "x" * 255),
    ],
)
def test_what_is_no_path_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected one such as /props"):
        values.path_entries(text)


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("", ()),
        ("a -> b", (("a", "b"),)),
        ("\n  a -> b\n  b->c:8b, x/y -> c:8b\n", (("a", "b"), ("b", "c:8b"), ("x/y", "c:8b"))),
    ],
)
def test_fallbacks_are_pairs(text: str, pairs: object) -> None:
    assert values.fallbacks(text) == pairs


@pytest.mark.parametrize(
    "text",
    [
        *("a", "a ->", "-> b", "a = b", "a* -> b", "a -> b?", "a -> b -> c", "a b -> c"),
        *("a -> b\na -> c", "a -> a", "a -> b\nb -> a", "x -> a\na -> b\nb -> c\nc -> a"),
        f"{'a' * 257} -> b",
    ],
)
def test_wrong_fallbacks_are_mistakes(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        values.fallbacks(text)
