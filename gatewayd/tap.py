"""What ``twistd gatewayd`` runs: the command line, and the service made from it.

Settings are read while twistd still parses its command line. It has not forked then, so a mistake
in them reaches the terminal and the exit status, also if twistd runs in the background. This is
the only module that imports the global reactor. Some imports are inside functions because
``--help``, a failed start, or a process of another kind does not need them.
"""

import os
import select
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

from twisted.application.app import ServerOptions
from twisted.application.reactors import getReactorTypes
from twisted.application.service import IService
from twisted.python import usage

from gatewayd import __version__
from gatewayd.daemon.worker import Supervised, is_worker
from gatewayd.settings.checks import warnings_of
from gatewayd.settings.load import SettingsError, load
from gatewayd.settings.model import OPTIONS, SETTINGS, Settings
from gatewayd.telemetry import errorlog


def _option(name: str, short: str) -> tuple[str, str, None, str]:
    """An option of the command line that gives a setting, for :class:`Options`."""
    section, key = OPTIONS[name]
    setting = SETTINGS[section.kind][key]
    default = f" (default: {setting.default})" if setting.default else ""
    return name, short, None, setting.doc.removesuffix(".") + default


class Options(usage.Options):
    """The command line. Once parsed it has ``settings``, and ``load``, which reads them again."""

    synopsis = "[options]"
    longdesc = (
        "gatewayd stands between OpenAI-style clients and the inference servers that answer them. "
        "Without a backend it echoes. An option here overrides the environment (PORT, BACKEND_URL, "
        "GATEWAYD_SECTION_KEY), which overrides the ini file, which overrides the defaults."
    )
    optParameters = (
        ("config", "c", None, "Ini file to read (default: the one GATEWAYD_CONFIG names, or none)"),
        _option("port", "p"),
        _option("listen", "l"),
        _option("backend-url", "b"),
    )
    optFlags = (("check", None, "Check the settings, report mistakes, and exit"),)

    settings: Settings
    load: Callable[[], Settings]
    supervised: Supervised | None = None

    def opt_version(self) -> NoReturn:
        """Show the version of gatewayd and exit."""
        print(f"gatewayd {__version__}")
        raise SystemExit(0)

    def parseOptions(self, options: list[str] | None = None) -> None:
        """Parse; report a wrong command line in one line, as any other mistake."""
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            reason = str(error).rstrip(".")
            _fail([f"command line: {reason}, expected what twistd gatewayd --help lists"])

    def postOptions(self) -> None:
        """Read the settings; exit with status 1 if they cannot be used."""
        if is_worker():
            self.supervised = Supervised()
            self.settings, self.load = self.supervised.handover.settings, self.supervised.load
        else:
            self._read()
        if self.parent is not None and not self.parent.get("logger"):
            errorlog.configure(self.parent, self.settings.log.level)
            self.parent["logger"] = errorlog.OBSERVER
        if self["check"]:
            self._check()
            print(f"CONFIG ok: {_summary(self.settings)}.")
            raise SystemExit(0)
        if isinstance(self.parent, ServerOptions) and hasattr(select, "epoll"):
            # twistd installs its default only later, and one chosen with --reactor earlier. twist
            # has installed one in any case.
            from gatewayd.daemon.without_tls import import_twisted

            import_twisted()
            from gatewayd.daemon.reactor import install

            install()

    def _read(self) -> None:
        given = {name: self[name] for name in OPTIONS if self[name] is not None}
        path = self["config"] or os.environ.get("GATEWAYD_CONFIG")
        # The daemon may run in another folder when it reads the files again.
        path = path and os.path.abspath(path)
        self.load = partial(load, dict(os.environ), given, path, os.getcwd())
        try:
            self.settings = self.load()
        except SettingsError as error:
            if not self["check"]:
                _refuse_waiting()
            _fail(error.problems)

    def _check(self) -> None:
        """Build what a start would build; exit with status 1 if that fails."""
        from twisted.internet import reactor

        from gatewayd.daemon.generation import build

        try:
            build(self.settings, reactor, bytes)
        except SettingsError as error:
            _fail(error.problems)
        _print_errors(warnings_of(self.settings))


def makeService(options: Options) -> IService:
    """The daemon's service; nothing is opened before twistd starts it."""
    from gatewayd.daemon.signals import hold

    hold()
    # twistd has chosen the reactor by now.
    from twisted.internet import reactor

    from gatewayd.daemon import descriptors
    from gatewayd.daemon.reactor import use_monotonic_time

    use_monotonic_time(reactor)
    descriptors.raise_limit()
    try:
        if options.settings.gateway.workers > 1 and options.supervised is None:
            from gatewayd.daemon.supervisor import Supervisor

            # twist has no such option and always runs in the foreground.
            foreground = bool(options.parent and options.parent.get("nodaemon", True))
            reactor_option = _reactor_option(reactor)
            return Supervisor(options.settings, options.load, reactor, reactor_option, foreground)
        from gatewayd.daemon.service import GatewayService

        return GatewayService(options.settings, options.load, reactor, options.supervised)
    except SettingsError as error:
        _refuse_waiting()
        _fail(error.problems)


def _reactor_option(reactor: object) -> list[str]:
    """The option with which twistd installs this reactor; empty for the default one."""
    kind: Any
    for kind in getReactorTypes():
        if kind.moduleName == type(reactor).__module__:
            return ["--reactor", kind.shortName]
    return []


def _summary(settings: Settings) -> str:
    gateway = settings.gateway
    host = f"[{gateway.listen}]" if ":" in gateway.listen else gateway.listen
    names = [backend.name for backend in settings.backends]
    backends = f"backends {', '.join(names)}" if names else "no backend, requests are echoed"
    return f"listens on {host}:{gateway.port}{gateway.root_path}, {backends}"


def _print_errors(lines: Sequence[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)


def _refuse_waiting() -> None:
    """The start fails: answer the clients that wait in systemd's sockets."""
    from gatewayd.daemon.failed_start import refuse_waiting
    from gatewayd.daemon.notify import inherited_sockets

    refuse_waiting(inherited_sockets())


def _fail(lines: Sequence[str]) -> NoReturn:
    _print_errors(lines)
    raise SystemExit(1)
