"""Forms as clients upload them."""

from __future__ import annotations

from tests.memory import ClientTransport, Gateway
from tests.replies import TRANSCRIPTIONS

SOUND = bytes(range(256)) * 20 + b"data: [DONE]\n\n"


BOUNDARY = "----x7MA4YWxk"


FORM = f"multipart/form-data; boundary={BOUNDARY}"


def form(*fields: tuple[str, bytes], boundary: str = BOUNDARY) -> bytes:
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode()
        + value
        + b"\r\n"
        for name, value in fields
    ]
    return b"".join(parts) + f"--{boundary}--\r\n".encode()


def sound(content: bytes = SOUND) -> bytes:
    """A part with a file, as it stands before the last boundary."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n'
    return head.encode() + b"Content-Type: audio/wav\r\n\r\n" + content + b"\r\n"


def upload(
    gateway: Gateway, body: bytes, kind: str = FORM, path: str = TRANSCRIPTIONS
) -> ClientTransport:
    return gateway.request("POST", path, body, {"Content-Type": kind, "X-Request-ID": "req-1"})
