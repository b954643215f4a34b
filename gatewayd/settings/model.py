"""The settings that exist: one attrs class for each section, one field for each setting.

A setting is declared by :func:`setting`: its default as it would stand in the file, its parser and
its sentence of documentation. The three sources, the error messages and the tests of the
documentation follow from these declarations. How settings are read is in
:mod:`gatewayd.settings.load`.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import attrs

from .files import File, read_file
from .pem import certificates, own_certificate
from .sources import About, Schema
from .values import (
    Secret,
    address,
    base_url,
    choice,
    endpoint,
    header_name,
    matching,
    models,
    names,
    optional,
    origins,
    root_path,
    seconds,
    secret,
    sha256,
    size,
    some_seconds,
    url_path,
    whole,
    yes_or_no,
)

T = TypeVar("T")


def _about(
    default: str | None, parse: Callable[[str], Any], doc: str, is_file: bool = False
) -> dict[str, About]:
    return {"about": About(default, parse, doc, is_file)}


def setting(default: str, parse: Callable[[str], T], doc: str, is_file: bool = False) -> T:
    """:param is_file: whether the value is the name of a file."""
    return attrs.field(default=parse(default), metadata=_about(default, parse, doc, is_file))


@attrs.frozen
class GatewaySettings:
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
    tls_certificate: File | None = setting(
        "",
        optional(own_certificate),
        "A PEM file with the certificate and its chain; empty = no TLS.",
        is_file=True,
    )
    tls_key: File | None = setting(
        "", optional(read_file), "A PEM file with the certificate's key.", is_file=True
    )
    drain: float = setting(
        "30", seconds, "How long a stop waits for running requests; 0 ends them at once."
    )


@attrs.frozen
class TimeoutSettings:
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
    total: float = setting(
        "0",
        seconds,
        "The backend: the whole of a request, other backends tried before included; 0 = none.",
    )
    ping: float = setting(
        "15", seconds, "How long a stream is silent before the client gets a comment; 0 = never."
    )


@attrs.frozen
class LimitSettings:
    request_head: int = setting("16 KiB", size, "The largest head of a request.")
    request_body: int = setting("32 MiB", size, "The largest body of a request.")
    json_depth: int = setting("64", whole(1), "How deep the JSON of a request may be nested.")
    event: int = setting("4 MiB", size, "The largest event in a backend's stream.")
    reply: int = setting("64 MiB", size, "The largest reply of a backend that is no stream.")
    connections: int = setting("10000", whole(1), "How many connections clients may hold.")
    in_flight: int = setting("1000", whole(1), "How many requests may run at the same time.")


def _own(key: str) -> Any:
    """A backend's own timeout; without one it is the key's value in ``[timeouts]``."""
    common = attrs.fields_dict(TimeoutSettings)[key]
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
        "", optional(str), "A file with that key, in the place of api_key.", is_file=True
    )
    tls_ca: File | None = setting(
        "",
        optional(certificates),
        "A PEM file of certificates to trust; empty = the system's.",
        is_file=True,
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
        "", optional(str), "A file with the token itself, in the place of sha256.", is_file=True
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
class LogSettings:
    format: str = setting("json", choice("json", "text"), "How log lines are written.")
    level: str = setting(
        "info", choice("debug", "info", "warn", "error"), "The least important message logged."
    )
    access: str = setting(
        "-",
        matching(r"[^\x00-\x1f\x7f]*", "a file, - or nothing"),
        "The file for one line per request; - = standard output, empty = none.",
        is_file=True,
    )


@attrs.frozen
class MetricsSettings:
    listen: tuple[str, int] | None = setting(
        "", optional(endpoint), "Address and port for /metrics alone; empty = the gateway's own."
    )


@attrs.frozen
class Settings:
    gateway: GatewaySettings = attrs.field(factory=GatewaySettings)
    timeouts: TimeoutSettings = attrs.field(factory=TimeoutSettings)
    limits: LimitSettings = attrs.field(factory=LimitSettings)
    backends: tuple[BackendSettings, ...] = ()
    tokens: tuple[TokenSettings, ...] = ()
    log: LogSettings = attrs.field(factory=LogSettings)
    metrics: MetricsSettings = attrs.field(factory=MetricsSettings)
    warnings: tuple[str, ...] = attrs.field(default=(), eq=False)
    """What was seen when the files were read; :func:`warnings_of` has all of them."""


_SECTIONS: dict[str, type[attrs.AttrsInstance]] = {
    "gateway": GatewaySettings, "timeouts": TimeoutSettings, "limits": LimitSettings,
    "backend": BackendSettings, "token": TokenSettings, "log": LogSettings,
    "metrics": MetricsSettings,
}  # fmt: skip
SCHEMA = Schema(
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
    for kind, keys in SCHEMA.keys.items():
        for key, about in keys.items():
            yield SCHEMA.title(kind), key, about
