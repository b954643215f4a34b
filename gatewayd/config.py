"""The settings: defaults < ini file < environment < command line, into one frozen `Settings`.

Adding a setting is one line: an attrs field made by `setting()` with its default as it would stand
in the file, its parser and a sentence of documentation. The three sources, the error messages,
`describe()` and the tests of the documentation follow from that line.

How the sources are read and mistakes are named is in :mod:`gatewayd.sources`, the parsers are in
:mod:`gatewayd.values`. The only input and output is reading the files that are named.
"""

import hashlib
import ipaddress
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import attrs

from gatewayd.sources import About, Gathering, Schema
from gatewayd.values import (
    Secret,
    address,
    base_url,
    certificates,
    choice,
    endpoint,
    header_name,
    key_pair,
    matching,
    models,
    names,
    optional,
    origins,
    readable,
    root_path,
    seconds,
    secret,
    secret_file,
    sha256,
    size,
    some_seconds,
    url_path,
    whole,
    yes_or_no,
)

T = TypeVar("T")


class ConfigError(Exception):
    """The settings cannot be used; ``problems`` has one line for each mistake."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def _about(default: str | None, parse: Callable[[str], Any], doc: str) -> dict[str, About]:
    return {"about": About(default, parse, doc)}


def setting(default: str, parse: Callable[[str], T], doc: str) -> T:
    return attrs.field(default=parse(default), metadata=_about(default, parse, doc))


@attrs.frozen
class Gateway:
    listen: str = setting("127.0.0.1", address, "The IP address to listen on.")
    port: int = setting("8000", whole(0, 65535), "The port to listen on; 0 takes any free one.")
    root_path: str = setting("", root_path, "The path under which every route answers.")
    api_title: str = setting(
        "gatewayd",
        matching("[!-~]([ -~]{0,62}[!-~])?", "1 to 64 printable ASCII characters"),
        "The name in the Server header, and the owner of the model that echoes.",
    )
    request_id_header: str = setting(
        "X-Request-ID", header_name, "The header that carries a request's id."
    )
    allowed_origins: tuple[str, ...] = setting(
        "", origins, "Web pages that may call, by origin; those of this machine always may."
    )
    workers: int = setting(
        "1", whole(1, 256), "How many processes serve the port; 1 is one plain process."
    )
    tls_certificate: str | None = setting(
        "", optional(certificates), "A PEM file with the certificate and its chain; empty = no TLS."
    )
    tls_key: str | None = setting("", optional(readable), "A PEM file with the certificate's key.")
    drain: float = setting(
        "30", seconds, "How long a stop waits for running requests; 0 ends them at once."
    )


@attrs.frozen
class Timeouts:
    request_head: float = setting(
        "10", some_seconds, "The client: from the first byte of a request to the end of its head."
    )
    request_body: float = setting(
        "60", seconds, "The client: from the end of the head to the end of the body; 0 = none."
    )
    client_idle: float = setting(
        "60", seconds, "The client: a connection between two requests; 0 = none."
    )
    client_write: float = setting(
        "60", seconds, "The client: bytes are pending and it takes none of them; 0 = none."
    )
    connect: float = setting(
        "5", some_seconds, "The backend: look-up of the name, connection and TLS together."
    )
    first_byte: float = setting(
        "600", seconds, "The backend: from the request to the first byte of content; 0 = none."
    )
    idle: float = setting(
        "120", seconds, "The backend: between two pieces of content, comments aside; 0 = none."
    )
    total: float = setting("0", seconds, "The backend: the whole of one call; 0 = none.")
    ping: float = setting(
        "15", seconds, "How long a stream is silent before the client gets a comment; 0 = never."
    )


@attrs.frozen
class Limits:
    request_head: int = setting("16 KiB", size, "The largest head of a request.")
    request_body: int = setting("32 MiB", size, "The largest body of a request.")
    json_depth: int = setting("64", whole(1), "How deep the JSON of a request may be nested.")
    event: int = setting("4 MiB", size, "The largest event in a backend's stream.")
    reply: int = setting("64 MiB", size, "The largest reply of a backend that is no stream.")
    connections: int = setting("10000", whole(1), "How many connections clients may hold.")
    in_flight: int = setting("1000", whole(1), "How many requests may run at the same time.")


def _own(key: str) -> Any:
    """A backend's own timeout; without one it is the key's value in ``[timeouts]``."""
    common = attrs.fields_dict(Timeouts)[key]
    doc = f"This backend's own {key}; empty = that of [timeouts]."
    return attrs.field(
        default=common.default,
        metadata=_about("", optional(common.metadata["about"].parse), doc),
    )


@attrs.frozen
class BackendSettings:
    """One ``[backend NAME]``; `url` has neither ``/v1`` nor a slash at its end."""

    name: str
    url: str = attrs.field(
        metadata=_about(None, base_url, "The base of its API, with or without /v1.")
    )
    api_key: Secret | None = attrs.field(
        default=None,
        metadata=_about("", secret, "The key it is sent as a bearer token; left out = none."),
    )
    api_key_file: str | None = setting(
        "", optional(str), "A file with that key, in the place of api_key."
    )
    tls_ca: str | None = setting(
        "", optional(certificates), "A PEM file of certificates to trust; empty = the system's."
    )
    models: tuple[tuple[str, str | None], ...] = setting(
        "", models, "The models it serves: names, globs, alias = name; empty = all."
    )
    in_flight: int | None = setting(
        "", optional(whole(1)), "How many requests it may have at the same time; empty = any."
    )
    health: str | None = setting(
        "", optional(url_path), "A path that answers 200 when it is well; empty = none is asked."
    )
    count_usage: bool = setting(
        "no", yes_or_no, "Ask for the token counts of streams whose client did not."
    )
    connect: float = _own("connect")
    first_byte: float = _own("first_byte")
    idle: float = _own("idle")
    total: float = _own("total")


@attrs.frozen
class TokenSettings:
    """One ``[token NAME]``; `sha256` is the digest of the token, wherever that came from."""

    name: str
    sha256: bytes = attrs.field(
        repr=False, metadata=_about("", optional(sha256), "The SHA-256 of the token.")
    )
    token_file: str | None = setting(
        "", optional(str), "A file with the token itself, in the place of sha256."
    )
    models: tuple[str, ...] = setting(
        "", names, "The models it may use, by name or glob; empty = all."
    )
    in_flight: int | None = setting(
        "", optional(whole(1)), "How many of its requests may run at the same time; empty = any."
    )
    requests_per_minute: int | None = setting(
        "", optional(whole(1)), "How many requests it may send in a minute; empty = any."
    )


@attrs.frozen
class Log:
    format: str = setting("json", choice("json", "text"), "How log lines are written.")
    level: str = setting(
        "info", choice("debug", "info", "warn", "error"), "The least important message logged."
    )
    access: str = setting(
        "-",
        matching(r"[^\x00-\x1f\x7f]*", "a file, - or nothing"),
        "The file for one line per request; - = standard output, empty = none.",
    )


@attrs.frozen
class Metrics:
    listen: tuple[str, int] | None = setting(
        "", optional(endpoint), "Address and port for /metrics alone; empty = the gateway's own."
    )


@attrs.frozen
class Settings:
    gateway: Gateway = attrs.field(factory=Gateway)
    timeouts: Timeouts = attrs.field(factory=Timeouts)
    limits: Limits = attrs.field(factory=Limits)
    backends: tuple[BackendSettings, ...] = ()
    tokens: tuple[TokenSettings, ...] = ()
    log: Log = attrs.field(factory=Log)
    metrics: Metrics = attrs.field(factory=Metrics)
    warnings: tuple[str, ...] = attrs.field(default=(), eq=False)


_SECTIONS: dict[str, type[attrs.AttrsInstance]] = {
    "gateway": Gateway, "timeouts": Timeouts, "limits": Limits, "backend": BackendSettings,
    "token": TokenSettings, "log": Log, "metrics": Metrics,
}  # fmt: skip
_SCHEMA = Schema(
    keys={
        kind: {f.name: f.metadata["about"] for f in attrs.fields(cls) if "about" in f.metadata}
        for kind, cls in _SECTIONS.items()
    },
    named=frozenset({"backend", "token"}),
    variables={"PORT": ("gateway", "port"), "BACKEND_URL": ("backend default", "url")},
    options={
        "listen": ("gateway", "listen"),
        "port": ("gateway", "port"),
        "backend-url": ("backend default", "url"),
    },
)


def describe() -> Iterator[tuple[str, str, About]]:
    """Every setting there is: its section as written in the file, its key, what is known of it."""
    for kind, keys in _SCHEMA.keys.items():
        for key, about in keys.items():
            yield _SCHEMA.title(kind), key, about


def load(
    environ: Mapping[str, str], options: Mapping[str, str] | None = None, path: str | None = None
) -> Settings:
    """Read every source; raise `ConfigError` with all the mistakes in them.

    :param options: from the command line, by name: ``listen``, ``port``, ``backend-url``.
    :param path: the ini file; without one ``GATEWAYD_CONFIG`` in `environ` may name it.
    """
    given = Gathering(_SCHEMA)
    if path := path or environ.get("GATEWAYD_CONFIG"):
        given.read_ini(path)
    given.read_environment(environ)
    given.read_options(options or {})
    settings = _build(given)
    if given.problems:
        raise ConfigError(given.problem_lines())
    return attrs.evolve(settings, warnings=given.warning_lines())


def _build(given: Gathering) -> Settings:
    """Put the values together; what is wrong with their combination goes to the problems."""
    gateway = Gateway(**given.sections.get("gateway", {}))
    timeouts = Timeouts(**given.sections.get("timeouts", {}))
    if (gateway.tls_certificate is None) != (gateway.tls_key is None):
        given.alone("gateway", "tls_certificate", "tls_key")
    elif gateway.tls_certificate and gateway.tls_key:
        try:
            key_pair(gateway.tls_certificate, gateway.tls_key)
        except ValueError as error:
            given.problems.append((given.places["gateway", "tls_key"], str(error)))
    tokens = [_token(given, section) for section in given.sections if section[:6] == "token "]
    if not tokens and not ipaddress.ip_address(gateway.listen).is_loopback:
        given.warnings.append(
            f"[gateway] listen: {gateway.listen} is not a loopback address, "
            "and without a token whoever can reach it may use the backends"
        )
    sections = [section for section in given.sections if section.startswith("backend ")]
    # The one that BACKEND_URL makes is the first.
    sections.sort(key=lambda section: section != "backend default" or given.in_file(section))
    backends = [_backend(given, section, timeouts) for section in sections]
    return Settings(
        gateway=gateway,
        timeouts=timeouts,
        limits=Limits(**given.sections.get("limits", {})),
        backends=tuple(backend for backend in backends if backend),
        tokens=tuple(token for token in tokens if token),
        log=Log(**given.sections.get("log", {})),
        metrics=Metrics(**given.sections.get("metrics", {})),
    )


def _from_file(given: Gathering, section: str, key: str, instead_of: str) -> Secret | None:
    """The secret in the file that ``key`` names, which may not stand beside ``instead_of``."""
    path = given.sections[section].get(key)
    if path is None:
        return None
    place = given.places[section, key]
    try:
        if given.sections[section].get(instead_of) is not None:
            raise ValueError(f"is given beside {instead_of}, expected one of the two")
        found, exposed = secret_file(path)
    except ValueError as error:
        given.problems.append((place, str(error)))
        return None
    if exposed:
        given.warn_exposed(place)
    return found


def _token(given: Gathering, section: str) -> TokenSettings | None:
    own = given.sections[section]
    values = {key: value for key, value in own.items() if value is not None}
    unreadable = (section, "sha256") in given.places and "sha256" not in own  # said already
    if found := _from_file(given, section, "token_file", "sha256"):
        values["sha256"] = hashlib.sha256(found.reveal().encode("ascii")).digest()
    elif not unreadable and not {"sha256", "token_file"} & values.keys():
        given.missing(section, "sha256", "what gatewayd token NAME prints")
    name = section.removeprefix("token ")
    return TokenSettings(**values, name=name) if "sha256" in values else None


def _backend(given: Gathering, section: str, timeouts: Timeouts) -> BackendSettings | None:
    own = {key: value for key, value in given.sections[section].items() if value is not None}
    common = _SCHEMA.keys["timeouts"].keys() & _SCHEMA.keys["backend"].keys()
    values = {key: getattr(timeouts, key) for key in common}
    values.update(own, name=section.removeprefix("backend "))
    if found := _from_file(given, section, "api_key_file", "api_key"):
        values["api_key"] = found
    if (section, "url") not in given.places:
        given.missing(section, "url", "a base URL such as http://127.0.0.1:8080/v1")
    return BackendSettings(**values) if "url" in values else None
