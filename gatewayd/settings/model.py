"""The settings that exist: one class for each section, one declaration for each setting.

:mod:`.declaring` says what a declaration is. Nothing is read here. The error messages, ``--help``
and the tests of the documentation are made from the declarations. :mod:`.load` makes a `Settings`
from the sources.
"""

from collections.abc import Mapping
from typing import Any, Literal

import attrs

from .declaring import SectionId, Setting, declare, declare_own, setting
from .files import File, read_file
from .values import (
    Secret,
    address_and_port,
    base_url,
    fallbacks,
    header_name,
    header_names,
    ip_address,
    matching,
    model_names,
    models_and_aliases,
    one_of,
    or_auto,
    origins,
    path_entries,
    positive_seconds,
    root_path,
    seconds,
    secret,
    sha256_digest,
    size,
    unless_empty,
    url_path,
    weight,
    whole_number,
    yes_or_no,
)

#: The value of ``reask`` that lets a request go to another backend until its reply has begun.
BEFORE_COMMIT = "before-commit"


def _certificates(path: str) -> File:
    from .pem import read_certificates  # OpenSSL takes 12 MiB, and few settings name certificates

    return read_certificates(path)


def _own_certificate(path: str) -> File:
    from .pem import read_own_certificate

    return read_own_certificate(path)


@attrs.frozen
class GatewaySettings:
    listen: str = setting("127.0.0.1", ip_address, "The IP address to listen on.")
    port: int = setting("8000", whole_number(0, 65535), "The port to listen on; 0 = any free port.")
    root_path: str = setting("", root_path, "A path prefix for every route.")
    api_title: str = setting(
        "gatewayd",
        matching("[!-~]([ -~]{0,62}[!-~])?", "1 to 64 printable ASCII characters"),
        "The name in the Server header, and the owner of the echo model.",
    )
    request_id_header: str = setting(
        "X-Request-ID", header_name, "The header that carries the id of a request."
    )
    allowed_origins: tuple[str, ...] = setting(
        "", origins, "Browser origins that may call; those of this machine always may."
    )
    workers: int = setting(
        "1", whole_number(1, 256), "The number of worker processes; 1 = a single process."
    )
    tls_certificate: File | None = setting(
        "",
        unless_empty(_own_certificate),
        "A PEM file with the certificate and its chain; empty = no TLS.",
        is_file=True,
    )
    tls_key: File | None = setting(
        "", unless_empty(read_file), "A PEM file with the certificate's private key.", is_file=True
    )
    drain: float = setting(
        "30", seconds, "Time that running requests get to finish on shutdown; 0 = none."
    )


@attrs.frozen
class TimeoutSettings:
    request_head: float = setting(
        "10", positive_seconds, "Client: from a request's first byte to the end of its head."
    )
    request_body: float = setting(
        "60", seconds, "Client: from the end of the head to the end of the body; 0 = no limit."
    )
    client_idle: float = setting(
        "60", seconds, "Client: between two requests on a connection; 0 = no limit."
    )
    client_write: float = setting(
        "60", seconds, "Client: while it accepts none of the pending bytes; 0 = no limit."
    )
    connect: float = setting(
        "5", positive_seconds, "Backend: name lookup, connection and TLS handshake together."
    )
    first_byte: float = setting(
        "600", seconds, "Backend: from the request to the first byte of content; 0 = no limit."
    )
    patience: float = setting(
        "0", seconds, "Backend: as first_byte, then another is asked (with reask); 0 = never."
    )
    idle: float = setting(
        "120", seconds, "Backend: between two pieces of content, ignoring comments; 0 = no limit."
    )
    total: float = setting(
        "0", seconds, "Backend: a whole request, with backends tried before; 0 = no limit."
    )
    ping: float = setting(
        "15", seconds, "Silence in a stream after which the client is sent a comment; 0 = never."
    )


@attrs.frozen
class LimitSettings:
    request_head: int = setting("16 KiB", size, "Maximum size of a request's head.")
    request_body: int = setting("32 MiB", size, "Maximum size of a request's body.")
    json_depth: int = setting("64", whole_number(1), "Maximum nesting of the JSON in a request.")
    event: int = setting("4 MiB", size, "Maximum size of one event in a backend's stream.")
    reply: int = setting("64 MiB", size, "Maximum size of a backend's reply that is not a stream.")
    connections: int = setting("10000", whole_number(1), "Maximum number of client connections.")
    in_flight: int = setting("1000", whole_number(1), "Maximum number of concurrent requests.")


@attrs.frozen
class RoutingSettings:
    """Which backend is asked, where there are several for a model."""

    affinity: str = setting(
        "prompt",
        one_of("prompt", "session", "off"),
        "What keeps a conversation with one backend: its prompt, a session's key, or nothing.",
    )
    affinity_header: tuple[str, ...] = setting(
        "X-Session-ID", header_names, "Headers in which a client can send the key of a session."
    )
    affinity_user: bool = setting(
        "no", yes_or_no, "Use the user that a request names as the key of its session."
    )
    reask: str = setting(
        "never",
        one_of("never", BEFORE_COMMIT),
        "Whether a request may go to another backend after one that may have executed it.",
    )
    attempts: int = setting(
        "2", whole_number(1, 10), "Maximum number of backends that may execute a request (reask)."
    )
    show_backend: bool = setting(
        "no", yes_or_no, "Name the backend, and the model behind an alias, in headers of replies."
    )
    fallback_models: tuple[tuple[str, str], ...] = setting(
        "", fallbacks, "Models to ask if a prompt is too long for another one, as model -> longer."
    )


