"""Log messages, metrics and notifications as tests read them; exchanges that have ended."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry

from gatewayd.exchange import End, Exchange


class FakeSystemd:
    """Keeps what the daemon tells systemd.

    :param watchdog_seconds: between two signs of life that systemd expects; 0 for none.
    """

    def __init__(self, watchdog_seconds: float = 0.0) -> None:
        self.watchdog_seconds = watchdog_seconds
        self.told: list[str] = []

    def ready(self, status: str) -> None:
        self.told.append("READY")

    def stopping(self, status: str) -> None:
        self.told.append("STOPPING")

    def alive(self) -> None:
        self.told.append("WATCHDOG")

    def reloading(self) -> None:
        self.told.append("RELOADING")

    def reloaded(self, status: str, failed: bool) -> None:
        self.told.append(f"{'FAILED' if failed else 'READY'} {status}")


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
