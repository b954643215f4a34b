"""The daemon's own log: its level, and what it leaves out."""

from __future__ import annotations

import pytest
from twisted.logger import Logger, LogLevel, LogLevelFilterPredicate

from gatewayd.telemetry import errorlog


@pytest.fixture(autouse=True)
def own_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errorlog, "_twistd_options", {})
    monkeypatch.setattr(errorlog, "_lowest", LogLevelFilterPredicate())


def test_lines_go_to_standard_output_from_the_level_on(capfd: pytest.CaptureFixture[str]) -> None:
    errorlog.configure({"nodaemon": True}, "warn")
    log = Logger("gatewayd", observer=errorlog.observer())
    log.info("first")
    log.warn("second")
    errorlog.set_level("info")
    log.info("third")
    lines = capfd.readouterr().out.splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == ["second", "third"]


def test_connections_that_cannot_be_accepted_are_logged_once_in_a_second(
    capfd: pytest.CaptureFixture[str],
) -> None:
    errorlog.configure({"nodaemon": True}, "info")
    observer = errorlog.observer()
    for when in (10.0, 10.5, 10.9, 11.5):
        for namespace in ("twisted.internet.tcp.Port", "gatewayd"):
            observer(
                {
                    "log_namespace": namespace,
                    "log_level": LogLevel.info,
                    "log_time": when,
                    "log_format": "at {log_time}",
                }
            )
    lines = capfd.readouterr().out.splitlines()
    assert sum("tcp.Port" in line for line in lines) == 2
    assert sum("[gatewayd#" in line for line in lines) == 4