def _own_timeout(key: str) -> Any:
    return declare_own(TimeoutSettings, "timeouts", key)


@attrs.frozen
class BackendSettings:
    """One ``[backend NAME]``; `url` has neither ``/v1`` nor a slash at its end."""

    name: str
    url: str = declare(
        Setting(None, base_url, "The base URL of a backend's API, with or without /v1.")
    )
    api_key: Secret | None = declare(
        Setting("", secret, "The bearer token to send to it; left out = none.", is_secret=True),
        None,
    )
    api_key_file: str | None = setting(
        "", unless_empty(str), "A file that contains this token, instead of api_key.", is_file=True
    )
    tls_ca: File | None = setting(
        "",
        unless_empty(_certificates),
        "A PEM file of certificates to trust; empty = those of the system.",
        is_file=True,
    )
    models: tuple[tuple[str, str | None], ...] = setting(
        "",
        models_and_aliases,
        "The models it serves: names, globs, alias = name, auto = those it lists; empty = any.",
    )
    in_flight: int | Literal["auto"] | None = setting(
        "",
        unless_empty(or_auto(whole_number(1))),
        "Maximum number of its concurrent requests; auto = the slots of llama.cpp, empty = any.",
    )
    weight: float = setting(
        "1", weight, "Its part of the load, compared with backends of the same priority."
    )
    priority: int = setting(
        "0", whole_number(0, 99), "Its tier; the next one is used while the lower is full or down."
    )
    health: str | None = setting(
        "",
        unless_empty(url_path),
        "A path that answers 200 while it is healthy; empty = no checks.",
    )
    paths: tuple[str, ...] = setting(
        "", path_entries, "Further paths of its own, relayed unread; /slots/* = all that begin so."
    )
    count_usage: bool = setting(
        "no", yes_or_no, "Request token counts for streams even if the client did not."
    )
    reask: str = declare_own(RoutingSettings, "routing", "reask")
    connect: float = _own_timeout("connect")
    first_byte: float = _own_timeout("first_byte")
    patience: float = _own_timeout("patience")
    idle: float = _own_timeout("idle")
    total: float = _own_timeout("total")


@attrs.frozen
class TokenSettings:
    """One ``[token NAME]``; `sha256` is also set if the token came from `token_file`."""

    name: str
    sha256: bytes = declare(
        Setting("", unless_empty(sha256_digest), "The SHA-256 digest of the token."), repr=False
    )
    token_file: str | None = setting(
        "", unless_empty(str), "A file with the token itself, instead of sha256.", is_file=True
    )
    models: tuple[str, ...] = setting(
        "", model_names, "The models the caller may use, by name or glob; empty = all."
    )
    paths: tuple[str, ...] = setting(
        "",
        path_entries,
        "The paths the caller may use; /v1/audio/* = all that begin so; empty = all.",
    )
    in_flight: int | None = setting(
        "", unless_empty(whole_number(1)), "Maximum number of its concurrent requests; empty = any."
    )
    requests_per_minute: int | None = setting(
        "",
        unless_empty(whole_number(1)),
        "Maximum number of its requests in a minute; empty = any.",
    )


@attrs.frozen
class LogSettings:
    format: str = setting("json", one_of("json", "text"), "The format of log lines.")
    level: str = setting(
        "info", one_of("debug", "info", "warn", "error"), "The lowest level that is logged."
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
        "", unless_empty(address_and_port), "Address and port for /metrics; empty = the gateway's."
    )


@attrs.frozen
class Settings:
    gateway: GatewaySettings = attrs.field(factory=GatewaySettings)
    timeouts: TimeoutSettings = attrs.field(factory=TimeoutSettings)
    limits: LimitSettings = attrs.field(factory=LimitSettings)
    routing: RoutingSettings = attrs.field(factory=RoutingSettings)
    backends: tuple[BackendSettings, ...] = ()
    tokens: tuple[TokenSettings, ...] = ()
    log: LogSettings = attrs.field(factory=LogSettings)
    metrics: MetricsSettings = attrs.field(factory=MetricsSettings)
    warnings: tuple[str, ...] = attrs.field(default=(), eq=False)
    """Found when the sources were read; :func:`.checks.warnings_of` returns all warnings."""


#: The class of each kind of section.
SECTIONS: Mapping[str, type[attrs.AttrsInstance]] = {
    "gateway": GatewaySettings,
    "timeouts": TimeoutSettings,
    "limits": LimitSettings,
    "routing": RoutingSettings,
    "backend": BackendSettings,
    "token": TokenSettings,
    "log": LogSettings,
    "metrics": MetricsSettings,
}
#: Kinds of which there may be several sections, each with a name.
NAMED = frozenset({"backend", "token"})
#: Each kind of section, as it is written -> its settings by key.
SETTINGS: Mapping[str, Mapping[str, Setting]] = {
    kind: {f.name: f.metadata["setting"] for f in attrs.fields(cls) if f.metadata}
    for kind, cls in SECTIONS.items()
}
#: The backend that ``BACKEND_URL`` and ``--backend-url`` make.
DEFAULT_BACKEND = SectionId("backend", "default")
#: Environment variables with a short name -> the setting that each gives.
VARIABLES = {"PORT": (SectionId("gateway"), "port"), "BACKEND_URL": (DEFAULT_BACKEND, "url")}
#: Options of the command line -> the setting that each gives.
OPTIONS = {
    "port": (SectionId("gateway"), "port"),
    "listen": (SectionId("gateway"), "listen"),
    "backend-url": (DEFAULT_BACKEND, "url"),
}
