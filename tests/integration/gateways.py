"""Gateways in front of fault backends: their settings, their logs, and checks at their end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.faultbackend import FaultBackend
from tests.integration.client import ask, get
from tests.integration.processes import AT_ONCE, UNHANDLED, Gateway, wait_for

# The clocks, in seconds, and the limits of every FastGateway.
CONNECT, FIRST_BYTE, IDLE, TOTAL, CLIENT_WRITE = 1.0, 3.0, 2.0, 10.0, 3.0

MIB = 1 << 20

MAX_EVENT, MAX_REPLY, MAX_IN_FLIGHT = MIB, 8 * MIB, 200

SHORT = {
    "gateway_drain": "5",
    "timeouts_request_head": "2",
    "timeouts_request_body": "4",
    "timeouts_client_idle": "30",  # the tests keep idle connections
    "timeouts_client_write": f"{CLIENT_WRITE}",
    "timeouts_connect": f"{CONNECT}",
    "timeouts_first_byte": f"{FIRST_BYTE}",
    "timeouts_idle": f"{IDLE}",
    "timeouts_total": f"{TOTAL}",
    "timeouts_ping": "0",
    "limits_request_body": "1 MiB",
    "limits_event": f"{MAX_EVENT}",
    "limits_reply": f"{MAX_REPLY}",
    "limits_connections": "2000",
    "limits_in_flight": f"{MAX_IN_FLIGHT}",
    "routing_affinity": "off",  # requests with the same messages take turns
}

#: Long backend clocks for tests with many requests: clients and backend share one process.
PATIENT = dict.fromkeys(
    ("timeouts_connect", "timeouts_first_byte", "timeouts_idle", "timeouts_total"), "60"
)


def ini(**sections: Mapping[str, object]) -> str:
    """The text of an ini file; ``__`` in a section's name is a space."""
    lines = []
    for section, keys in sections.items():
        lines.append(f"[{section.replace('__', ' ')}]")
        lines += [f"{key} = {value}" for key, value in keys.items()]
    return "\n".join([*lines, ""])


def in_front_of(sim: FaultBackend, log: Path, **gateway: object) -> str:
    """The settings of a gateway with one backend and this access log.

    :param gateway: the keys of ``[gateway]``.
    """
    return ini(gateway=gateway, log={"access": log}, backend__b={"url": sim.url})


class FastGateway(Gateway):
    """A gateway with short clocks in front of these backends, with an access log.

    :param trust: as for :class:`tests.integration.processes.Server`.
    :param settings: override :data:`SHORT`, by section and key: ``timeouts_ping="0.5"``.
    """

    def __init__(
        self,
        folder: Path,
        *urls: str,
        tls_ca: str = "",
        trust: Any = None,
        **settings: str,
    ) -> None:
        self._log = folder / "access.log"
        self._lines: dict[str, list[dict[str, Any]]] = {}
        self._read = 0
        sections: dict[str, dict[str, object]] = {}
        for name, value in {**SHORT, "log_access": str(self._log), **settings}.items():
            section, _, key = name.partition("_")
            sections.setdefault(section, {})[key] = value
        for number, url in enumerate(urls):
            sections[f"backend__b{number}"] = {"url": url, "tls_ca": tls_ca}
        super().__init__(folder=folder, config=ini(**sections), trust=trust)

    def lines(self) -> dict[str, list[dict[str, Any]]]:
        """The access log so far, by request id."""
        with self._log.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        new = new[: new.rfind(b"\n") + 1]
        self._read += len(new)
        for line in map(json.loads, new.splitlines()):
            self._lines.setdefault(line["id"], []).append(line)
        return self._lines

    def line(self, identity: str) -> dict[str, Any]:
        """The one log line of this request."""
        (line,) = wait_for(lambda: self.lines().get(identity), 2, f"a log line of {identity}")
        return line

    def check_health(self) -> None:
        """Check that it runs, answers at once, and has logged no traceback."""
        assert self.runs, self.output
        began = time.monotonic()
        assert get(self, "/healthz").status == 200
        assert time.monotonic() - began < AT_ONCE
        assert not UNHANDLED.search(self.output), self.output


@contextmanager
def watched(
    daemon: FastGateway, *sims: FaultBackend, growth: int = 24 * MIB, warm: bool = True
) -> Iterator[FastGateway]:
    """Run a gateway; check at the end that it has released descriptors and memory.

    :param warm: send some requests first, so that one-time allocations do not count.
    :param growth: bytes by which its memory may grow after these first requests.
    """
    with daemon:
        for stream in (False, True) * 20 if sims and warm else ():
            ask(daemon, "", stream)
        descriptors = daemon.descriptors() - sum(sim.connections_open for sim in sims)
        resident = daemon.memory()
        yield daemon
        daemon.check_health()
        wait_for(
            lambda: daemon.descriptors() - sum(sim.connections_open for sim in sims) <= descriptors,
            10,
            f"back to {descriptors} descriptors",
        )
        assert daemon.memory() - resident < growth
        several = {key: lines for key, lines in daemon.lines().items() if len(lines) > 1}
        assert not {key for key in several if not key.startswith("same-")}, several
        for sim in sims:
            assert [r for r in sim.records if r.violations] == []
