"""Checks of settings that depend on each other, and secrets that are read from a file.

Each value has already been parsed on its own. A value that could not be parsed has been reported,
so no check reports it as missing.
"""

import hashlib
import ipaddress
import stat
from collections.abc import Iterator

from .declaring import SectionId
from .draft import Draft, Section
from .files import File, read_secret
from .model import BEFORE_COMMIT, Settings
from .values import Secret


def warnings_of(settings: Settings) -> tuple[str, ...]:
    """Settings that work but are dangerous or without effect, and the warnings of the sources."""
    listen = settings.gateway.listen
    found = (*settings.warnings, *_vain_patience(settings))
    if settings.tokens or ipaddress.ip_address(listen).is_loopback:
        return found
    return (
        *found,
        f"[gateway] listen: {listen} is not a loopback address and there are no tokens: "
        "every client that can reach it may use the backends",
    )


def _vain_patience(settings: Settings) -> Iterator[str]:
    """``patience`` is given, and no backend that has it may be left."""
    patient = [backend.reask for backend in settings.backends if backend.patience]
    if patient and BEFORE_COMMIT not in patient:
        yield f"patience has no effect while reask is never, expected reask = {BEFORE_COMMIT}"


def complete_backend(draft: Draft, backend: SectionId) -> None:
    """Check one backend, and read its key if that is in a file."""
    section = draft.sections[backend]
    key = _read_instead_of(draft, section, "api_key_file", "api_key")
    if key is not None:
        section.values["api_key"] = key
    trusted: File | None = section.values.get("tls_ca")
    if trusted is not None:
        from . import pem

        if pem.all_expired(trusted):
            draft.warn(section.places["tls_ca"], "contains only certificates that have expired")
    if "url" not in section.places:
        draft.missing(backend, "url", "a base URL such as http://127.0.0.1:8080/v1")


def complete_token(draft: Draft, token: SectionId) -> None:
    """Check one token, and read it if it is in a file."""
    section = draft.sections[token]
    found = _read_instead_of(draft, section, "token_file", "sha256")
    if found is not None:
        section.values["sha256"] = hashlib.sha256(found.reveal().encode("ascii")).digest()
    elif not section.was_given("sha256") and not section.was_given("token_file"):
        draft.missing(token, "sha256", "the digest that gatewayd token NAME prints")


def warn_of_same_tokens(draft: Draft) -> None:
    """Warn of callers with the same token: the gateway cannot tell them apart."""
    known: dict[bytes, SectionId] = {}
    for token in draft.of_kind("token"):
        section = draft.sections[token]
        digest: bytes | None = section.values.get("sha256")
        if digest is None:
            continue
        if digest in known:
            place = section.places.get("token_file") or section.places["sha256"]
            draft.warn(place, f"is also the token of {known[digest]}, expected another one")
        known[digest] = token


def check_own_tls(draft: Draft) -> None:
    """Check that ``tls_certificate`` and ``tls_key`` are both given, and match."""
    gateway = draft.sections.get(SectionId("gateway"))
    if gateway is None:
        return
    certificate: File | None = gateway.values.get("tls_certificate")
    key: File | None = gateway.values.get("tls_key")
    if certificate is None or key is None:
        for one, other in (("tls_certificate", "tls_key"), ("tls_key", "tls_certificate")):
            if gateway.values.get(one) is not None and not gateway.was_given(other):
                draft.problem(gateway.places[one], f"is given without {other}, expected both")
        return
    from . import pem

    try:
        pem.server_context(certificate, key)
    except ValueError as error:
        draft.problem(gateway.places["tls_key"], str(error))
        return
    if key.readable_by(stat.S_IROTH):  # a group for private keys is common
        draft.warn_exposed(gateway.places["tls_key"], "0640 or 0600")
    if reason := pem.out_of_date(certificate):
        draft.warn(gateway.places["tls_certificate"], reason)


def _read_instead_of(draft: Draft, section: Section, file_key: str, key: str) -> Secret | None:
    """The secret in the file that `file_key` names; a mistake if `key` is given too."""
    path = section.values.get(file_key)
    if path is None:
        return None
    place = section.places[file_key]
    if section.values.get(key) is not None:
        draft.problem(place, f"is given together with {key}, expected one of the two")
        return None
    try:
        secret, file = read_secret(path)
    except ValueError as error:
        draft.problem(place, str(error))
        return None
    if file.readable_by(stat.S_IRGRP | stat.S_IROTH):
        draft.warn_exposed(place)
    return secret
