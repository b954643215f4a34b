"""What is recorded of an ended exchange."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.daemon.recorder import Recorder
from gatewayd.exchange import Exchange
from gatewayd.settings.model import LogSettings
from gatewayd.telemetry.metrics import PrometheusMetrics
from tests.memory import Gateway


def ended() -> Exchange:
    gateway = Gateway()
    gateway.chat()
    (exchange,) = gateway.ended
    return exchange


def fails(error: Exception) -> Callable[..., None]:
    def call(*_: Exchange) -> None:
        raise error

    return call


class Failures(SynchronousTestCase):
    """A failure of one of the two records reaches neither the caller nor the other record."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name, "access.log")
        self.metrics = PrometheusMetrics(Clock())
        self.recorder = Recorder(LogSettings(access=str(self.path)), self.metrics)
        self.recorder.startService()
        self.addCleanup(self.recorder.stopService)

    def test_a_failure_of_the_metrics_is_logged_and_the_line_is_written(self) -> None:
        self.patch(PrometheusMetrics, "__call__", fails(OverflowError("a count of 400 digits")))
        self.recorder.record(ended())
        assert json.loads(self.path.read_text())["end"] == "complete"
        assert len(self.flushLoggedErrors(OverflowError)) == 1

    def test_a_failure_of_the_access_log_is_logged_and_the_metrics_count(self) -> None:
        error = UnicodeEncodeError("utf-8", "\ud800", 0, 1, "half a pair")
        self.patch(self.recorder._access_log, "_encode", fails(error))
        self.recorder.record(ended())
        counted = b'gatewayd_ends_total{backend="echo",end="complete"} 1.0'
        assert counted in self.metrics.text()
        assert len(self.flushLoggedErrors(UnicodeEncodeError)) == 1


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "access.log"


@pytest.fixture
def recorder(path: Path) -> Recorder:
    return Recorder(LogSettings(access=str(path)), PrometheusMetrics(Clock()))


def test_the_log_is_open_from_the_start_to_the_stop_of_the_service(
    recorder: Recorder, path: Path
) -> None:
    assert not path.exists()
    recorder.startService()
    recorder.record(ended())
    recorder.stopService()
    assert path.read_text().count("\n") == 1


def test_a_file_that_was_renamed_is_opened_again(recorder: Recorder, path: Path) -> None:
    recorder.reopen()  # nothing is open before the start
    recorder.startService()
    recorder.record(ended())
    old = path.rename(path.with_suffix(".1"))
    recorder.reopen()
    recorder.record(ended())
    recorder.stopService()
    assert old.read_text().count("\n") == path.read_text().count("\n") == 1


def test_the_settings_of_a_reload_are_followed(
    recorder: Recorder, path: Path, tmp_path: Path
) -> None:
    recorder.startService()
    other = tmp_path / "other.log"
    recorder.use(LogSettings(access=str(other), format="text"))
    recorder.record(ended())
    recorder.stopService()
    assert path.read_text() == ""
    assert "route=/v1/chat/completions" in other.read_text()
