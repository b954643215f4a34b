"""Log messages and metrics as tests read them, and exchanges that have ended."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry

from gatewayd.exchange import End, Exchange


def messages(events: Iterable[dict[str, Any]]) -> list[str]:
    """The text of captured log events."""
    return [event["log_format"].format(**event) for event in events]


def samples(registry: CollectorRegistry, name: str) -> dict[tuple[str, ...], float]:
    """A metric's values by the values of its labels, in the order of the labels' names."""
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == name
    }


def ended(end: End = End.COMPLETE, **more: Any) -> Exchange:
    """An exchange that took two seconds and ended like this."""
    exchange = Exchange(id="r", started=10.0, client="", on_end=lambda _: None)
    exchange.route, exchange.status, exchange.backends = "/v1/chat/completions", 200, ["b"]
    for name, value in more.items():
        setattr(exchange, name, value)
    exchange.finish(end, 12.0)
    return exchange
