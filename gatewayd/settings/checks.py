"""What several settings say together: files in the place of values, pairs, and contradictions.

Values have been read one by one by then (:mod:`gatewayd.settings.sources`). A value that could not
be read was complained of there, so nothing here complains of its absence.
"""

import hashlib
import ipaddress
import stat
from typing import Any

from . import pem
from .files import File, secret_file
from .model import Settings
from .sources import Gathering
from .values import Secret

_OTHERS = stat.S_IRGRP | stat.S_IROTH


def read_api_key(given: Gathering, section: str) -> None:
    """Have the key in ``api_key_file`` as the value of ``api_key``."""
    found = _from_file(given, section, "api_key_file", "api_key")
    if found is not None:
        given.sections[section]["api_key"] = found


def read_token(given: Gathering, section: str) -> None:
    """Have the digest of the token in ``token_file`` as the value of ``sha256``."""
    values = given.sections[section]
    found = _from_file(given, section, "token_file", "sha256")
    if found is not None:
        values["sha256"] = hashlib.sha256(found.reveal().encode("ascii")).digest()
    elif not any(given.was_given(section, key) for key in ("sha256", "token_file")):
        given.missing(section, "sha256", "what gatewayd token NAME prints")


def warn_of_same_tokens(given: Gathering) -> None:
    """Of two callers with one token, the gateway can see only one."""
    sections: dict[bytes, str] = {}
    for section, values in given.sections.items():
        digest: bytes | None = values.get("sha256")
        if digest is None:
            continue
        if digest in sections:
            key = "token_file" if (section, "token_file") in given.places else "sha256"
            said = f"is the token of [{sections[digest]}] too, expected one of its own"
            given.warn(given.places[section, key], said)
        sections[digest] = section


def check_own_tls(given: Gathering) -> None:
    """``tls_certificate`` and ``tls_key`` must be there both, and belong together."""
    values: dict[str, Any] = given.sections.get("gateway", {})
    certificate, key = values.get("tls_certificate"), values.get("tls_key")
    if certificate is None or key is None:
        for one, other in (("tls_certificate", "tls_key"), ("tls_key", "tls_certificate")):
            if values.get(one) is not None and not given.was_given("gateway", other):
                given.alone("gateway", one, other)
        return
    place = given.places["gateway", "tls_key"]
    try:
        pem.server_context(certificate, key)
    except ValueError as error:
        given.problems.append((place, str(error)))
        return
    if key.readable_by(stat.S_IROTH):  # a group of those that may read keys is usual
        given.warn_exposed(place, "0640 or 0600")
    if wrong := pem.out_of_date(certificate):
        given.warn(given.places["gateway", "tls_certificate"], wrong)


def check_trust(given: Gathering, section: str) -> None:
    """Certificates to trust that have all expired can trust nobody."""
    trusted: File | None = given.sections[section].get("tls_ca")
    if trusted is not None and pem.all_expired(trusted):
        given.warn(given.places[section, "tls_ca"], "has only certificates that have expired")


def warnings_of(settings: Settings) -> tuple[str, ...]:
    """What works but is dangerous: in the files, and for the address that is listened on."""
    listen = settings.gateway.listen
    if settings.tokens or ipaddress.ip_address(listen).is_loopback:
        return settings.warnings
    return (
        *settings.warnings,
        f"[gateway] listen: {listen} is not a loopback address, "
        "and without a token whoever can reach it may use the backends",
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
        found, file = secret_file(path)
    except ValueError as error:
        given.problems.append((place, str(error)))
        return None
    if file.readable_by(_OTHERS):
        given.warn_exposed(place)
    return found
