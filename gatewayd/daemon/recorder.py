"""Records ended exchanges: a line in the access log for each, and counts in the metrics."""

from __future__ import annotations

from twisted.application.service import Service
from twisted.logger import Logger

from gatewayd.exchange import Exchange
from gatewayd.settings.model import LogSettings
from gatewayd.telemetry.access import AccessLog
from gatewayd.telemetry.metrics import PrometheusMetrics

_log = Logger()


class Recorder(Service):
    """Opens the access log when it starts and closes it when it stops.

    :param settings: of the log.
    """

    def __init__(self, settings: LogSettings, metrics: PrometheusMetrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._access_log: AccessLog | None = None

    def startService(self) -> None:
        super().startService()
        self._open()

    def stopService(self) -> None:
        super().stopService()
        if self._access_log is not None:
            self._access_log.close()

    def record(self, exchange: Exchange) -> None:
        """Log and count an exchange. A failure of either reaches neither the other nor a client."""
        for observer in (self._access_log, self._metrics):
            try:
                if observer is not None:
                    observer(exchange)
            except Exception:
                _log.failure("recording the end of {id} failed", id=exchange.id)

    def reopen(self) -> None:
        """Open the access log's file again, because it may have been renamed."""
        if self._access_log is not None:
            self._access_log.reopen()

    def use(self, settings: LogSettings) -> None:
        """Follow the settings of a reload."""
        if settings == self._settings:
            return  # reopen() has been called already
        self._settings = settings
        old = self._access_log
        self._open()
        if old is not None:
            old.close()

    def _open(self) -> None:
        lost = self._metrics.count_access_line_lost
        self._access_log = AccessLog(self._settings.access, self._settings.format, lost)
