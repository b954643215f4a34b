"""The far end of a connection to a backend: reads requests and plays the plans for them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import attrs

from .network import Plain, Socket
from .plans import Plan

#: The gateway may ask for it at any time; with an empty list, all backends stay equal.
_MODELS = b"GET /v1/models HTTP/1.1\r\n"
_NO_MODELS = b'HTTP/1.1 200 OK\r\nContent-Length: 27\r\n\r\n{"object":"list","data":[]}'
_HEAD = re.compile(rb"POST (/v1/[a-z/]+) HTTP/1\.1\r\n")
_ID = re.compile(rb"\r\nX-Request-Id: ([^\r]*)\r\n", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\nContent-Length: ([0-9]+)\r\n", re.IGNORECASE)


@attrs.define
class Attempt:
    """One request that a backend has received.

    :param whole: whether all of its body has arrived.
    :param fresh: whether it was the first on its connection.
    :param answered: whether any byte was sent back.
    :param ended: the time at which the plan was finished.
    :param left: the time at which the gateway closed the connection before that.
    :param socket: the gateway's end of its connection.
    :param sent_at: the operation of the network with which the gateway began to send it.
    """

    id: str
    backend: str
    plan: Plan
    began: float
    head: bytes
    fresh: bool
    socket: Socket
    sent_at: int
    body: bytes = b""
    whole: bool = False
    answered: bool = False
    ended: float | None = None
    left: float | None = None
    was_reset: bool = False


class BackendEnd:
    """
    :param plan_for: the plan for a request: its id and its path.
    """

    def __init__(
        self,
        name: str,
        end: Plain,
        plan_for: Callable[[str, str, str], Plan],
        attempts: list[Attempt],
        early: bool,
    ) -> None:
        self.name = name
        self.end = end
        self.wake: float | None = None
        self.problems: list[str] = []
        self.received = b""
        self.served = 0
        self._plan_for = plan_for
        self._attempts = attempts
        self._early = early
        self._buffer = b""
        self._current: Attempt | None = None
        self._steps: list[tuple[float, str, bytes]] = []
        self._finishing = False
        self._over = False

    def act(self, now: float) -> bool:
        """Do all that can be done now. Return False if there was nothing to do."""
        if self._over:
            return False
        data = self.end.pump()
        left = self.end.ended or self.end.broken
        if self._finishing and not left:
            return self.end.moved
        self._buffer += data
        self.received += data
        moved = self.end.moved
        if left:
            self._left(now)
            return True
        while True:
            if self._current is None or not self._current.whole:
                moved |= self._read(now)
            if self._current is None or (not self._current.whole and not self._early):
                return moved
            if not self._play(self._current, now):
                return moved
            moved = True
            if self._closes:
                return True

    def _read(self, now: float) -> bool:
        if self._current is None:
            head, separator, rest = self._buffer.partition(b"\r\n\r\n")
            if not separator:
                return False
            head += b"\r\n"
            if head.startswith(_MODELS):
                self._buffer = rest
                self.end.socket.peer.sent_at.clear()
                self.served += 1
                self.end.write(_NO_MODELS)
                self.end.pump(0)
                return True
            path, id, length = _HEAD.match(head), _ID.search(head), _LENGTH.search(head)
            if not path or not id or not length:
                self.problems.append(f"no request that a gateway should send: {head!r}")
                self._close()
                return True
            name = id[1].decode()
            plan = self._plan_for(name, path[1].decode(), self.name)
            gateways = self.end.socket.peer
            sent_at = gateways.sent_at[0]
            fresh = self.served == 0
            attempt = Attempt(name, self.name, plan, now, head, fresh, gateways, sent_at)
            self._attempts.append(attempt)
            self._current, self._buffer = attempt, rest
            self._length = int(length[1])
            self._steps = list(plan.steps)
            self._due(now)
        current = self._current
        part = self._buffer[: self._length - len(current.body)]
        current.body += part
        self._buffer = self._buffer[len(part) :]
        current.whole = len(current.body) == self._length
        if current.whole:
            self.end.socket.peer.sent_at.clear()
        return current.whole or bool(part)

    def _due(self, now: float) -> None:
        self.wake = now + self._steps[0][0] if self._steps else None

    def _play(self, attempt: Attempt, now: float) -> bool:
        """Do the next step if it is due. Return False if it is not."""
        if not self._steps:
            if self.end.unsent:
                self.end.pump(0)
            if self.end.unsent or not attempt.whole:
                return False
            self.served += 1
            if attempt.plan.keeps:
                attempt.ended, self._current = now, None
            else:
                self._finish(attempt, "fin", now)
            return True
        if self.wake is not None and now < self.wake:
            return False
        _, action, data = self._steps.pop(0)
        if action == "send":
            attempt.answered |= bool(data)
            self.end.write(data)
            self.end.pump(0)
        elif action == "mute":
            self._steps, self.wake = [(float("inf"), "mute", b"")], None
            return False
        else:
            self._finish(attempt, action, now)
            return True
        self._due(now)
        return True

    def _finish(self, attempt: Attempt, how: str, now: float) -> None:
        """Close or reset the connection; a close lets the gateway read what was sent before."""
        attempt.ended = now
        self._current, self.wake = None, None
        if how == "reset":
            attempt.was_reset = True
            self.end.reset()
            self._over = True
        else:
            self.end.finish()
            self.end.pump(0)
            self._finishing = True

    def _left(self, now: float) -> None:
        if self._current is not None and self._current.left is None:
            self._current.left = now
        self._close()

    def _close(self) -> None:
        self._over = True
        self.wake = None
        if self.end.unsent:
            self.end.pump(0)
        self.end.socket.close()

    @property
    def _closes(self) -> bool:
        return self._over or self._finishing


def credentials_in(ends: list[BackendEnd], secrets: list[bytes]) -> list[Any]:
    return [(end.name, secret) for end in ends for secret in secrets if secret in end.received]
