"""Settings -> all that serves requests by them: backends, routes, the API, the certificate.

Start, reload and ``--check`` build it with :func:`build`, so a check says what a start would say.
It is built whole before any of it is used: what cannot be built raises, and the world that serves
has not been touched by then. Only :meth:`World.take_over` touches it, and that cannot fail.

A reload keeps the targets whose backend is still the same server: same name, URL, key and TLS.
Those keep their connections, their requests in flight and what is known of their health; other
settings of theirs change in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import attrs
from OpenSSL import SSL

from gatewayd.api.app import API
from gatewayd.api.routes import Routes
from gatewayd.backend.echo import EchoBackend
from gatewayd.backend.interface import Backend
from gatewayd.backend.openai import OpenAIBackend
from gatewayd.routing.router import Router
from gatewayd.routing.target import Target
from gatewayd.settings.checks import warnings_of
from gatewayd.settings.load import SettingsError
from gatewayd.settings.model import BackendSettings, Settings
from gatewayd.settings.pem import server_context

from . import descriptors


@attrs.frozen(eq=False)
class Renewal:
    """A target that is kept, and what becomes of it; see :meth:`Target.renew`."""

    target: Target
    backend: Backend
    models: tuple[tuple[str, str | None], ...] = ()
    limit: int | None = None
    unknown: bool = False

    def take_over(self) -> None:
        self.target.renew(self.backend, self.models, self.limit, self.unknown)
        if isinstance(self.backend, OpenAIBackend):
            self.backend.take_over()


@attrs.frozen(eq=False)
class World:
    """:param certificate: with the gateway's own certificate; None without TLS."""

    settings: Settings
    api: API
    resource: Routes
    certificate: SSL.Context | None
    renewals: tuple[Renewal, ...]

    @property
    def targets(self) -> tuple[Target, ...]:
        return self.api.router.targets

    def take_over(self) -> None:
        """Have the targets that are kept go on with the new settings. To be called once."""
        for renewal in self.renewals:
            renewal.take_over()


def build(
    settings: Settings,
    reactor: Any,
    metrics: Callable[[], bytes],
    before: World | None = None,
) -> World:
    """
    :param metrics: makes the page of metrics.
    :param before: the world that serves now, to keep from it what stays the same.
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
    return World(settings, api, api.resource(), certificate, renewals)


def dangers(settings: Settings) -> list[str]:
    """What works but should be seen to, one sentence each, for the log of this process."""
    return [*warnings_of(settings), *descriptors.warnings(settings)]


def _targets(
    settings: Settings, reactor: Any, before: World | None, problems: list[str]
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
                yield Target(made, reactor, own.models, own.in_flight)
        except Exception as error:
            problems.append(f"[backend {own.name}]: cannot be used ({error})")


def _echo(settings: Settings, reactor: Any, before: World | None) -> Target | Renewal:
    backend = EchoBackend(settings.gateway.api_title)
    if before is None or before.settings.backends:
        return Target(backend, reactor)
    return Renewal(before.targets[0], backend)


_Server = tuple[object, ...]


def _server(own: BackendSettings) -> _Server:
    """What makes a backend the same server to the gateway."""
    return own.name, own.url, own.api_key, own.tls_ca


def _servers(before: World | None) -> dict[_Server, tuple[Target, OpenAIBackend]]:
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
    return Renewal(target, again, own.models, own.in_flight, unknown)


def _certificate(settings: Settings, problems: list[str]) -> SSL.Context | None:
    certificate, key = settings.gateway.tls_certificate, settings.gateway.tls_key
    if certificate is None or key is None:
        return None
    try:
        return server_context(certificate, key)
    except ValueError as error:
        problems.append(f"[gateway] tls_key: {error}")
        return None
