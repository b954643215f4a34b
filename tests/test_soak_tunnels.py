"""Random WebSockets over Twisted's own TCP and TLS code."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.tunnels import TunnelWorld, play
from tests.soak.world import Certificates


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.make(tmp_path_factory.mktemp("tunnels"))


def test_random_tunnels_keep_every_promise(tmp_path: Path, certificates: Certificates) -> None:
    ends: dict[str, int] = {}
    for seed in range(30):
        world = TunnelWorld(seed, tmp_path, certificates)
        assert play(world) == [], f"seed {seed}"
        for line in world.log_lines():
            ends[line["end"]] = ends.get(line["end"], 0) + 1
        world.close()
    assert {"complete", "client_gone", "backend_truncated", "backend_timeout"} <= set(ends), ends
