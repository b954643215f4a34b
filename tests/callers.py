"""A gateway with tokens, and what its callers send."""

from __future__ import annotations

import hashlib

from tests.memory import FakeBackend, Gateway, settings

ALICE, BOB = "gw-alice", "gw-bob"
HASHES = {
    f"token_{name}_sha256": hashlib.sha256(token.encode()).hexdigest()
    for name, token in (("alice", ALICE), ("bob", BOB))
}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def guarded(**values: str) -> tuple[Gateway, FakeBackend]:
    """A gateway that knows the tokens of Alice and Bob, and its backend."""
    backend = FakeBackend()
    return Gateway(backend, settings=settings(**HASHES, **values)), backend
