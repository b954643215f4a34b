"""What clients connect to: the sites, and the generation that answers behind them.

A reload puts another generation in the place of the one that answers now. The sites and their
connections stay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gatewayd.api.app import API
from gatewayd.api.metrics import CONNECTIONS, metrics_site
from gatewayd.api.site import Site
from gatewayd.exchange import Exchange
from gatewayd.settings.model import Settings
from gatewayd.telemetry.metrics import BackendState, Snapshot

from .descriptors import for_clients
from .generation import Generation


class Serving:
    """
    :param on_end: called with each exchange that has ended.
    :param metrics: makes the page of metrics, for a site of its own; None without such a site.
    """

    def __init__(
        self,
        generation: Generation,
        on_end: Callable[[Exchange], None],
        metrics: Callable[[], bytes] | None,
        reactor: Any,
    ) -> None:
        settings, admit = generation.settings, generation.api.admit
        self.generation = generation
        self.site = Site(
            generation.resource, settings, reactor, admit, on_end, for_clients(settings)
        )
        self.metrics_site = None
        if metrics is not None:
            self.metrics_site = metrics_site(metrics, settings, reactor)
        #: For TLS on the site; None without.
        self.certificate = generation.certificate

    def use(self, generation: Generation) -> None:
        """Answer with this generation from now on. Nothing here can fail.

        A request that has begun keeps what it began with.
        """
        generation.take_over()
        self.generation = generation
        settings = generation.settings
        self.site.replace(generation.resource, generation.api.admit)
        self.site.state.use(settings, for_clients(settings))
        if self.certificate is not None and generation.certificate is not None:
            self.certificate.context = generation.certificate.context
        if self.metrics_site is not None:
            self.metrics_site.state.use(settings, CONNECTIONS)

    @property
    def settings(self) -> Settings:
        return self.generation.settings

    @property
    def api(self) -> API:
        return self.generation.api

    @property
    def backends(self) -> str:
        """The names of the backends, for messages."""
        return ", ".join(target.backend.name for target in self.generation.targets)

    def snapshot(self) -> Snapshot:
        """What the metrics show as a state."""
        targets, usable = self.generation.targets, self.api.router.answering()
        return Snapshot(
            in_flight=len(self.site.state.active),
            connections=len(self.site.state.connections),
            backends={
                t.backend.name: BackendState(usable[t.backend.name], t.in_flight, t.priority)
                for t in targets
            },
            models=self.api.model_names(),
            discovered=self.generation.discovery.known(),
            globs=[glob for target in targets for glob in target.models.globs],
        )
