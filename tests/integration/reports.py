"""What a gateway reports about its requests: the access log and the page of metrics."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.integration.processes import wait_for


def log_lines(*files: Path) -> list[dict[str, Any]]:
    """The complete lines of access logs; each must be one JSON object."""
    lines = [line for file in files for line in file.read_bytes().splitlines(keepends=True)]
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def logged(ids: Iterable[str], *files: Path) -> list[dict[str, Any]]:
    """Wait until each of these requests has a line; return the lines.

    The line is written a moment after the client has received the end of its answer.
    """
    wanted = set(ids)

    def found() -> list[dict[str, Any]] | None:
        lines = [line for line in log_lines(*files) if line["id"] in wanted]
        return lines if {line["id"] for line in lines} == wanted else None

    return wait_for(found, 5, "a line of each request")


def ends(ids: Iterable[str], log: Path) -> list[str]:
    """The Ends of these requests, in the order of the log lines."""
    wanted = set(ids)
    return [line["end"] for line in log_lines(log) if line["id"] in wanted]


def metric(page: bytes, name: str, **labels: str) -> float:
    """The sum of a metric over all series with these labels."""
    total = 0.0
    for line in page.decode().splitlines():
        series, _, value = line.rpartition(" ")
        series_name, _, rest = series.partition("{")
        if series_name == name and all(f'{k}="{v}"' in rest for k, v in labels.items()):
            total += float(value)
    return total
