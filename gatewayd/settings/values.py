"""Parsers of single values: the text of a setting -> the value that gatewayd works with.

Each parser takes text without surrounding white space and raises `ValueError` with a message that
says what is wrong and what is expected. No message quotes a text that may be a secret. Which
setting has which parser is declared in :mod:`gatewayd.settings.model`.
"""

import ipaddress
import re
from collections.abc import Callable
from typing import Literal, TypeVar
from urllib.parse import urlsplit

import attrs

T = TypeVar("T")

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")  # a header name, RFC 9110, 5.6.2
_PATH = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~!$&'()*+,;=:@%-]+)*")
_PATHS_ENTRY = re.compile(
    r"(?=/.{0,254}$)(/(?!\.{1,2}(/|\*|$))[A-Za-z0-9._~!$&'()+=:@-]+)*(/?\*|/)?"
)
_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_][a-z0-9_-]{0,62})*")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
_SIZE = re.compile(r"([0-9]{1,13}) ?(KiB|MiB|GiB|)", re.IGNORECASE)
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{0,9})?|\.[0-9]{1,9}")
_UNITS = {"": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_LARGEST_SIZE = 2**40
# Headers with a meaning of their own; a request id in one of them would break the message.
_TAKEN_HEADERS = {"authorization", "connection", "content-length", "content-type", "date", "host",
                  "server", "transfer-encoding"}  # fmt: skip


@attrs.frozen(repr=False)
class Secret:
    """A text that neither `repr` nor `str` shows."""

    _text: str

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "***"


def _shown(text: str) -> str:
    """Quote the first line only: by mistake, the next lines may hold another key and its secret."""
    first, _, more = text.partition("\n")
    return repr(first[:60]) + ("..." if first[60:] else "") + (" and more lines" if more else "")


def whole_number(lowest: int, highest: int = 10**9) -> Callable[[str], int]:
    """:return: a parser of decimal numbers; both bounds are included."""

    def parse(text: str) -> int:
        if re.fullmatch(r"[0-9]{1,18}", text) and lowest <= int(text) <= highest:
            return int(text)
        raise ValueError(
            f"{_shown(text)} is not valid, expected a whole number from {lowest} to {highest}"
        )

    return parse


def size(text: str) -> int:
    """A number of bytes from ``1048576``, ``1024 KiB`` or ``1MiB``."""
    if match := _SIZE.fullmatch(text):
        number = int(match[1]) * _UNITS[match[2].lower()]
        if 0 < number <= _LARGEST_SIZE:
            return number
    raise ValueError(
        f"{_shown(text)} is not a size, expected bytes or KiB, MiB, GiB such as 16 KiB, "
        "more than 0, at most 1024 GiB"
    )


def seconds(text: str) -> float:
    if _SECONDS.fullmatch(text):
        return float(text)
    raise ValueError(f"{_shown(text)} is not a time, expected seconds such as 30, 0.5 or 0")


def positive_seconds(text: str) -> float:
    """Seconds for a time limit that cannot be switched off."""
    if _SECONDS.fullmatch(text) and float(text) > 0:
        return float(text)
    raise ValueError(f"{_shown(text)} is not a time above 0, expected seconds such as 10 or 0.5")


def weight(text: str) -> float:
    """A factor; the bounds keep sums and quotients of weights exact enough to compare."""
    if _SECONDS.fullmatch(text) and 0.001 <= float(text) <= 1000:
        return float(text)
    raise ValueError(f"{_shown(text)} is not a weight, expected 0.001 to 1000 such as 1, 2 or 0.5")


def one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() in choices:
            return text.lower()
        raise ValueError(f"{_shown(text)} is unknown, expected one of {', '.join(choices)}")

    return parse


def unless_empty(parse: Callable[[str], T]) -> Callable[[str], T | None]:
    return lambda text: parse(text) if text else None


def or_auto(parse: Callable[[str], T]) -> Callable[[str], T | Literal["auto"]]:
    def parse_or_auto(text: str) -> T | Literal["auto"]:
        if text.lower() == "auto":
            return "auto"
        try:
            return parse(text)
        except ValueError as error:
            raise ValueError(f"{error}, or auto") from None

    return parse_or_auto


def matching(pattern: str, expected: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if re.fullmatch(pattern, text):
            return text
        raise ValueError(f"{_shown(text)} is not valid, expected {expected}")

    return parse


def ip_address(text: str) -> str:
    """An IP address; not a host name: a lookup may block, and may return several addresses."""
    try:
        return str(ipaddress.ip_address("127.0.0.1" if text == "localhost" else text))
    except ValueError:
        raise ValueError(
            f"{_shown(text)} is not an IP address, expected one such as 127.0.0.1, 0.0.0.0 or ::1"
        ) from None


def model_names(text: str) -> tuple[str, ...]:
    """Names or globs, separated by commas or white space."""
    found = tuple(text.replace(",", " ").split())
    for name in found:
        if len(name) > 256 or not name.isprintable():
            raise ValueError(f"{_shown(name)} is not valid, expected names such as llama-3*")
    return found


def models_and_aliases(text: str) -> tuple[tuple[str, str | None], ...]:
    """Entries separated by commas or line ends: a name, a glob, ``alias = real``, or ``auto``.

    :return: pairs ``(name, None)`` and ``(alias, real)``; ``("auto", None)`` is the server's list.
    """
    found: list[tuple[str, str | None]] = []
    for entry in text.replace(",", "\n").splitlines():
        alias, equals, real = (part.strip() for part in entry.partition("="))
        if not alias and not equals:
            continue
        wrong = [n for n in (alias, real) if len(n) > 256 or not n.isprintable() or " " in n]
        if wrong or not alias or (equals and (not real or set("*?[") & {*alias, *real})):
            raise ValueError(
                f"{_shown(entry.strip())} is not valid, expected a name, a glob such as llama-3* "
                "or alias = name"
            )
        found.append((alias, real if equals else None))
    return tuple(found)


def fallbacks(text: str) -> tuple[tuple[str, str], ...]:
    """Entries ``model -> longer``, separated by commas or line ends.

    :return: pairs; no chain of them leads back to a model that it contains.
    """
    found: dict[str, str] = {}
    for entry in text.replace(",", "\n").splitlines():
        if not entry.strip():
            continue
        model, arrow, longer = (part.strip() for part in entry.partition("->"))
        names = [name for name in (model, longer) if len(name) <= 256 and name.isprintable()]
        odd = any(not name or set("*?[ ") & {*name} or "->" in name for name in names)
        if not arrow or len(names) < 2 or odd:
            raise ValueError(f"{_shown(entry)} is not valid, expected lines such as small -> large")
        if model in found:
            raise ValueError(f"{_shown(model)} has two fallbacks, expected one for each model")
        found[model] = longer
    for model in found:
        chain, name = [model], found[model]
        while name in found and name not in chain:
            chain.append(name)
            name = found[name]
        if name in chain:
            loop = " -> ".join([*chain, name])
            raise ValueError(f"{_shown(loop)} is a loop, expected chains that end")
    return tuple(found.items())


def yes_or_no(text: str) -> bool:
    if text.lower() in ("yes", "no", "true", "false", "on", "off", "1", "0"):
        return text.lower() in ("yes", "true", "on", "1")
    raise ValueError(f"{_shown(text)} is unknown, expected yes or no")


def path_entries(text: str) -> tuple[str, ...]:
    """Paths, separated by commas or white space; ``*`` at the end stands for any rest."""
    found = tuple(text.replace(",", " ").split())
    for path in found:
        if not _PATHS_ENTRY.fullmatch(path):
            raise ValueError(
                f"{_shown(path)} is not a path, expected one such as /props, or /slots/* for all "
                "that begin so"
            )
    return found


def url_path(text: str) -> str:
    if re.fullmatch(r"/[!-~]{0,255}", text) and "#" not in text:  # no request has a fragment
        return text
    raise ValueError(f"{_shown(text)} is not a path, expected one such as /health")


def origins(text: str) -> tuple[str, ...]:
    """Origins as browsers send them (scheme, host, optional port), or ``*`` for all."""
    found = tuple(text.lower().replace(",", " ").split())
    for origin in found:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ValueError(
                f"{_shown(origin)} is not an origin, expected one such as https://chat.example.com"
            )
    return found


def sha256_digest(text: str) -> bytes:
    """A SHA-256 digest in hexadecimal. Never quoted: by mistake it may be the token itself."""
    if re.fullmatch(r"[0-9a-fA-F]{64}", text):
        return bytes.fromhex(text)
    raise ValueError(
        "is not a digest, expected 64 hexadecimal digits as gatewayd token NAME prints"
    )


def address_and_port(text: str) -> tuple[str, int]:
    """``127.0.0.1:9100`` or ``[::1]:9100``."""
    host, _, port = text.rpartition(":")
    try:
        return ip_address(host.removeprefix("[").removesuffix("]")), whole_number(0, 65535)(port)
    except ValueError:
        raise ValueError(
            f"{_shown(text)} is not an address and a port, expected for example 127.0.0.1:9100"
        ) from None


def root_path(text: str) -> str:
    path = "/" + text.strip("/") if text.strip("/") else ""
    if _PATH.fullmatch(path) and "%" not in path:
        return path
    raise ValueError(f"{_shown(text)} is not a path, expected one such as /inference")


def header_name(text: str) -> str:
    if _TOKEN.fullmatch(text) and text.lower() not in _TAKEN_HEADERS:
        return text
    raise ValueError(f"{_shown(text)} cannot be used, expected a header name such as X-Request-ID")


def header_names(text: str) -> tuple[str, ...]:
    """Names of headers, separated by commas or white space."""
    return tuple(header_name(name) for name in text.replace(",", " ").split())


def base_url(text: str) -> str:
    """A URL; ``/v1`` and slashes at its end are removed.

    It is never quoted: its user info or query may contain a password.
    """
    expected = "expected a base URL such as http://127.0.0.1:8080/v1"
    if not re.fullmatch(r"[!-~]{1,2000}", text):
        raise ValueError(f"is empty or has spaces or characters other than ASCII, {expected}")
    try:
        parts = urlsplit(text)
        host, port = (parts.hostname or "").lower(), parts.port
        if "[" in parts.netloc:
            host = f"[{ipaddress.IPv6Address(host)}]"
    except ValueError:
        raise ValueError(f"has a wrong host or port, {expected}") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"does not start with http:// or https://, {expected}")
    if "@" in parts.netloc:
        raise ValueError(f"has a user name or password in it, {expected} and the key in api_key")
    if "?" in text or "#" in text:
        raise ValueError(f"has a query or a fragment, {expected}")
    if port == 0 or "%" in host or not (host.startswith("[") or _HOST.fullmatch(host)):
        raise ValueError(f"has a wrong host or port, {expected}")
    if port == {"http": 80, "https": 443}[parts.scheme]:
        port = None  # URLs and Host headers usually omit the default port
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    if not _PATH.fullmatch(path):
        raise ValueError(f"has a wrong path, {expected}")
    return f"{parts.scheme}://{host}{'' if port is None else f':{port}'}{path}"


def secret(text: str) -> Secret:
    if re.fullmatch(r"[!-~]{1,8192}", text):
        return Secret(text)
    reason = "has spaces or characters other than visible ASCII" if text else "is empty"
    raise ValueError(f"{reason}, expected a key as it goes into an Authorization header")
