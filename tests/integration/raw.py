"""Raw requests, byte for byte, of hostile or broken clients; and the check of a refusal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress

import attrs

from tests.integration.client import Answer, Client
from tests.integration.expectations import check_error
from tests.integration.gateways import FastGateway

BODY = b'{"messages":[{"role":"user","content":"hello"}]}'
#: A request in the same bytes after one that is refused; it must not be executed.
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: gateway\r\nX-Request-ID: smuggled\r\n\r\n"
HOST = b"Host: gateway"
CLOSE = b"Connection: close"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def chunked(body: bytes, size: int = 0, behind: bytes = b"") -> bytes:
    """A body in chunks of ``size`` bytes; ``behind`` follows the number in each size line."""
    size = size or len(body)
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    chunks = b"".join(b"%x%b\r\n%b\r\n" % (len(part), behind, part) for part in parts)
    return chunks + b"0\r\n\r\n"


def request(line: bytes, *headers: bytes, body: bytes = b"", host: bytes = HOST) -> bytes:
    """The bytes of a request; ``headers`` are lines without line ends."""
    return b"\r\n".join([line, *([host] if host else []), *headers, b"", b""]) + body


def get(target: bytes, *headers: bytes, host: bytes = HOST) -> bytes:
    return request(b"GET %b HTTP/1.1" % target, *headers, host=host)


def post(*headers: bytes, body: bytes = b"", media_type: bytes = b"application/json") -> bytes:
    """A chat request with no framing except that in ``headers``."""
    line, kind = b"POST /v1/chat/completions HTTP/1.1", b"Content-Type: " + media_type
    return request(line, kind, *headers, body=body)


def chat(body: bytes = BODY, *headers: bytes, media_type: bytes = b"application/json") -> bytes:
    """A chat request with a Content-Length and ``Connection: close``."""
    length = b"Content-Length: %d" % len(body)
    return post(length, CLOSE, *headers, body=body, media_type=media_type)


@attrs.frozen
class RawAnswers:
    """All answers on a connection until its end."""

    answers: list[Answer]
    ended: str
    seconds: float

    @property
    def answer(self) -> Answer:
        """The only answer."""
        (answer,) = self.answers
        return answer


def send_raw(port: int, *pieces: bytes, every: float = 0.0) -> RawAnswers:
    """Send each piece in its own segment, then read until the connection ends.

    :param every: seconds between two pieces; the rest is not sent after an answer.
    """
    began = time.monotonic()
    with Client(port) as client:
        if every:
            client.sock.settimeout(every)
        data = b""
        for piece in pieces:
            try:
                client.sock.sendall(piece)
                if not every or (data := client.sock.recv(1 << 16)) == CONTINUE:
                    continue
            except TimeoutError:
                continue
            except OSError:
                pass
            break
        client.sock.settimeout(20)
        return _read(client, data.removeprefix(CONTINUE), began)


def _read(client: Client, data: bytes, began: float) -> RawAnswers:
    answers, current = [], Answer("", began)
    current.feed(data)
    while not current.ended:
        if current.whole and current.surplus:
            answers.append(current)
            rest, current = current.surplus, Answer("", began)
            current.feed(rest)
        else:
            client.more(current)
    if current.status:
        answers.append(current)
    return RawAnswers(answers, current.ended, time.monotonic() - began)


def check_refused(
    daemon: FastGateway, answer: Answer, expected: str, param: str | None = None
) -> None:
    """Check that an answer is an error envelope, and that the log line agrees with it.

    :param expected: ``STATUS CODE [TYPE]``; the type is ``invalid_request_error`` by default.
        Alternative statuses and codes are separated by ``|``.
    """
    statuses, codes, kind = (*expected.split(), "invalid_request_error")[:3]
    assert answer.whole and f"{answer.status}" in statuses.split("|"), answer
    assert answer.header("content-type") == ["application/json"]
    assert answer.header("content-length") == [f"{len(answer.body)}"]
    assert answer.header("x-content-type-options") == ["nosniff"]
    check_error(bytes(answer.body), codes, kind)
    error = answer.json()["error"]
    assert error["param"] == param
    (id,) = answer.header("x-request-id")
    line = daemon.line(id)
    assert (line["status"], line["end"]) == (answer.status, "refused"), line
    assert line["code"] == error["code"]


def together(jobs: Sequence[tuple[Client, bytes]]) -> None:
    """Send to several connections; ignore those that are closed."""
    for client, data in jobs:
        with suppress(OSError):
            client.sock.sendall(data)
