"""The daemon's reactor calls handlers as Twisted's own reactor does."""

import functools
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import error
from twisted.internet.abstract import FileDescriptor
from twisted.internet.main import CONNECTION_DONE
from twisted.logger import LogEvent, globalLogPublisher
from twisted.python.failure import Failure

from gatewayd.daemon.reactor import Reactor, use_monotonic_time


class Reader(FileDescriptor):
    """Reads from one end of a pair of sockets; the other end is ``peer``."""

    def __init__(self, reactor: Reactor, read: Callable[["Reader"], object]) -> None:
        super().__init__(reactor)
        self._socket, self.peer = socket.socketpair()
        self._socket.setblocking(False)
        self._read = read
        self.lost: list[type[BaseException] | None] = []
        self.fileno = self._socket.fileno  # type: ignore[method-assign]
        self.startReading()

    def doRead(self) -> object:
        return self._read(self)

    def received(self) -> object:
        return None if self._socket.recv(100) else CONNECTION_DONE

    def connectionLost(self, reason: Failure) -> None:
        self.lost.append(reason.type)

    def close(self) -> None:
        self._socket.close()
        self.peer.close()


class World:
    """A reactor, and readers that it has."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.readers: list[Reader] = []
        self.called: list[Reader] = []
        self.logged: list[type[BaseException] | None] = []

    def reader(self, read: Callable[[Reader], object]) -> Reader:
        """A reader with data to read; ``read`` is its handler."""

        def noted(reader: Reader) -> object:
            self.called.append(reader)
            return read(reader)

        reader = Reader(self.reactor, noted)
        self.readers.append(reader)
        reader.peer.send(b"x")
        return reader

    def observe(self, event: LogEvent) -> None:
        if "log_failure" in event:
            self.logged.append(event["log_failure"].type)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    observer: Any = world.observe
    globalLogPublisher.addObserver(observer)
    yield world
    globalLogPublisher.removeObserver(observer)
    for reader in world.readers:
        reader.close()
    world.reactor.waker.connectionLost(Failure(error.ConnectionDone()))
    world.reactor._poller.close()


def test_data_is_read_by_the_handler_that_waits_for_it(world: World) -> None:
    readers = [world.reader(Reader.received) for _ in range(3)]
    readers[1].received()  # so that there is nothing
    world.reactor.doIteration(0)
    world.reactor.doIteration(0)
    assert set(world.called) == {readers[0], readers[2]} and len(world.called) == 2


def test_a_handler_that_raises_loses_only_its_own_connection(world: World) -> None:
    broken, well = world.reader(lambda reader: 1 // 0), world.reader(Reader.received)
    world.reactor.doIteration(0)
    assert (broken.lost, well.lost, len(world.called)) == ([ZeroDivisionError], [], 2)
    assert world.logged == [ZeroDivisionError]
    assert broken not in world.reactor.getReaders() and well in world.reactor.getReaders()


def test_what_a_handler_returns_closes_the_connection(world: World) -> None:
    reader = world.reader(lambda reader: CONNECTION_DONE)
    world.reactor.doIteration(0)
    assert (reader.lost, world.logged) == ([error.ConnectionDone], [])


def test_a_handler_is_not_called_after_another_has_closed_its_connection(world: World) -> None:
    def close_all(reader: Reader) -> None:
        for other in world.readers:
            other.stopReading()

    world.reader(close_all)
    world.reader(close_all)
    world.reactor.doIteration(0)
    assert len(world.called) == 1


def test_a_lost_connection_is_reported_as_by_twisted(world: World) -> None:
    reader = world.reader(Reader.received)
    reader.peer.close()
    world.reactor.doIteration(0)
    world.reactor.doIteration(0)
    assert reader.lost == [error.ConnectionDone]


def _running(world: World, handler: Callable[[Reader], object], seconds: float = 5.0) -> float:
    """Run the reactor with this handler until it stops. Returns how many seconds that took."""
    world.reader(handler)
    too_late = world.reactor.callLater(seconds, world.reactor.stop)
    began = time.monotonic()
    world.reactor.run(installSignalHandlers=False)
    if too_late.active():
        too_late.cancel()
    return time.monotonic() - began


def test_many_events_are_handled_within_one_turn(world: World) -> None:
    def read(reader: Reader) -> object:
        reader.received()
        if len(world.called) < 20:
            reader.peer.send(b"x")
        else:
            world.reactor.stop()
        return None

    assert _running(world, read) < 4 and len(world.called) == 20


def test_a_timer_set_by_a_handler_is_not_late(world: World) -> None:
    def read(reader: Reader) -> object:
        world.reactor.callLater(0.05, world.reactor.stop)
        return reader.received()

    assert 0.04 < _running(world, read) < 4


def test_a_timer_moved_by_a_handler_is_not_late(world: World) -> None:
    late = world.reactor.callLater(60, world.reactor.stop)

    def read(reader: Reader) -> object:
        late.reset(0.05)
        return reader.received()

    assert 0.04 < _running(world, read) < 4


def test_a_timer_is_not_late_while_events_keep_coming(world: World) -> None:
    def read(reader: Reader) -> object:
        reader.received()
        reader.peer.send(b"x")
        return None

    assert 0.09 < _running(world, read, seconds=0.1) < 4


def test_a_call_of_another_thread_is_not_late(world: World) -> None:
    def read(reader: Reader) -> object:
        stop = functools.partial(world.reactor.callFromThread, world.reactor.stop)
        threading.Timer(0.05, stop).start()
        return reader.received()

    assert 0.04 < _running(world, read) < 4


def test_a_call_that_a_handler_leaves_for_the_next_turn_is_not_late(world: World) -> None:
    def read(reader: Reader) -> object:
        world.reactor.callFromThread(world.reactor.stop)
        return reader.received()

    assert _running(world, read) < 4


def test_a_handler_can_crash_the_reactor(world: World) -> None:
    def read(reader: Reader) -> object:
        world.reactor.crash()
        return reader.received()

    assert _running(world, read) < 4


def test_delayed_calls_that_exist_already_use_monotonic_time_too(world: World) -> None:
    early = world.reactor.callLater(1, lambda: None)
    use_monotonic_time(world.reactor)
    late = world.reactor.callLater(2, lambda: None)
    assert world.reactor.seconds() == pytest.approx(time.monotonic(), abs=1)
    assert late.getTime() - early.getTime() == pytest.approx(1, abs=0.5)
    early.reset(3)
    assert early.getTime() - time.monotonic() == pytest.approx(3, abs=0.5)
    early.cancel()
    late.cancel()


@pytest.mark.parametrize(
    ("options", "chosen"),
    [((), "gatewayd.daemon.reactor.Reactor"), (("--reactor", "poll"), "pollreactor.PollReactor")],
)
def test_twistd_runs_this_reactor_unless_another_is_chosen(
    options: tuple[str, ...], chosen: str, tmp_path: Path
) -> None:
    command = "from twisted.scripts.twistd import run; run()"
    daemon = subprocess.Popen(
        [sys.executable, "-c", command, "--nodaemon", *options, "gatewayd", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
    )
    assert daemon.stdout is not None
    lines = []
    for line in daemon.stdout:
        lines.append(line)
        if "reactor class" in line or len(lines) > 20:
            break
    daemon.kill()
    daemon.communicate()
    assert any(chosen in line for line in lines), lines
