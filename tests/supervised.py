"""A supervisor on a clock, with workers that are objects and no processes."""

from __future__ import annotations

import pickle
from typing import Any

from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from gatewayd.daemon.supervisor import Supervisor
from gatewayd.daemon.worker import Handover
from gatewayd.daemon.worker_process import CHECK_SECONDS, NotifySocket, WorkerProcess
from gatewayd.settings.load import SettingsError
from gatewayd.settings.model import Settings
from tests.memory import settings


class Process:
    """A worker's process as Twisted shows it, and what the supervisor does with it."""

    def __init__(
        self, protocol: WorkerProcess, command: list[str], environment: dict[str, str], fds: Any
    ) -> None:
        self.protocol = protocol
        self.pid = -1
        self.command = command
        self.environment = environment
        self.descriptors = fds
        self.written = b""
        self.signals: list[int] = []
        self.ended = False
        protocol.makeConnection(self)

    def writeToChild(self, descriptor: int, data: bytes) -> None:
        assert descriptor == 0
        self.written += data

    def signalProcess(self, number: int) -> None:
        if self.ended:
            raise ProcessExitedAlready
        self.signals.append(number)

    def end(self, status: int = 0) -> None:
        self.ended = True
        reason = ProcessTerminated(exitCode=status) if status else ProcessDone(0)
        self.protocol.processEnded(Failure(reason))

    @property
    def told(self) -> list[Handover | Settings | None]:
        """All messages until now."""
        rest, messages = self.written, []
        while rest:
            end = 4 + int.from_bytes(rest[:4], "big")
            messages.append(pickle.loads(rest[4:end]))
            rest = rest[end:]
        return messages


class Reactor(Clock):
    """Starts processes that do nothing; ``failing`` has the errors of the next starts."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[Process] = []
        self.failing: list[OSError] = []
        self.notify_sockets: list[NotifySocket] = []

    def spawnProcess(
        self, protocol: Any, executable: str, args: Any, env: Any, childFDs: Any
    ) -> None:
        if self.failing:
            raise self.failing.pop(0)
        self.processes.append(Process(protocol, args, env, childFDs))

    def listenUNIXDatagram(self, address: str, protocol: NotifySocket) -> None:
        self.notify_sockets.append(protocol)

    def callWhenRunning(self, call: Any) -> None:
        """No signals here."""

    def addSystemEventTrigger(self, *arguments: Any) -> None:
        """No signals here."""

    def say(self, worker: int, what: bytes = b"WATCHDOG=1") -> None:
        self.notify_sockets[worker].datagramReceived(what, None)

    def pass_seconds(self, seconds: float, *alive: int) -> None:
        """Check by check, while these workers say that they live."""
        for _ in range(round(seconds / CHECK_SECONDS)):
            for worker in alive:
                self.say(worker)
            self.advance(CHECK_SECONDS)


class World:
    """A supervisor of two workers whose processes do nothing."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.loaded: Settings | SettingsError = settings(gateway_workers="2", gateway_port="0")
        assert isinstance(self.loaded, Settings)
        self.supervisor = Supervisor(self.loaded, self.load, self.reactor, ["--option"], False)
        self.supervisor.startService()

    def load(self) -> Settings:
        if isinstance(self.loaded, SettingsError):
            raise self.loaded
        return self.loaded

    @property
    def processes(self) -> list[Process]:
        return self.reactor.processes

    def both_serve(self) -> None:
        for number in (0, 1):
            self.reactor.say(number, b"READY=1\nSTATUS=serves")

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        if self.supervisor._stopped is None:
            self.supervisor.stopService()
        for process in self.processes:
            if not process.ended:
                process.end()
