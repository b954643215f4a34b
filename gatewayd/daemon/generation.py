"""A generation: everything that serves requests by one set of settings.

It holds the backends with their health checks and their discovery, the routes and handlers, and the
certificate. A start, a reload and ``--check`` all make one with :func:`build`, so a check reports
what a start would report. A generation is built whole before any of it is used. If something cannot
be built, :func:`build` raises and the generation that serves now is untouched. Only
:meth:`Generation.take_over` changes objects that serve already, and it cannot fail.

A reload keeps each target whose backend is still the same server: same name, URL, key and TLS.
Such a target keeps its connections, its requests in flight, its health, and what it lists; its
other settings change in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import attrs

from gatewayd.api import app
from gatewayd.api.app import API
from gatewayd.api.routes import Routes
from gatewayd.backend.echo import EchoBackend
from gatewayd.backend.interface import Backend
from gatewayd.backend.openai import OpenAIBackend
from gatewayd.routing.discovery import Discovery
from gatewayd.routing.prober import Prober
from gatewayd.routing.router import Router
from gatewayd.routing.target import Limit, Target
from gatewayd.settings.checks import warnings_of
from gatewayd.settings.load import SettingsError
from gatewayd.settings.model import BackendSettings, Settings

from . import descriptors

if TYPE_CHECKING:
    from gatewayd.api.tls import Certificate


@attrs.frozen(eq=False)
class Renewal:
    """A kept target and its new settings; see :meth:`Target.renew`."""

    target: Target
    backend: Backend
    models: tuple[tuple[str, str | None], ...] = ()
    limit: Limit = None
    alone: bool = True
    weight: float = 1.0
    priority: int = 0
    unknown: bool = False

    def take_over(self) -> None:
        self.target.renew(
            self.backend,
            self.models,
            self.limit,
            self.alone,
            self.weight,
            self.priority,
            self.unknown,
        )
        if isinstance(self.backend, OpenAIBackend):
            self.backend.take_over()


@attrs.frozen(eq=False)
class Generation:
    """:param certificate: has the gateway's own certificate; None without TLS."""

    settings: Settings
    api: API
    resource: Routes
    prober: Prober
    discovery: Discovery
    certificate: Certificate | None
    renewals: tuple[Renewal, ...]

    @property
    def targets(self) -> tuple[Target, ...]:
        return self.api.router.targets

    def take_over(self) -> None:
        """Give the kept targets their new settings. To be called once."""
        for renewal in self.renewals:
            renewal.take_over()


def build(
    settings: Settings,
    reactor: Any,
    metrics: Callable[[], bytes],
    before: Generation | None = None,
) -> Generation:
    """
    :param metrics: makes the page of metrics.
    :param before: the generation that serves now; what stays the same is kept from it.
    :raises SettingsError: something cannot be made from these settings.
    """
    problems: list[str] = []
    made = list(_targets(settings, reactor, before, problems))
    certificate = _certificate(settings, problems)
    if problems:
        raise SettingsError(tuple(problems))
    renewals = tuple(each for each in made if isinstance(each, Renewal))
    router = Router([each.target if isinstance(each, Renewal) else each for each in made])
    if before is None:
        api = API(settings, router, reactor, metrics)
    else:
        api = before.api.replaced(settings, router)
    prober, discovery = Prober(router, reactor), Discovery(router, reactor)
    return Generation(settings, api, api.resource(), prober, discovery, certificate, renewals)


def warnings(settings: Settings) -> list[str]:
    """Warnings for the log of this process, a sentence each.

    They concern settings that are dangerous, or that this process cannot satisfy entirely.
    """
    return [*warnings_of(settings), *app.warnings(settings), *descriptors.warnings(settings)]


def _targets(
    settings: Settings, reactor: Any, before: Generation | None, problems: list[str]
) -> Iterator[Target | Renewal]:
    """The configured backends in their order, or the echo when there is none."""
    if not settings.backends:
        yield _echo(settings, reactor, before)
    servers = _servers(before)
    for own in settings.backends:
        try:
            if known := servers.get(_server(own)):
                yield _renewed(*known, own, settings)
            else:
                made = OpenAIBackend(own, settings.limits, reactor)
                alone = _alone(settings)
                yield Target(
                    made, reactor, own.models, own.in_flight, alone, own.weight, own.priority
                )
        except Exception as error:
            problems.append(f"[backend {own.name}]: cannot be used ({error})")


def _echo(settings: Settings, reactor: Any, before: Generation | None) -> Target | Renewal:
    backend = EchoBackend(settings.gateway.api_title)
    if before is None or before.settings.backends:
        return Target(backend, reactor)
    return Renewal(before.targets[0], backend)


_Server = tuple[object, ...]


def _server(own: BackendSettings) -> _Server:
    """The settings that tell one server from another; a change of any of them is a new server."""
    return own.name, own.url, own.api_key, own.tls_ca


def _servers(before: Generation | None) -> dict[_Server, tuple[Target, OpenAIBackend]]:
    """The servers to which there may be connections already."""
    return {
        _server(target.backend.settings): (target, target.backend)
        for target in (before.targets if before is not None else ())
        if isinstance(target.backend, OpenAIBackend)
    }


def _renewed(
    target: Target, backend: OpenAIBackend, own: BackendSettings, settings: Settings
) -> Renewal:
    again = backend.renewed(own, settings.limits)
    unknown = own.health != backend.settings.health
    alone = _alone(settings)
    return Renewal(
        target, again, own.models, own.in_flight, alone, own.weight, own.priority, unknown
    )


def _alone(settings: Settings) -> bool:
    """Whether there is one backend only."""
    return len(settings.backends) == 1


def _certificate(settings: Settings, problems: list[str]) -> Certificate | None:
    certificate, key = settings.gateway.tls_certificate, settings.gateway.tls_key
    if certificate is None or key is None:
        return None
    from gatewayd.api.tls import Certificate
    from gatewayd.settings.pem import server_context

    try:
        return Certificate(server_context(certificate, key))
    except ValueError as error:
        problems.append(f"[gateway] tls_key: {error}")
        return None
