"""The ports of a process that serves: opened at its privileged start, closed when it drains."""

from __future__ import annotations

import os
from ipaddress import ip_address
from typing import Any

from twisted.application.service import Service
from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import IListeningPort

from .listening import accept_pending, adopt, listen
from .notify import inherited_sockets
from .serving import Serving
from .worker import Handover


class Ports(Service):
    """
    :param serving: has the sites, and the settings that say where to listen.
    :param handover: from the supervisor, in a worker.
    """

    def __init__(self, serving: Serving, handover: Handover | None, reactor: Any) -> None:
        self._serving = serving
        self._handover = handover
        self._reactor = reactor
        self._open: list[IListeningPort] = []
        self._kept = False
        #: The IP address that clients connect to.
        self.host = serving.settings.gateway.listen

    def privilegedStartService(self) -> None:
        """Open them.

        :raises CannotStart: one cannot be opened.
        """
        super().privilegedStartService()
        serving = self._serving
        factory: Any = serving.site
        if serving.certificate is not None:
            factory = serving.certificate.wrap(factory, self._reactor)
        descriptors = self._handed_over()
        if descriptors:
            self._open = [adopt(self._reactor, descriptor, factory) for descriptor in descriptors]
            self.host = self._reachable_host()
        else:
            gateway = serving.settings.gateway
            self._open = [listen(self._reactor, gateway.listen, gateway.port, factory)]
        if serving.metrics_site is not None:
            assert serving.settings.metrics.listen is not None
            host, port = serving.settings.metrics.listen
            self._open.append(listen(self._reactor, host, port, serving.metrics_site))

    def _handed_over(self) -> list[int]:
        """The descriptors of sockets from the supervisor or from systemd."""
        if self._handover is not None:
            self._kept = self._handover.kept
            return self._handover.descriptors
        descriptors = inherited_sockets()
        self._kept = bool(descriptors)
        return descriptors

    def _reachable_host(self) -> str:
        """The address of the sockets that were handed over; it counts, not the settings.

        Of several addresses, one that other machines can reach is preferred: on a loopback
        address, the metrics need no token. A socket in the file system has no IP address.
        """
        addresses = [port.getHost() for port in self._open]
        hosts = [address.host for address in addresses if hasattr(address, "host")]
        hosts.sort(key=lambda host: ip_address(host).is_loopback)
        return next(iter(hosts), self.host)

    @property
    def opened(self) -> bool:
        return bool(self._open)

    @property
    def address(self) -> str:
        """Where this process listens, for messages."""
        return ", ".join(_shown(port.getHost()) for port in self._open)

    def close(self) -> None:
        """Close the ports in this turn of the loop, after accepting the connections that wait.

        Those that wait at a port which systemd keeps open are left to the next start.
        """
        for port in self._open:
            if not self._kept:
                self._reactor.callLater(0, accept_pending, port)
            port.stopListening()


def _shown(address: Any) -> str:
    if isinstance(address, UNIXAddress):
        return os.fsdecode(address.name or b"")
    return f"{address.host} port {address.port}"
