"""Imports Twisted without its support for TLS, which takes 12 MiB in every process.

If pyOpenSSL is installed, Twisted's reactor, its endpoints and its HTTP client import it, whether
TLS is used or not. If it is not installed, they work without it; only ``startTLS`` and the
endpoints for TLS are missing then, and gatewayd uses neither. So these modules are imported while
pyOpenSSL cannot be found.

Modules that need TLS are imported when settings that use it are read or built, at a start and at a
reload (:mod:`gatewayd.settings.pem`, :mod:`gatewayd.backend.tls`, :mod:`gatewayd.api.tls`). They
are never imported for a connection, because no descriptor may be left then to read them with.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

#: Twisted's modules that import pyOpenSSL if it is installed, and that gatewayd, Klein or treq use.
_MODULES = (
    "twisted.internet.tcp",
    "twisted.internet.posixbase",
    "twisted.internet.endpoints",
    "twisted.web.client",
)


def import_twisted() -> None:
    """Import these modules. It has no effect if pyOpenSSL is imported already."""
    modules: Any = sys.modules
    if "OpenSSL" in modules:
        return
    modules["OpenSSL"] = None  # an import of it raises ModuleNotFoundError
    try:
        for name in _MODULES:
            import_module(name)
    finally:
        del modules["OpenSSL"]
