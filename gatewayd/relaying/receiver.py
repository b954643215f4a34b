"""The contract between the relay and what reads a reply's body.

A :class:`Receiver` is given the bytes of one body and returns a :class:`Step` for each call: what
the client is to be sent, what the bytes mean for the clocks, and how the reply ended, if it did. It
does no I/O and knows neither the relay nor the client. The relay alone acts on steps.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from gatewayd.wire.errors import BadReply, GatewayError, Truncated


class Progress(enum.Enum):
    """What the bytes of a step mean for the clocks."""

    NONE = enum.auto()  # no clock moves: comments, white space, or a part of an event
    EMPTY_EVENT = enum.auto()  # events ended, and none of them had content
    CONTENT = enum.auto()


# Names of the module: an attribute of an enumeration takes a thousand instructions to read.
NONE, EMPTY_EVENT, CONTENT = Progress


class Whole(NamedTuple):
    """The reply was whole.

    :param body: the answer's body; None where the answer is a stream of frames.
    """

    body: bytes | None = None


class Step(NamedTuple):
    """What follows from the bytes that a receiver was given.

    :param frames: bytes to send to the client; empty for none.
    :param events: how many events ``frames`` holds, ``[DONE]`` left out.
    :param progress: what the bytes mean for the clocks.
    :param partial: whether data of an event came whose end has not come yet.
    :param outcome: how the reply ended; None while more is expected. After an outcome the
        receiver is not called again.
    """

    frames: bytes = b""
    events: int = 0
    progress: Progress = NONE
    partial: bool = False
    outcome: Whole | GatewayError | None = None


class Receiver(ABC):
    """Reads the body of one reply."""

    #: The fast path of a token: called with a segment of at most :attr:`fast_limit` bytes, it
    #: returns the frames to send, one for each event, or None if :meth:`feed` must read the
    #: segment. It is None itself while the next segment must go to :meth:`feed`.
    fast: Callable[[bytes], list[bytes] | None] | None = None
    fast_limit = 0

    @abstractmethod
    def feed(self, data: bytes) -> Step:
        """Read the next bytes of the body."""

    @abstractmethod
    def close(self, exact: bool) -> Step:
        """The body ended without an error. The step returned has an outcome.

        :param exact: whether the body's framing marked this end. If not, the connection was closed
            and the body may have been cut off.
        """


def judged(problem: GatewayError, exact: bool) -> GatewayError:
    """The error of a body that is not valid, given the error that reading it raised.

    :param exact: as in :meth:`Receiver.close`. Without it, a body that is not valid is taken for
        one that was cut off.
    """
    if isinstance(problem, BadReply) and not exact:
        return Truncated("The backend's reply broke off before its end.")
    return problem
