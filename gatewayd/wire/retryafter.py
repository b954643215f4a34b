"""How long a refusal asks to wait: the headers ``Retry-After`` and ``retry-after-ms``."""

from __future__ import annotations

import re
from collections.abc import Iterable

#: Seconds, or milliseconds; some services send fractions.
_NUMBER = re.compile(rb"[0-9]{1,9}(\.[0-9]{1,9})?")

_SECONDS, _MILLISECONDS = b"retry-after", b"retry-after-ms"


def seconds_to_wait(headers: Iterable[tuple[bytes, bytes]], now: float) -> float | None:
    """The seconds that a refusal asks to wait; None if it does not say, or not understandably.

    ``retry-after-ms`` counts before ``Retry-After``, as in the openai SDKs.

    :param headers: with names in lower case.
    :param now: seconds of Unix time, because ``Retry-After`` may be a date.

    Source: RFC 9110, section 10.2.3.
    """
    seconds: float | None = None
    for name, value in headers:
        if name == _MILLISECONDS and _NUMBER.fullmatch(value):
            return float(value) / 1000
        if name == _SECONDS:
            seconds = float(value) if _NUMBER.fullmatch(value) else _until(value, now)
    return seconds


def with_wait(
    headers: Iterable[tuple[bytes, bytes]], seconds: float
) -> tuple[tuple[bytes, bytes], ...]:
    """The headers with another time to wait, in whole seconds, at least 1."""
    others = [field for field in headers if field[0] not in (_SECONDS, _MILLISECONDS)]
    return (*others, (_SECONDS, b"%d" % whole_seconds(seconds)))


def whole_seconds(seconds: float) -> int:
    """Rounded up, at least 1: a client that waits for less comes too early."""
    return max(1, -int(-seconds // 1))


def _until(value: bytes, now: float) -> float | None:
    """The seconds until an HTTP date; 0 if it is past, None if it is none."""
    from datetime import UTC  # rare: few servers send a date
    from email.utils import parsedate_to_datetime

    try:
        date = parsedate_to_datetime(value.decode("ascii"))
        return max(0.0, date.replace(tzinfo=date.tzinfo or UTC).timestamp() - now)
    except (ValueError, OverflowError, TypeError):
        return None
