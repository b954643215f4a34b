"""Weighted rendezvous hashing: which backend a key belongs to.

Each backend gets a score from the key and from its own name, and the highest score wins. So there
is no table of keys, every process finds the same backend, and a backend that comes or goes moves
only the keys that it wins. A key is a number of 64 well mixed bits (:mod:`gatewayd.wire.affinity`).

Source: Thaler and Ravishankar, "Using Name-Based Mappings to Increase Hit Rates" (1998).
"""

from __future__ import annotations

import math
from hashlib import blake2b

_BITS = 2**64
_MASK = _BITS - 1


def seed_of(name: str) -> int:
    """An odd number of 64 bits that depends on the name of a backend alone, in any process."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest()) | 1


def score(key: int, seed: int, weight: float) -> float:
    """The score of a backend. How many keys it wins is in proportion to its weight.

    :param seed: from :func:`seed_of`. The product of a key and an odd number, modulo 2**64, is
        distributed as evenly as the keys.
    """
    fraction = (key * seed & _MASK | 1) / _BITS
    return weight / -math.log(fraction) if fraction < 1 else math.inf
